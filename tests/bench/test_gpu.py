"""`make gpu` without a GPU: running, judging and reporting its parts, and its messages when it cannot start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import commands, cuda_toolkit, gpu
from bench.commands import Command, CommandResult, run_all

GPU = {"gpu": "A GPU", "capability": "9.0", "l2_bytes": 50 << 20}
SLEEPS = "import time; print('asleep', flush=True); time.sleep(60)"


@pytest.fixture
def command(tmp_path: Path) -> Any:
    """Makes a command that runs a line of Python."""

    def make(name: str, code: str, limit: float = 30, **more: Any) -> Command:
        return Command(name, lambda _: [sys.executable, "-c", code], limit, tmp_path / f"{name}.log", **more)

    return make


def statuses(results: list[CommandResult]) -> list[str]:
    return [result.status for result in results]


# --- running ---------------------------------------------------------------------------------------------------------


def test_a_failing_command_does_not_stop_the_next(command: Any) -> None:
    ways = [
        "print('fine')",
        "import sys; sys.exit('wrong')",
        "import os; os.kill(os.getpid(), 9)",
        "print('fine, too')",
    ]
    results = run_all([[command(str(k), code)] for k, code in enumerate(ways)], 60)
    assert statuses(results) == ["ok", "failed", "failed", "ok"]
    assert [result.detail for result in results] == ["fine", "wrong", "no output", "fine, too"]


def test_a_missing_program_fails_and_an_optional_one_is_skipped(command: Any, tmp_path: Path) -> None:
    nowhere = Command("nowhere", lambda _: ["/nowhere/to/be/found"], 30, tmp_path / "log")
    absent = command("absent", "print()", missing="not installed")
    nowhere, absent = run_all([[nowhere], [absent]], 60)
    assert (nowhere.status, absent.status, absent.detail) == ("failed", "skipped", "not installed")
    assert "/nowhere/to/be/found" in nowhere.detail


def test_commands_after_a_failed_required_one_are_skipped(command: Any) -> None:
    groups = [
        [command("build", "raise SystemExit(2)", required=True)],
        [command("tests", "print()"), command("more", "print()")],
    ]
    results = run_all(groups, 60)
    assert statuses(results) == ["failed", "skipped", "skipped"]
    assert results[2].detail == "build failed"


def test_a_command_ends_at_its_limit_with_its_child_processes(
    monkeypatch: pytest.MonkeyPatch, command: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(commands, "MIN_SECONDS", 0.1)
    ticks = tmp_path / "ticks"
    child = f"import time\nwhile True: open({str(ticks)!r}, 'a').write('.'); time.sleep(0.01)"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    (result,) = run_all([[command("slow", parent, 2)]], 60)
    assert result.status == "failed"
    assert result.detail.startswith("stopped after 2 s; ")
    assert result.seconds < 30
    so_far = ticks.stat().st_size
    time.sleep(0.2)
    assert 0 < so_far == ticks.stat().st_size


def test_results_saved_before_the_time_ran_out_are_judged(command: Any, tmp_path: Path) -> None:
    def judge(code: int, output: str) -> commands.Verdict:
        return commands.Verdict("ok", f"{output.split()[0]}, {code}")

    kept, lost = (command(f"{saves}", SLEEPS, 5, judge=judge, saves_progress=saves) for saves in (True, False))
    results = run_all([[kept, lost]], 60)
    assert [result.status for result in results] == ["ok", "failed"]
    assert results[0].detail == "stopped after 5 s; asleep, 0"
    assert results[1].detail.startswith("stopped after 5 s; ")


def test_results_of_an_earlier_run_are_removed_before_a_command(command: Any, tmp_path: Path) -> None:
    old = tmp_path / "rows.json"
    old.write_text("of an earlier run")

    def judge(code: int, output: str) -> commands.Verdict:
        return commands.Verdict("ok" if old.exists() else "failed", "")

    assert statuses(
        run_all([[command("measures", "print()", judge=judge, results=(old,), saves_progress=True)]], 60)
    ) == ["failed"]


def test_results_of_an_earlier_run_are_removed_even_if_their_command_is_skipped(command: Any, tmp_path: Path) -> None:
    old = tmp_path / "rows.json"
    old.write_text("of an earlier run")
    groups = [
        [command("build", "raise SystemExit(2)", required=True)],
        [command("measures", "print()", results=(old,))],
    ]
    assert statuses(run_all(groups, 60)) == ["failed", "skipped"]
    assert not old.exists()


def test_commands_without_time_are_reported(monkeypatch: pytest.MonkeyPatch, command: Any) -> None:
    monkeypatch.setattr(commands, "MIN_SECONDS", 0.5)
    monkeypatch.setattr(commands, "GRACE", 0.2)
    start = time.monotonic()
    results = run_all([[command("slow", SLEEPS)], [command("next", "print()")], [command("last", "print()")]], 3)
    assert statuses(results) == ["failed", "skipped", "skipped"]
    assert {result.detail for result in results[1:]} == {"no time left"}
    assert time.monotonic() - start < 20


def test_a_command_gets_the_seconds_that_it_may_take(tmp_path: Path) -> None:
    seconds_given = []

    def command(seconds: float) -> list[str]:
        seconds_given.append(seconds)
        return [sys.executable, "-c", ""]

    run_all([[Command("long", command, 7, tmp_path / "a")], [Command("short", command, 1000, tmp_path / "b")]], 60)
    assert seconds_given[0] == 7
    assert 30 < seconds_given[1] < 60


def test_a_group_runs_side_by_side(command: Any, tmp_path: Path) -> None:
    wait = "import time; from pathlib import Path; Path({!r}).touch()\nwhile not Path({!r}).exists(): time.sleep(0.01)"
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    results = run_all([[command("a", wait.format(one, two)), command("b", wait.format(two, one))]], 60)
    assert statuses(results) == ["ok", "ok"]


# --- judging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "last", "expected"),
    [
        (0, "300 passed, 9 skipped, 1689 deselected, 2 warnings in 98.12s (0:01:38)", ("ok", "300 passed, 9 skipped")),
        (1, "3 failed, 297 passed in 98.12s", ("failed", "3 failed, 297 passed")),
        (0, "310 skipped, 1689 deselected in 1.50s", ("failed", "310 skipped")),
        (4, "ERROR: unrecognized arguments: -n", ("failed", "ERROR: unrecognized arguments: -n")),
    ],
)
def test_tests_that_were_all_skipped_have_failed(code: int, last: str, expected: tuple[str, str]) -> None:
    assert gpu.judge_tests(code, f"....\nSKIPPED [9] tests/x.py: 2 passed by\n{last}\n") == expected


@pytest.mark.parametrize(
    ("code", "output", "status", "words"),
    [
        (0, "checked 48 calls: all\n========= ERROR SUMMARY: 0 errors", "ok", "ERROR SUMMARY: 0 errors; checked 48"),
        (9, "checked 48 calls: all\n========= ERROR SUMMARY: 2 errors", "failed", "ERROR SUMMARY: 2 errors"),
        (0, "========= ERROR SUMMARY: 0 errors", "failed", "ERROR SUMMARY"),
        (0, "checked 48 calls: all", "failed", "checked 48"),
        (255, "========= Error: Device not supported\n", "skipped", "does not support"),
    ],
)
def test_a_sanitizer_passes_only_if_the_script_reached_its_end(code: int, output: str, status: str, words: str) -> None:
    verdict = gpu.judge_sanitizer(code, f"========= COMPUTE-SANITIZER\n{output}\n")
    assert verdict.status == status
    assert words in verdict.detail


def test_measurements_are_judged_by_their_files(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    assert gpu.judge_loss(rows, 100, 0, "nothing").status == "failed"
    ours = {"provider": "udskd", "rows": 4, "classes": 10, "dtype": "float32", "share_of_copy": 0.5, "median_us": 9.5}
    ours |= {"pass": "forward", "minimal_bytes": 401}
    cached = ours | {"minimal_bytes": 400, "share_of_copy": 3.0}
    rows.write_text(json.dumps([ours, cached, ours | {"share_of_copy": 0.75, "rows": 8}, ours | {"provider": "eager"}]))
    output = gpu.judge_loss(rows, 100, 0, "no time left for 9 x 9, float32, forward and the cases after it\n")
    assert output.status == "ok"
    best = "best beyond the caches 75% of a copy: 8 x 10, float32"
    assert output.detail.startswith(f"3 cases; {best}; no time left for 9 x 9")
    assert gpu.judge_loss(rows, 10**9, 0, "no memory for 8 x 8\n").detail == "3 cases; no memory for 8 x 8"
    assert gpu.judge_loss(rows, 100, 1, "it disagrees\n") == ("failed", "it disagrees")
    assert gpu.judge_call(rows, 0, "").detail.startswith("forward 9.5 µs")


def test_the_step_is_judged_by_its_rates(tmp_path: Path) -> None:
    rows = tmp_path / "step.json"
    assert gpu.judge_step(rows, 0, "nothing").status == "failed"
    parts = [{"part": "step", "whose": name, "images_per_s": n} for name, n in (("udskd", 5000.0), ("plain", 2500.0))]
    parts.append({"part": "teacher", "whose": "udskd", "images_per_s": 20000.0})
    epochs = [{"what": "loader alone, udskd", "images": "resident", "images_per_s": 90000.0, "of_step": None}]
    epochs += [{"what": "udskd", "images": "resident", "images_per_s": 4900.0, "of_step": 0.98}]
    rows.write_text(json.dumps({"parts": parts, "epochs": epochs}))
    output = "images/s: udskd 5,000, plain 2,500; end to end udskd, resident: 4,900, 98% of its step"
    assert gpu.judge_step(rows, 0, "") == ("ok", output)
    assert gpu.judge_step(rows, 1, "out of memory\n") == ("failed", "out of memory")


def test_a_failed_build_is_reported_by_its_first_error() -> None:
    output = "[1/2] nvcc -c a.cu\na.cu(3): error: no such thing\nninja: build stopped\nRuntimeError: Error compiling\n"
    assert gpu.judge_build("9.0", 1, output) == ("failed", "a.cu(3): error: no such thing")
    assert gpu.judge_build("9.0", 0, output).status == "ok"


# --- the parts -------------------------------------------------------------------------------------------------------


def test_the_parts_need_no_network_and_build_for_one_architecture(tmp_path: Path) -> None:
    parts = [part for group in gpu.all_parts(tmp_path, "/cuda", GPU) for part in group]
    names = [part.name for part in parts]
    assert names[0] == "build"
    assert names[1] == "tests"
    assert set(gpu.TOOLS) < set(names)
    assert len(set(names)) == len(names)
    build = parts[0]
    assert build.required
    assert build.environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
    for part in parts:
        words = part.argv(100.0)
        assert not {"pip", "install"} & set(words)
        assert part.log.parent == tmp_path
    limits = [words[words.index("--limit") + 1] for words in (p.argv(100.0) for p in parts) if "--limit" in words]
    assert limits == ["90", "60", "90", "40"]


def test_only_what_is_asked_for_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: Any, tmp_path: Path
) -> None:
    simulate_gpu(monkeypatch, [[command("a", "print(1)")], [command("b", "print(2)"), command("c", "print(3)")]])
    assert gpu.main(["--out", str(tmp_path / "out"), "--only", "a, c,"]) == 0
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["steps"]
    assert [x["step"] for x in found] == ["a", "c"]
    capsys.readouterr()
    assert gpu.main(["--out", str(tmp_path / "new"), "--only", "a,d"]) == 1
    assert capsys.readouterr().out == "udskd: argument --only: unknown part 'd'; known are a, b, c\n"
    assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit):
        gpu.main(["--only", ","])
    assert "argument --only: expected at least one part" in capsys.readouterr().err


def test_initcheck_watches_all_kernels_and_the_others_ours(tmp_path: Path) -> None:
    for tool in gpu.TOOLS:
        words = gpu.sanitizer(tmp_path, "/cuda", tool).argv(60.0)
        assert ("kns=udskd" in words) == (tool != "initcheck")


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_message_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path / "new")]) == 1
    assert capsys.readouterr().out == "udskd: no GPU: PyTorch sees no CUDA device\n"
    assert not (tmp_path / "new").exists()


def simulate_gpu(monkeypatch: pytest.MonkeyPatch, groups: list[list[Command]], home: str | None = "/cuda") -> None:
    """Simulates a GPU and replaces the parts."""
    monkeypatch.setattr(gpu, "describe_machine", lambda: dict(GPU))
    monkeypatch.setattr(cuda_toolkit, "home", lambda: home)
    monkeypatch.setattr(cuda_toolkit, "release", lambda within: "13.0")
    monkeypatch.setattr(gpu, "all_parts", lambda *rest: groups)


def test_without_nvcc_the_message_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate_gpu(monkeypatch, [], home=None)
    assert gpu.main([]) == 1
    assert capsys.readouterr().out == "udskd: no nvcc: install the CUDA toolkit or set CUDA_HOME\n"


@pytest.mark.parametrize(("code", "status"), [(0, "ok"), (3, "failed")])
def test_the_table_is_printed_last_and_written(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: Any,
    tmp_path: Path,
    code: int,
    status: str,
) -> None:
    out = tmp_path / "out"
    first = command("first", f"print('a | b'); raise SystemExit({code})")
    simulate_gpu(monkeypatch, [[first], [command("second", "print()", missing="not installed")]])
    assert gpu.main(["--out", str(out)]) == (1 if code else 0)
    table = (out / "summary.md").read_text()
    output = capsys.readouterr().out
    assert output.endswith("\n\n" + table)
    assert f"| first | {status} | " in table
    assert "a \\| b |" in table
    assert "| second | skipped | 0.0 | not installed |" in table
    summary = json.loads((out / "summary.json").read_text())
    assert [x["status"] for x in summary["steps"]] == [status, "skipped"]
    assert json.loads((out / "machine.json").read_text()) == summary["machine"] | {"nvcc": "13.0"}


@pytest.mark.parametrize("given", [(), ("OUT=elsewhere", "PYTHON=some-python", "ONLY=build, tests")])
def test_make_runs_it_with_the_python_of_the_machine(given: tuple[str, ...]) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("OUT", "PYTHON", "MAKEFLAGS", "MAKELEVEL")}
    run = partial(subprocess.run, cwd=commands.ROOT, env=environment, capture_output=True, text=True)
    output = run(["make", "-n", "gpu", *given]).stdout
    python, out = ("some-python", "elsewhere --only 'build, tests'") if given else ("python3", "build/gpu")
    assert output == f"{python} -m bench.gpu --out {out}\n"
