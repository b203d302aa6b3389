"""Runs that end too early, in every known way, and the results of continuing them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.conftest import tiny_config
from tests.training.helpers.kills import compare, outcome
from udskd.cli import main as cli
from udskd.config import schema, toml
from udskd.config.schema import Config
from udskd.errors import ConfigError
from udskd.training import train
from udskd.training.storage.checkpoint import load_state
from udskd.training.storage.run_folder import RunFolder
from udskd.training.tasks.students import StudentsTask

ROOT = Path(__file__).parents[2]


TIMES = [("kill", 2), ("stop", 2), ("full", 2)]
MORE = [pytest.param(*some, marks=pytest.mark.slow) for some in (("kill", 20), ("stop", 12), ("full", 12))]


@pytest.mark.parametrize(("kind", "times"), TIMES + MORE)
def test_runs_disturbed_at_random_moments_end_as_if_they_had_not_been(kind: str, times: int) -> None:
    """SIGKILL, also in the middle of a write; SIGINT and SIGTERM; a disk that takes no more."""
    command = [sys.executable, "-m", "tests.training.helpers.kills", "--kind", kind, "--times", str(times)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{times} times in" in done.stdout


# --- damaged files -------------------------------------------------------------------------------------------------


RUN = Path("run")  # in a folder of its own: the name of a run is in its log
TEACHER = {"top1": 50.0, "nll": 1.0, "fingerprint": "0"}


def often(tree: Path) -> Config:
    return schema.with_values(tiny_config(tree, RUN), {"method": "ce", "training.save_every": 1e-9})


@pytest.fixture(scope="module")
def straight(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished, undisturbed run, saved after every step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place := tmp_path_factory.mktemp("straight"))
        train(often(tree))
    return place / RUN


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def crashed(tree: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same run, which ended in its sixth step (the last of the second epoch)."""
    crash_at(6, often(tree), monkeypatch)
    return RUN


def crash_at(step: int, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, calls = StudentsTask.losses, [0]

    def crash(self: StudentsTask, *inputs: object) -> object:
        calls[0] += 1
        if calls[0] == step:
            raise ZeroDivisionError
        return losses(self, *inputs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(StudentsTask, "losses", crash)
        with pytest.raises(ZeroDivisionError):
            train(config)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def alter(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, empty, alter])
def test_a_damaged_state_is_refused_and_the_one_before_it_offered(
    crashed: Path, straight: Path, capfd: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    state = crashed / "checkpoints" / "students.pt"
    damage(state)
    assert cli.main(["train", "--resume", str(crashed)]) == 2
    command = f"udskd train --resume {crashed} --previous"
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"udskd: error: {state} is truncated or altered")
    assert lines[0].endswith(f"the one before it, after 1 epochs and 1 steps, is intact: {command}")
    assert cli.main(command.split()[1:]) == 0
    assert compare(outcome(crashed), outcome(straight)) == []


def test_a_state_that_is_gone_is_replaced_by_the_one_before_it(crashed: Path, straight: Path) -> None:
    (crashed / "checkpoints" / "students.pt").unlink()
    assert cli.main(["train", "--resume", str(crashed)]) == 0
    assert compare(outcome(crashed), outcome(straight)) == []


def test_going_back_by_choice_ends_the_same(crashed: Path, straight: Path) -> None:
    assert cli.main(["train", "--resume", str(crashed), "--previous"]) == 0
    assert compare(outcome(crashed), outcome(straight)) == []


@pytest.mark.parametrize("second", [alter, Path.unlink])
def test_without_an_intact_state_a_run_is_told_to_be_lost(
    crashed: Path, capfd: pytest.CaptureFixture[str], second: Callable[[Path], None]
) -> None:
    truncate(crashed / "checkpoints" / "students.pt")
    second(crashed / "checkpoints" / "students.previous.pt")
    assert cli.main(["train", "--resume", str(crashed)]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("there is no intact one before it, so this run cannot be continued")


def test_one_cannot_go_back_twice(crashed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (crashed / "checkpoints" / "students.previous.pt").unlink()
    last = (crashed / "checkpoints" / "students.pt").read_bytes()
    assert cli.main(["train", "--resume", str(crashed), "--previous"]) == 2
    assert "has no state before the last one: leave --previous out" in capfd.readouterr().err
    assert (crashed / "checkpoints" / "students.pt").read_bytes() == last


def test_a_damaged_state_before_the_last_is_not_put_in_its_place(
    crashed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alter(crashed / "checkpoints" / "students.previous.pt")
    assert cli.main(["train", "--resume", str(crashed), "--previous"]) == 2
    assert "students.previous.pt is truncated or altered" in capfd.readouterr().err
    assert load_state(crashed / "checkpoints" / "students.pt")["step"] == 2


# --- the folder and the log ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "left", [[], ["environment.json.tmp"], ["environment.json"], ["environment.json", "config.toml.tmp"]]
)
def test_a_folder_that_was_being_made_is_free(tree: Path, here: Path, straight: Path, left: list[str]) -> None:
    (RUN / "checkpoints").mkdir(parents=True)
    for name in left:
        (RUN / name).write_text("{")
    train(often(tree))
    assert compare(outcome(RUN), outcome(straight)) == []


def test_a_run_that_another_process_trains_is_left_alone(
    crashed: Path, straight: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX); print('', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(crashed / "environment.json")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout
        other.stdout.readline()
        assert cli.main(["train", "--resume", str(crashed)]) == 2
        sentence = "udskd: error: run is being trained by another process: stop that one first\n"
        assert capfd.readouterr().err == sentence
    finally:
        other.kill()
        other.communicate()
    assert cli.main(["train", "--resume", str(crashed)]) == 0
    assert compare(outcome(crashed), outcome(straight)) == []


def test_a_folder_with_a_state_but_no_options_is_not_free(tree: Path, here: Path) -> None:
    (RUN / "checkpoints").mkdir(parents=True)
    (RUN / "checkpoints" / "students.pt").write_text("precious")
    with pytest.raises(ConfigError, match="not an empty folder"):
        train(often(tree))


def test_a_torn_line_of_the_log_swallows_no_other(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"event": "start"}\n{"event": "teach')
    folder = RunFolder(tmp_path)
    folder.log("teacher", **TEACHER)
    folder.log("epoch", epoch=1)
    assert [len(folder.events(name)) for name in ("start", "teacher", "epoch")] == [1, 1, 1]


def test_going_back_forgets_what_was_logged_later(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for event, values in (("teacher", TEACHER), ("epoch", {"epoch": 1}), ("epoch", {"epoch": 2}), ("end", {})):
        folder.log(event, **values)
    assert folder.log_unreadable("red/a.png", "/set/train/red/a.png", "torn")
    folder.truncate_log("epoch", 1)
    assert [e["event"] for e in folder._events()] == ["teacher", "epoch"]
    assert folder.log_unreadable("red/a.png", "/set/train/red/a.png", "torn")  # is news again
    assert not folder.log_unreadable("red/a.png", "/set/train/red/a.png", "torn")


def test_a_disk_that_is_full_from_the_beginning_leaves_no_run(
    tree: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Path("recipe.toml").write_text(toml.dump(often(tree)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", full)
        assert cli.main(["train", "recipe.toml"]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["udskd: error: cannot make the folder run/checkpoints: No space left on device"]
    assert cli.main(["train", "recipe.toml"]) == 0
