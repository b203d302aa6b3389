"""The benchmark of the loss on small workloads: its files, its errors, and the comparison with float64."""

from __future__ import annotations

import json
import shlex
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import (
    caches,
    call,
    kernel_time,
    loss,
    loss_case,
    loss_plots,
    loss_style,
    loss_table,
    memory,
    providers,
    timing,
)
from bench import workload as workload_module
from bench.providers import FACTORIES, Provider
from bench.workload import LOSS_OPTIONS, Case, Oracle, evaluate, make_workload
from tests.loss.helpers import eager

KEYS = {
    *("provider", "rows", "classes", "dtype", "pass", "threads", "median_us", "p10_us", "p90_us", "wall_us"),
    *("minimal_bytes", "gb_per_s", "share_of_copy", "peak_bytes", "max_error", "speedup_vs_eager", "cache"),
    "apart",
    "kernels_us",
    *("machine", "versions", "command", "copy_gb_per_s"),
}
LOSS: dict[str, Any] = LOSS_OPTIONS | {"temperature": 4.0}
TINY = "--threads 1 --shapes 4x10 --rounds 1 --dtypes float32 --students independent"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short samples, and a copy that is not measured."""
    monkeypatch.setattr(timing, "MIN_SAMPLE_US", 1.0)
    monkeypatch.setattr(timing, "copy_bandwidth", lambda device: 10.0)


def run(command: str) -> int:
    return loss.main(shlex.split(command))


def test_rows_are_complete_and_plausible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "rows.json"
    shapes = "--shapes 4x10,3x7 --dtypes float32,bfloat16"
    assert run(f"{TINY} {shapes} --providers eager,udskd,liger --rounds 3 --json {file}") == 0
    rows = json.loads(file.read_text())
    cases = [(row["rows"], row["classes"], row["dtype"], row["pass"], row["provider"]) for row in rows]
    assert len(set(cases)) == len(rows) == 2 * 2 * 2 * 2
    for row in rows:
        assert set(row) == KEYS
        assert 0 < row["p10_us"] <= row["median_us"] <= row["p90_us"]
        assert row["wall_us"] == row["median_us"]
        passes = 3 if row["pass"] == "forward" else 5
        assert row["minimal_bytes"] == passes * row["rows"] * row["classes"] * (4 if row["dtype"] == "float32" else 2)
        assert row["gb_per_s"] == pytest.approx(row["minimal_bytes"] / row["median_us"] / 1e3, rel=1e-2)
        assert row["share_of_copy"] == pytest.approx(row["gb_per_s"] / 10, rel=1e-2)
        assert row["max_error"] < (1e-5 if row["dtype"] == "float32" else 0.1)
        assert row["speedup_vs_eager"] > 0
        assert row["peak_bytes"] > 0
        assert "--json" not in row["command"]
        assert str(tmp_path) not in row["command"]
    assert [name.name for name in file.parent.iterdir()] == ["rows.json"]
    out = capsys.readouterr().out
    assert "skipped: liger, only for CUDA" in out
    assert "3 x 7, bfloat16, forward+backward" in out


def test_the_recorded_command_gives_the_same_cases(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text("what was there before")
    assert run(f"{TINY} --passes forward --providers eager --json {file}") == 0
    command = json.loads(file.read_text())[0]["command"]
    assert command.startswith("python -m bench.loss ")
    options = loss.parse(shlex.split(command)[3:])
    assert (options.shapes, options.passes, options.providers) == ([(4, 10)], ["forward"], ["eager"])
    assert (options.rounds, options.threads) == (1, 1)


def test_without_eager_there_is_no_speedup(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert run(f"{TINY} --providers udskd --json {file} --plot {tmp_path}") == 0
    assert {row["speedup_vs_eager"] for row in json.loads(file.read_text())} == {None}
    assert not (tmp_path / "speedup.png").exists()


def test_plots_and_markdown(tmp_path: Path) -> None:
    text = tmp_path / "table.md"
    assert run(f"{TINY} --providers eager,udskd --plot {tmp_path / 'plots'} --markdown {text}") == 0
    for name in ("speedup.png", "bandwidth.png"):
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")
    assert text.read_text().startswith("**forward**\n")
    assert "| udskd " in text.read_text()


def test_many_shapes_are_drawn_as_curves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(caches, "last_level_bytes", lambda device: 1000)
    monkeypatch.setattr(loss_plots, "MAX_SHAPES", 3)
    shapes = ",".join(f"{rows}x{classes}" for rows in (2, 3) for classes in (10, 20))
    assert run(f"{TINY} --shapes {shapes} --caches warm,cold --providers eager,udskd --plot {tmp_path}") == 0
    names = ["forward", "forward+backward"]
    wanted = {f"{name}{cold}-float32.png" for name in names for cold in ("", "-cold")}
    assert {path.name for path in tmp_path.iterdir()} == wanted
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_every_provider_has_its_colour() -> None:
    assert set(loss_style.COLOURS) == set(FACTORIES)


# --- wrong or failing providers --------------------------------------------------------------------------------------


def right(*inputs: Tensor) -> Tensor:
    return eager.dual_student_loss(*inputs, **LOSS).loss


def replace_reference(monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    monkeypatch.setitem(FACTORIES, "reference", lambda name, device, options: Provider(name, wrong))


def too_large(*inputs: Tensor) -> Tensor:
    return right(*inputs) * 1.001


def too_steep(*inputs: Tensor) -> Tensor:
    """The right loss with wrong gradients."""
    return right(*inputs).detach() + too_large(*inputs) - too_large(*inputs).detach()


def not_a_number(*inputs: Tensor) -> Tensor:
    return right(*inputs) * float("nan")


@pytest.mark.parametrize("wrong", [too_large, too_steep, not_a_number])
def test_a_wrong_provider_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, wrong: Any
) -> None:
    replace_reference(monkeypatch, wrong)
    file = tmp_path / "rows.json"
    assert run(f"{TINY} --providers eager,udskd,reference --json {file}") == 1
    output = capsys.readouterr().err
    assert output.startswith("reference disagrees with float64 on 4 x 10, float32, ")
    assert output.count("\n") == 1
    # what was measured before is there: the loss alone, where only the gradients are wrong
    rows = json.loads(file.read_text()) if file.exists() else []
    assert {row["pass"] for row in rows} == ({"forward"} if wrong is too_steep else set())


def test_a_provider_that_raises_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*inputs: Tensor) -> Tensor:
        raise ValueError("not with these\nlogits")

    monkeypatch.setitem(FACTORIES, "liger", lambda name, device, options: Provider(name, refuse))
    assert run(f"{TINY} --passes forward --providers udskd,liger") == 0
    assert "skipped: liger, which fails on 4 x 10, float32, forward: not with these\n" in capsys.readouterr().out


def test_a_run_without_rows_fails_with_a_message(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(f"{TINY} --providers quack --plot {tmp_path}") == 1
    assert capsys.readouterr().err == "None of the providers can run any of the cases.\n"


def test_a_run_stops_at_its_limit_and_writes_what_it_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(loss.time, "monotonic", lambda: float(next(clock)))
    file = tmp_path / "rows.json"
    assert run(f"{TINY} --shapes 4x10,5x10,6x10 --providers udskd --passes forward --limit 2 --json {file}") == 0
    assert [row["rows"] for row in json.loads(file.read_text())] == [4, 5]
    assert "\nno time left for 6 x 10, float32, forward and the cases after it\n" in capsys.readouterr().out


def test_another_librarys_wrong_result_is_reported_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(FACTORIES, "liger", lambda name, device, options: Provider(name, too_large))
    file = tmp_path / "rows.json"
    assert run(f"{TINY} --passes forward --providers udskd,liger --json {file}") == 0
    assert [row["provider"] for row in json.loads(file.read_text())] == ["udskd"]
    assert "skipped: liger, which fails on 4 x 10, float32, forward: liger disagrees" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["eager", "udskd"])
def test_a_provider_without_memory_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    def refuse(*inputs: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory\nand how to get some")

    monkeypatch.setitem(FACTORIES, name, lambda name, device, options: Provider(name, refuse))
    replace_reference(monkeypatch, right)
    file = tmp_path / "rows.json"
    monkeypatch.setattr(loss_case, "error_bound", lambda *_: 1.0)
    assert run(f"{TINY} --passes forward --providers {name},reference --json {file}") == 0
    assert [row["provider"] for row in json.loads(file.read_text())] == ["reference"]
    assert f"skipped: {name}, which fails on 4 x 10, float32, forward: CUDA out of memory\n" in capsys.readouterr().out


def test_a_provider_that_fails_only_when_timed_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    calls: list[int] = []

    def once(*inputs: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("only once")
        return right(*inputs)

    monkeypatch.setitem(FACTORIES, "liger", lambda name, device, options: Provider(name, once))
    file = tmp_path / "rows.json"
    assert run(f"{TINY} --passes forward --providers udskd,liger --json {file}") == 0
    assert [row["provider"] for row in json.loads(file.read_text())] == ["udskd"]
    assert "skipped: liger, which fails on 4 x 10, float32, forward: only once\n" in capsys.readouterr().out


def test_a_case_that_finds_no_memory_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def without_memory(case: Case, device: str, seed: int = 0) -> Any:
        if case.rows == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make_workload(case, device, seed)

    monkeypatch.setattr(loss_case, "make_workload", without_memory)
    file = tmp_path / "rows.json"
    assert run(f"{TINY} --shapes 4x10,5x10,6x10 --passes forward --providers udskd --json {file}") == 0
    assert [row["rows"] for row in json.loads(file.read_text())] == [4, 6]
    assert "no memory for 5 x 10, float32, forward\n" in capsys.readouterr().out


def test_the_rows_of_a_case_are_written_before_the_next_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(case: Case, device: str, seed: int = 0) -> Any:
        if case.rows == 5:
            raise KeyboardInterrupt
        return make_workload(case, device, seed)

    monkeypatch.setattr(loss_case, "make_workload", interrupted)
    file, text = tmp_path / "rows.json", tmp_path / "rows.md"
    with pytest.raises(KeyboardInterrupt):
        run(f"{TINY} --shapes 4x10,5x10 --passes forward --providers udskd --json {file} --markdown {text}")
    assert [row["rows"] for row in json.loads(file.read_text())] == [4]
    assert "4 x 10" in text.read_text()


# --- students that are near the teacher ------------------------------------------------------------------------------


def test_independent_and_trained_students_are_measured_by_default(tmp_path: Path) -> None:
    file, command = tmp_path / "rows.json", TINY.replace("--students independent", "")
    assert run(f"{command} --passes forward --providers eager,udskd --json {file} --plot {tmp_path}") == 0
    rows = json.loads(file.read_text())
    assert [row["apart"] for row in rows] == [None, None, 0.25, 0.25]
    assert "--students independent,0.25" in rows[0]["command"]
    titles = [section.title for section in loss_table.sections(rows)]
    assert titles == ["4 x 10, float32, forward", "4 x 10, float32, forward, students 0.25 from the teacher"]


def test_trained_students_differ_from_the_teacher_by_what_the_case_says() -> None:
    for apart in (0.25, 1.0):
        made = make_workload(Case(64, 100, "float32", "forward+backward", apart=apart), "cpu")
        assert (made.student_a - made.teacher).std().item() == pytest.approx(apart, rel=0.05)
        assert (made.student_b - made.student_a).std().item() == pytest.approx(apart * 2**0.5, rel=0.05)
        assert all(x.is_leaf and x.requires_grad for x in made.students)


# --- caches ----------------------------------------------------------------------------------------------------------


def test_cold_logits_are_more_than_the_caches_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(caches, "last_level_bytes", lambda device: 1000)
    found: list[int] = []

    def note(*inputs: Tensor) -> Tensor:
        found.append(inputs[1].data_ptr())
        return right(*inputs)

    replace_reference(monkeypatch, note)
    file = tmp_path / "rows.json"
    assert run(f"{TINY} --rounds 10 --caches warm,cold --passes forward --providers eager,reference --json {file}") == 0
    rows = json.loads(file.read_text())
    assert [row["cache"] for row in rows] == ["warm", "warm", "cold", "cold"]
    assert "--caches warm,cold" in rows[0]["command"]
    assert len(set(found[:8])) == 1
    last = found[-14:]
    assert (len(set(last)), last[:7]) == (7, last[7:])  # 480 bytes a batch: seven are more than three times the cache


def test_a_cold_case_that_needs_too_many_batches_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(caches, "last_level_bytes", lambda device: 1_000_000)
    file = tmp_path / "rows.json"
    assert run(f"{TINY} --caches cold,warm --passes forward --providers udskd --json {file}") == 0
    assert [row["cache"] for row in json.loads(file.read_text())] == ["warm"]
    assert "skipped: 4 x 10, float32, forward, cold: too small to leave caches of 1 MB" in capsys.readouterr().out


def test_results_of_a_round_of_cold_batches_are_kept_apart() -> None:
    case = Case(4, 10, "float32", "forward+backward", "cold")
    workloads = [make_workload(case, "cpu", seed) for seed in range(3)]
    work = loss_case.loop_over(Provider("eager", right), workloads, True)
    work(7)
    (kept,) = [cell.cell_contents for cell in work.__closure__ or () if isinstance(cell.cell_contents, deque)]
    assert len({gradient.data_ptr() for gradients in kept for gradient in gradients}) == 4


def test_the_largest_cache_is_read_from_the_system(tmp_path: Path) -> None:
    for index, size in enumerate(("32K", "1024K", "33M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert caches.last_level_bytes("cpu", tmp_path) == 33 << 20
    assert caches.last_level_bytes("cpu", tmp_path / "none") == caches.DEFAULT_BYTES


def test_a_case_larger_than_the_caches_needs_no_second_batch() -> None:
    assert caches.batch_count(Case(1000, 1000, "float32", "forward", "cold"), 4_000_000) == 1
    assert caches.batch_count(Case(1000, 1000, "float32", "forward", "cold"), 4_000_001) == 2
    assert caches.batch_count(Case(10, 10, "float32", "forward", "warm"), 4_000_000) == 1


def test_kernels_are_timed_on_a_gpu_alone() -> None:
    assert kernel_time.microseconds(lambda times: None, "cpu") is None


@pytest.mark.parametrize("asked", [False, True])
def test_kernels_are_timed_if_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, asked: bool
) -> None:
    monkeypatch.setattr(kernel_time, "microseconds", lambda work, device: 12.5)
    file = tmp_path / "rows.json"
    assert run(f"{TINY} --passes forward --providers udskd --json {file}{' --kernels' * asked}") == 0
    (row,) = json.loads(file.read_text())
    assert row["kernels_us"] == (12.5 if asked else None)
    assert ("--kernels" in row["command"]) == asked
    assert ("12.5 µs" in capsys.readouterr().out) == asked


# --- our own must run ------------------------------------------------------------------------------------------------


def test_udskd_must_not_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*inputs: Tensor) -> Tensor:
        raise ValueError("not with these logits")

    monkeypatch.setitem(FACTORIES, "udskd", lambda name, device, options: Provider(name, refuse))
    with pytest.raises(ValueError, match="not with these logits"):
        run(f"{TINY} --providers udskd")


def test_the_bound_is_wider_where_plain_pytorch_is_less_exact() -> None:
    bounds = []
    for dtype in ("float64", "float32", "bfloat16"):
        case = Case(16, 100, dtype, "forward+backward")
        workload = make_workload(case, "cpu")
        bounds.append(loss_case.error_bound(case, workload, LOSS, Oracle(workload, LOSS, True)))
    assert 0 < bounds[0] < 1e-11 < bounds[1] < 1e-5 < 1e-3 < bounds[2] < 0.2


def test_a_bound_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FACTORIES, "eager", lambda name, device, options: Provider(name, not_a_number))
    case = Case(4, 10, "float32", "forward")
    workload = make_workload(case, "cpu")
    with pytest.raises(loss_case.Disagreement, match="no finite result for 4 x 10"):
        loss_case.error_bound(case, workload, LOSS, Oracle(workload, LOSS, False))


def test_an_error_is_relative_to_the_largest_element(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(13, 10, "float64", "forward+backward")
    workload = make_workload(case, "cpu")
    for at_once in (workload_module.CHUNK_LOGITS, 40):  # the whole batch, and four rows at a time
        monkeypatch.setattr(workload_module, "CHUNK_LOGITS", at_once)
        oracle, found = Oracle(workload, LOSS, True), evaluate(right, workload, True)
        assert oracle.error(found) < 1e-14
        assert oracle.error([found[0] * 1.5, *found[1:]]) == pytest.approx(0.5)
        off = found[2].clone()
        off[12, 3] += 0.25 * found[2].abs().max()
        assert oracle.error([found[0], found[1], off]) == pytest.approx(0.25)
        off[2, 3] = torch.nan
        assert oracle.error([found[0], found[1], off]) == float("inf")


def test_a_workload_depends_on_its_seed_alone() -> None:
    case = Case(4, 10, "bfloat16", "forward")
    one, same, other = (make_workload(case, "cpu", seed) for seed in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(one, same, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(one, other, strict=True))
    assert not one.student_a.requires_grad


class Overwriting(nn.CrossEntropyLoss):
    """Overwrites its logits, as Liger's does."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        value = super().forward(logits.clone(), target)
        logits.data.zero_()
        return value


