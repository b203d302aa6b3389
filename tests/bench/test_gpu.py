"""`make gpu` where there is no GPU: how its parts are run, judged and reported; what it says when it cannot start."""

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

from bench import gpu, steps, toolkit
from bench.steps import Outcome, Step, run_all

GPU = {"gpu": "A GPU", "capability": "9.0", "l2_bytes": 50 << 20}
SLEEPS = "import time; print('asleep', flush=True); time.sleep(60)"


@pytest.fixture
def step(tmp_path: Path) -> Any:
    """Makes a step of a line of Python."""

    def make(name: str, code: str, limit: float = 30, **more: Any) -> Step:
        return Step(name, lambda _: [sys.executable, "-c", code], limit, tmp_path / f"{name}.log", **more)

    return make


def statuses(outcomes: list[Outcome]) -> list[str]:
    return [outcome.status for outcome in outcomes]


# --- running ---------------------------------------------------------------------------------------------------------


def test_a_failing_step_does_not_stop_the_next(step: Any) -> None:
    ways = [
        "print('fine')",
        "import sys; sys.exit('wrong')",
        "import os; os.kill(os.getpid(), 9)",
        "print('fine, too')",
    ]
    outcomes = run_all([[step(str(k), code)] for k, code in enumerate(ways)], 60)
    assert statuses(outcomes) == ["ok", "failed", "failed", "ok"]
    assert [outcome.detail for outcome in outcomes] == ["fine", "wrong", "no output", "fine, too"]


def test_a_program_that_is_not_there_fails_and_one_that_need_not_be_is_skipped(step: Any, tmp_path: Path) -> None:
    nowhere = Step("nowhere", lambda _: ["/nowhere/to/be/found"], 30, tmp_path / "log")
    absent = step("absent", "print()", missing="not installed")
    nowhere, absent = run_all([[nowhere], [absent]], 60)
    assert (nowhere.status, absent.status, absent.detail) == ("failed", "skipped", "not installed")
    assert "/nowhere/to/be/found" in nowhere.detail


def test_without_what_is_vital_there_is_nothing_to_run(step: Any) -> None:
    groups = [[step("build", "raise SystemExit(2)", vital=True)], [step("tests", "print()"), step("more", "print()")]]
    outcomes = run_all(groups, 60)
    assert statuses(outcomes) == ["failed", "skipped", "skipped"]
    assert outcomes[2].detail == "without build there is nothing to run"


