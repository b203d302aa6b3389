"""The benchmark of the methods' speed, the ladder and its table."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import ladder, ladder_table, methods
from bench.commands import ROOT
from tests.results.test_table import write_run
from tests.training.conftest import write_tree
from udskd import methods as known


def test_the_step_of_every_method_asked_for_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = str(Path(known.__file__).parents[1] / "demo" / "demo.toml")
    few = ["--rounds", "1", "--methods", "kd", "akd", "--json", str(tmp_path / "speed.json")]
    assert methods.main([demo, *few, "--training.batch_size", "16"]) == 0
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["kd", "akd"]
    assert all(row["images_per_s"] == pytest.approx(16e6 / row["median_us"], rel=0.01) for row in rows)
    assert "| kd " in capsys.readouterr().out


def test_the_table_of_a_ladder_has_both_students_and_the_speed_in_one_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / f"{m}{s}", method=m, seed=s, top1=60.0 + 2 * s) for m in ("kd", "akd") for s in (0, 1)]
    speed = tmp_path / "speed.json"
    speed.write_text(json.dumps({"rows": [{"method": "kd", "images_per_s": 41.6}]}))
    assert ladder_table.main([*map(str, runs), "--speed", str(speed)]) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[4:]]
    cells = ["61.0 ± 1.4", "1.25 ± 0.00", "0.050 ± 0.000", "56.0 ± 1.4", "1.25 ± 0.00", "0.050 ± 0.000"]
    assert lines == [["`kd`", *cells, "42"], ["`akd`", *cells, ""]]


def test_the_ladder_has_every_method() -> None:
    assert {options[1] for options in ladder.RUNGS.values()} == set(known.names())


@pytest.mark.parametrize(("cached", "name"), [(True, "kd"), (True, "cud"), (True, "akd"), (False, "akd")])
def test_the_ladder_gives_cached_logits_to_methods_that_need_logits_alone(
    cached: bool, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(ladder.Ladder, "_udskd", lambda self, command, folder: commands.append(list(command)))
    ladder.Ladder("recipe.toml", tmp_path, [], 1, cached).run(name, 0)
    assert ("--teacher.cache" in commands[0]) == (cached and name == "akd")
    assert ("--teacher.checkpoint" in commands[0]) == (name != "kd")


def test_a_ladder_of_some_methods_always_has_the_first_rung(tmp_path: Path) -> None:
    assert ladder.some_rungs("udskd, ce") == ["ce", "kd", "udskd"]


def test_an_unknown_rung_is_named_beside_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ladder.main(["recipe.toml", "--rungs", "ce,kdd", "--output", "out"])
    assert "unknown rung 'kdd'; known are ce, kd, dml, udskd-no-uncertainty" in capsys.readouterr().err


@pytest.mark.parametrize("root", [["--data.root", "/home/me/images"], ["--data.root=/home/me/images"]])
def test_the_command_on_record_has_every_option_but_no_path(root: list[str], tmp_path: Path) -> None:
    options = argparse.Namespace(recipe="r.toml", rungs=["kd"], seeds=2, jobs=1, cache=True)
    text = shlex.split(ladder.command_of(options, [*root, "--training.epochs", "9"]))
    assert not [word for word in text if "home" in word]
    rest = "--training.epochs 9 --rungs kd --seeds 2 --jobs 1 --cache --output DIR"
    assert text[-11:] == rest.split()
    assert "DIR" in text[4:6] or "--data.root=DIR" in text


def small_ladder(folder: Path, epochs: int) -> list[str]:
    """A command whose runs take seconds. As many jobs as cores leave one thread for each run."""
    demo = str(Path(known.__file__).parents[1] / "demo" / "demo.toml")
    images = ["--data.root", str(write_tree(folder / "tree")), "--data.image_size", "16"]
    short = ["--training.epochs", str(epochs), "--teacher.epochs", "1", "--training.batch_size", "12"]
    one = ["--rungs", "kd", "--seeds", "1", "--jobs", str(os.cpu_count())]
    return [demo, *one, "--output", str(folder / "out"), *images, *short]


def test_a_ladder_without_time_begins_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ladder.main([*small_ladder(tmp_path, 1), "--limit", "0"]) == 1
    assert "0 of 1 runs are complete; the same command continues" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_ladder_that_is_stopped_continues_in_the_middle_of_its_run(tmp_path: Path, number: signal.Signals) -> None:
    command, log = small_ladder(tmp_path, 60), tmp_path / "out" / "kd-seed0" / "log.jsonl"
    words = [sys.executable, "-m", "bench.ladder", *command]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    while process.poll() is None and not (log.exists() and '"epoch"' in log.read_text()):
        time.sleep(0.02)
    os.killpg(process.pid, number)  # as a terminal, a batch system or `timeout` does it
    assert "stopped: 0 of 1 runs are complete" in process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert not (log.parent / "summary.json").exists()
    assert ladder.main(command) == 0
    epochs = [event["epoch"] for event in map(json.loads, log.read_text().splitlines()) if event["event"] == "epoch"]
    assert epochs == list(range(1, 61))
    text = Path(f"{log.parent}.log").read_text()
    assert "stopping after this step" in text
    assert "done: " in text
    assert [run["run"] for run in json.loads((tmp_path / "out" / "ladder.json").read_text())["runs"]] == ["kd-seed0"]


def test_a_command_that_runs_out_of_time_is_terminated_and_awaited(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time, pathlib; p = pathlib.Path(sys.argv[1]);"
        "signal.signal(signal.SIGTERM, lambda *_: (p.write_text('saved'), sys.exit()));"
        "p.write_text('ready'); time.sleep(60)"
    )
    note = tmp_path / "note"
    process = subprocess.Popen([sys.executable, "-c", code, str(note)])
    while not note.exists() or note.read_text() != "ready":
        time.sleep(0.01)
    with pytest.raises(ladder.OutOfTime):
        ladder.wait(process, ladder.Deadline(time.monotonic() + 0.1))
    assert note.read_text() == "saved"


def test_a_run_receives_no_signal_but_the_ladders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal to all processes of a terminal or batch job would be its first, and the ladder's its second."""
    python, run = tmp_path / "python", tmp_path / "out" / "run"
    python.write_text(f"#!{sys.executable}\nimport os\nprint(os.getsid(0))\n")
    python.chmod(0o755)
    monkeypatch.setattr(ladder, "sys", SimpleNamespace(executable=str(python)))
    ladder.Ladder("recipe.toml", run.parent, [], 1, False)._udskd([], run)
    assert int(Path(f"{run}.log").read_text()) != os.getsid(0)


def test_a_run_that_fails_while_it_stops_has_failed() -> None:
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); "
    code += "print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert ladder.wait(process, ladder.Deadline(0.0)) == 7
    process.stdout.close()