@pytest.mark.parametrize("name", ["compile", "liger", "quack"])
def test_compositions_compute_the_loss(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With PyTorch's functions instead of the kernels, which need a GPU, and without torch.compile."""
    liger = SimpleNamespace(LigerCrossEntropyLoss=Overwriting, LigerKLDIVLoss=nn.KLDivLoss)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", liger)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "quack.cross_entropy", SimpleNamespace(cross_entropy=F.cross_entropy))  # type: ignore[arg-type]
    monkeypatch.setattr(providers, "_only_cuda", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    found, skipped = providers.available([name], "cpu", LOSS)
    assert not skipped
    for kind in ("forward", "forward+backward"):
        case = Case(8, 10, "float64", kind)
        assert loss_case.check(case, found, make_workload(case, "cpu"), LOSS)[name] < 1e-12


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("--shapes 256", "'256' is not ROWSxCLASSES"),
        ("--shapes 256x100,0x10", "'0x10' is not ROWSxCLASSES"),
        ("--shapes 8x1", "'8x1' is not ROWSxCLASSES"),
        ("--dtypes float31", "unknown dtype 'float31'; known are float32, bfloat16"),
        ("--passes backward", "unknown pass 'backward'; known are forward, forward+backward"),
        ("--providers eager,udsdk", "unknown provider 'udsdk'; known are eager, compile"),
        ("--caches lukewarm", "unknown state 'lukewarm'; known are warm, cold"),
        ("--students near", "'near' is neither independent nor a number above 0"),
        ("--students 0", "'0' is neither independent nor a number above 0"),
        ("--rounds 0", "'0' is not an integer of at least 1"),
        ("--threads two", "'two' is not an integer of at least 1"),
        ("--temperature 0", "--temperature: it must be above 0"),
        ("--device tpu", "invalid choice: 'tpu'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], command: str, words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(command)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("main", [loss.main, call.main])
def test_cuda_without_a_device_is_refused(capsys: pytest.CaptureFixture[str], main: Any) -> None:
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "--device: PyTorch sees no CUDA device" in capsys.readouterr().err


# --- the tools -------------------------------------------------------------------------------------------------------


def test_loops_take_turns_in_rotating_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MIN_SAMPLE_US", 0.0)
    found: list[str] = []
    works = {name: lambda times, name=name: found.extend([name] * times) for name in "abc"}
    times = timing.interleaved(works, 3, "cpu")
    assert "".join(found[-9:]) == "abcbcacab"
    assert list(times) == ["a", "b", "c"]


def test_peak_counts_what_is_held_at_once() -> None:
    def work(times: int) -> None:
        x = torch.empty(1000)
        y = torch.empty(2000)
        del x
        z = torch.empty(500)
        del y, z

    assert memory.peak_bytes(work, "cpu") == 12_000


def test_tables_hold_the_ratios_that_matter() -> None:
    shared = {"rows": 4, "classes": 10, "dtype": "float32", "pass": "forward", "gb_per_s": 1.0, "share_of_copy": 0.5}
    shared |= {"p10_us": 1.0, "p90_us": 1.0, "max_error": 1e-7, "peak_bytes": None}
    medians = {"eager": 1200.0, "compile": 300.0, "udskd": 100.0}
    rows = [shared | {"provider": name, "median_us": us} for name, us in medians.items()]
    (section,) = loss_table.sections(rows)
    assert [line[3:5] for line in section.rows] == [["1.00x", "0.25x"], ["4.00x", "1.00x"], ["12.0x", "3.00x"]]
    (summary,) = loss_table.summary(rows)
    assert summary.rows == [["4 x 10, float32", "1200 µs", "300 µs", "100 µs", "12.0x", "3.00x", "50%", "- / - / -"]]


def test_the_cost_of_a_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call.main(["--rounds", "1", "--json", str(tmp_path / "call.json")]) == 0
    rows = json.loads((tmp_path / "call.json").read_text())
    assert [(row["provider"], row["pass"]) for row in rows] == [
        (name, kind) for name in ("F.cross_entropy", "eager", "udskd") for kind in call.PASSES
    ]
    assert all(row["median_us"] > 0 for row in rows)
    assert "| udskd " in capsys.readouterr().out