def test_a_step_ends_at_its_limit_and_what_it_started_with_it(
    monkeypatch: pytest.MonkeyPatch, step: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(steps, "LEAST", 0.1)
    ticks = tmp_path / "ticks"
    child = f"import time\nwhile True: open({str(ticks)!r}, 'a').write('.'); time.sleep(0.01)"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    (outcome,) = run_all([[step("slow", parent, 2)]], 60)
    assert outcome.status == "failed"
    assert outcome.detail.startswith("stopped after 2 s; ")
    assert outcome.seconds < 30
    so_far = ticks.stat().st_size
    time.sleep(0.2)
    assert 0 < so_far == ticks.stat().st_size


def test_what_a_step_had_written_when_its_time_ran_out_may_count(step: Any, tmp_path: Path) -> None:
    def judge(code: int, output: str) -> steps.Verdict:
        return steps.Verdict("ok", f"{output.split()[0]}, {code}")

    kept, lost = (step(f"{keeps}", SLEEPS, 5, judge=judge, keeps=keeps) for keeps in (True, False))
    outcomes = run_all([[kept, lost]], 60)
    assert [outcome.status for outcome in outcomes] == ["ok", "failed"]
    assert outcomes[0].detail == "stopped after 5 s; asleep, 0"
    assert outcomes[1].detail.startswith("stopped after 5 s; ")


def test_results_of_an_earlier_time_do_not_pass_for_new_ones(step: Any, tmp_path: Path) -> None:
    old = tmp_path / "rows.json"
    old.write_text("from last week")

    def judge(code: int, output: str) -> steps.Verdict:
        return steps.Verdict("ok" if old.exists() else "failed", "")

    assert statuses(run_all([[step("measures", "print()", judge=judge, writes=(old,), keeps=True)]], 60)) == ["failed"]


def test_results_of_an_earlier_time_do_not_lie_beside_a_step_that_was_not_reached(step: Any, tmp_path: Path) -> None:
    old = tmp_path / "rows.json"
    old.write_text("from last week")
    groups = [[step("build", "raise SystemExit(2)", vital=True)], [step("measures", "print()", writes=(old,))]]
    assert statuses(run_all(groups, 60)) == ["failed", "skipped"]
    assert not old.exists()


def test_what_no_longer_fits_is_said(monkeypatch: pytest.MonkeyPatch, step: Any) -> None:
    monkeypatch.setattr(steps, "LEAST", 0.5)
    monkeypatch.setattr(steps, "GRACE", 0.2)
    start = time.monotonic()
    outcomes = run_all([[step("slow", SLEEPS)], [step("next", "print()")], [step("last", "print()")]], 3)
    assert statuses(outcomes) == ["failed", "skipped", "skipped"]
    assert {outcome.detail for outcome in outcomes[1:]} == {"no time left"}
    assert time.monotonic() - start < 20


def test_a_step_hears_how_long_it_may_take(tmp_path: Path) -> None:
    heard = []

    def command(seconds: float) -> list[str]:
        heard.append(seconds)
        return [sys.executable, "-c", ""]

    run_all([[Step("long", command, 7, tmp_path / "a")], [Step("short", command, 1000, tmp_path / "b")]], 60)
    assert heard[0] == 7
    assert 30 < heard[1] < 60


def test_a_group_runs_side_by_side(step: Any, tmp_path: Path) -> None:
    wait = "import time; from pathlib import Path; Path({!r}).touch()\nwhile not Path({!r}).exists(): time.sleep(0.01)"
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    outcomes = run_all([[step("a", wait.format(one, two)), step("b", wait.format(two, one))]], 60)
    assert statuses(outcomes) == ["ok", "ok"]


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
def test_tests_that_tested_nothing_have_failed(code: int, last: str, expected: tuple[str, str]) -> None:
    assert gpu.judge_tests(code, f"....\nSKIPPED [9] tests/x.py: 2 passed by\n{last}\n") == expected


@pytest.mark.parametrize(
    ("code", "said", "status", "words"),
    [
        (0, "checked 48 calls: all\n========= ERROR SUMMARY: 0 errors", "ok", "ERROR SUMMARY: 0 errors; checked 48"),
        (9, "checked 48 calls: all\n========= ERROR SUMMARY: 2 errors", "failed", "ERROR SUMMARY: 2 errors"),
        (0, "========= ERROR SUMMARY: 0 errors", "failed", "ERROR SUMMARY"),
        (0, "checked 48 calls: all", "failed", "checked 48"),
        (255, "========= Error: Device not supported\n", "skipped", "does not support"),
    ],
)
def test_a_sanitizer_must_have_seen_the_script_through(code: int, said: str, status: str, words: str) -> None:
    verdict = gpu.judge_sanitizer(code, f"========= COMPUTE-SANITIZER\n{said}\n")
    assert verdict.status == status
    assert words in verdict.detail


def test_measurements_are_judged_by_what_they_wrote(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    assert gpu.judge_loss(rows, 100, 0, "nothing").status == "failed"
    ours = {"provider": "udskd", "rows": 4, "classes": 10, "dtype": "float32", "share_of_copy": 0.5, "median_us": 9.5}
    ours |= {"pass": "forward", "minimal_bytes": 401}
    cached = ours | {"minimal_bytes": 400, "share_of_copy": 3.0}
    rows.write_text(json.dumps([ours, cached, ours | {"share_of_copy": 0.75, "rows": 8}, ours | {"provider": "eager"}]))
    said = gpu.judge_loss(rows, 100, 0, "no time left for 9 x 9, float32, forward and what follows it\n")
    assert said.status == "ok"
    best = "best beyond the caches 75% of a copy: 8 x 10, float32"
    assert said.detail.startswith(f"3 cases; {best}; no time left for 9 x 9")
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
    said = "images/s: udskd 5,000, plain 2,500; end to end udskd, resident: 4,900, 98% of its step"
    assert gpu.judge_step(rows, 0, "") == ("ok", said)
    assert gpu.judge_step(rows, 1, "out of memory\n") == ("failed", "out of memory")


def test_a_failed_build_is_told_by_its_first_error() -> None:
    output = "[1/2] nvcc -c a.cu\na.cu(3): error: no such thing\nninja: build stopped\nRuntimeError: Error compiling\n"
    assert gpu.judge_build("9.0", 1, output) == ("failed", "a.cu(3): error: no such thing")
    assert gpu.judge_build("9.0", 0, output).status == "ok"


# --- the parts -------------------------------------------------------------------------------------------------------


def test_the_parts_need_no_network_and_build_for_one_architecture(tmp_path: Path) -> None:
    parts = [part for group in gpu.plan(tmp_path, "/cuda", GPU) for part in group]
    names = [part.name for part in parts]
    assert names[0] == "build"
    assert names[1] == "tests"
    assert set(gpu.TOOLS) < set(names)
    assert len(set(names)) == len(names)
    build = parts[0]
    assert build.vital
    assert build.environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
    for part in parts:
        words = part.command(100.0)
        assert not {"pip", "install"} & set(words)
        assert part.log.parent == tmp_path
    limits = [words[words.index("--limit") + 1] for words in (p.command(100.0) for p in parts) if "--limit" in words]
    assert limits == ["90", "60", "90", "40"]


def test_only_what_is_asked_for_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: Any, tmp_path: Path
) -> None:
    pretend(monkeypatch, [[step("a", "print(1)")], [step("b", "print(2)"), step("c", "print(3)")]])
    assert gpu.main(["--out", str(tmp_path / "out"), "--only", "a, c,"]) == 0
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["steps"]
    assert [x["step"] for x in found] == ["a", "c"]
    capsys.readouterr()
    assert gpu.main(["--out", str(tmp_path / "new"), "--only", "a,d"]) == 1
    assert capsys.readouterr().out == "udskd: argument --only: there is no part 'd'; there are a, b, c\n"
    assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit):
        gpu.main(["--only", ","])
    assert "argument --only: it names no part" in capsys.readouterr().err


def test_initcheck_watches_all_kernels_and_the_others_ours(tmp_path: Path) -> None:
    for tool in gpu.TOOLS:
        words = gpu.sanitizer(tmp_path, "/cuda", tool).command(60.0)
        assert ("kns=udskd" in words) == (tool != "initcheck")


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path / "new")]) == 1
    assert capsys.readouterr().out == "udskd: no GPU: PyTorch sees no CUDA device\n"
    assert not (tmp_path / "new").exists()


def pretend(monkeypatch: pytest.MonkeyPatch, groups: list[list[Step]], home: str | None = "/cuda") -> None:
    """A GPU, and other things to do on it."""
    monkeypatch.setattr(gpu, "facts", lambda: dict(GPU))
    monkeypatch.setattr(toolkit, "home", lambda: home)
    monkeypatch.setattr(toolkit, "release", lambda within: "13.0")
    monkeypatch.setattr(gpu, "plan", lambda *rest: groups)


def test_without_nvcc_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, [], home=None)
    assert gpu.main([]) == 1
    assert capsys.readouterr().out == "udskd: no nvcc: install the CUDA toolkit or set CUDA_HOME\n"


@pytest.mark.parametrize(("code", "status"), [(0, "ok"), (3, "failed")])
def test_the_table_comes_last_and_into_the_folder(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: Any,
    tmp_path: Path,
    code: int,
    status: str,
) -> None:
    out = tmp_path / "out"
    first = step("first", f"print('a | b'); raise SystemExit({code})")
    pretend(monkeypatch, [[first], [step("second", "print()", missing="not installed")]])
    assert gpu.main(["--out", str(out)]) == (1 if code else 0)
    table = (out / "summary.md").read_text()
    said = capsys.readouterr().out
    assert said.endswith("\n\n" + table)
    assert f"| first | {status} | " in table
    assert "a \\| b |" in table
    assert "| second | skipped | 0.0 | not installed |" in table
    summary = json.loads((out / "summary.json").read_text())
    assert [x["status"] for x in summary["steps"]] == [status, "skipped"]
    assert json.loads((out / "machine.json").read_text()) == summary["machine"] | {"nvcc": "13.0"}


@pytest.mark.parametrize("given", [(), ("OUT=elsewhere", "PYTHON=some-python", "ONLY=build, tests")])
def test_make_runs_it_with_the_python_of_the_machine(given: tuple[str, ...]) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("OUT", "PYTHON", "MAKEFLAGS", "MAKELEVEL")}
    run = partial(subprocess.run, cwd=toolkit.ROOT, env=environment, capture_output=True, text=True)
    said = run(["make", "-n", "gpu", *given]).stdout
    python, out = ("some-python", "elsewhere --only 'build, tests'") if given else ("python3", "build/gpu")
    assert said == f"{python} -m bench.gpu --out {out}\n"
