"""A few seconds of each kind, and that the fuzz command finds what it is for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import __main__ as fuzz
from tests.fuzz import case, children, commands, files, workspace
from tests.fuzz.case import Case

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="cases run in forked children")


def wait(_: Case) -> str | None:
    time.sleep(60)
    return None


def take_memory(_: Case) -> str | None:
    return str(bytearray(2 * children.MEMORY)[:0])


def fail(_: Case) -> str | None:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("run", "finding"),
    [
        (lambda _: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (lambda _: os._exit(3), "the process exits with 3"),
        (wait, "no end after 0.5 seconds"),
        (take_memory, "MemoryError"),
        (fail, "KeyError: 'x'"),
        (lambda _: "wrong", "wrong"),
    ],
    ids=["crash", "exit", "hang", "memory", "exception", "finding"],
)
def test_what_ends_a_child_is_the_finding_of_its_case_alone(run: Callable[[Case], str | None], finding: str) -> None:
    first, second, third = children.findings(
        [{}, {"bad": 1}, {}], lambda one: run(one) if "bad" in one else None, seconds=0.5
    )
    assert second is not None
    assert second.strip().endswith(finding)
    assert first is None
    assert third is None


class Sum:
    """Numbers that must not add up to 10 or more."""

    def draw(self, random: Random) -> Case:
        return {"numbers": [random.randrange(9) for _ in range(9)]}

    def findings(self, cases: list[Case]) -> list[str | None]:
        return ["too much" if sum(one["numbers"]) >= 10 else None for one in cases]

    def smaller(self, one: Case) -> Iterable[Case]:
        return [{"numbers": one["numbers"][:k] + one["numbers"][k + 1 :]} for k in range(len(one["numbers"]))]


def test_a_finding_is_shrunk_written_down_and_replayed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(fuzz.KINDS, "raw", Sum())
    assert fuzz.main(["--kind", "raw", "--seed", "5", "--minutes", "0", "--output", str(tmp_path)]) == 1
    written = sorted(tmp_path.iterdir())
    assert written
    assert "seed 5" in capsys.readouterr().out
    for file in written:
        numbers = case.read(file)[1]["numbers"]
        assert sum(numbers) >= 10
        assert all(sum(numbers) - x < 10 for x in numbers)
        assert fuzz.main(["--replay", str(file)]) == 1
    monkeypatch.setattr(Sum, "findings", lambda self, cases: [None] * len(cases))
    assert fuzz.main(["--replay", str(written[0])]) == 0


@pytest.mark.parametrize("name", fuzz.KINDS)
def test_cases_are_repeated_by_their_seed(name: str) -> None:
    kind = fuzz.KINDS[name]
    assert [summary(kind.draw(Random(k))) for k in range(20)] == [summary(kind.draw(Random(k))) for k in range(20)]


def summary(one: Case) -> Case:
    """A case without a damaged content: files of weights differ from one torch.save to the next."""
    return {key: summary(x) if isinstance(x, dict) else x for key, x in one.items() if key != "content"}


@pytest.mark.parametrize(("name", "count"), [("operator", 40), ("raw", 4), ("commands", 12), ("files", 150)])
def test_a_short_hunt_finds_nothing(name: str, count: int) -> None:
    kind = fuzz.KINDS[name]
    cases = [kind.draw(Random(f"suite {seed}")) for seed in range(count)]
    found = {str(one)[:500]: finding for one, finding in zip(cases, kind.findings(cases), strict=True) if finding}
    assert not found


@pytest.mark.parametrize("name", files.FORMS)
def test_an_intact_file_is_read(name: str) -> None:
    form = files.FORMS[name]
    assert files.plain(form.read(workspace.template() / form.file)) is not None


@pytest.mark.parametrize(
    "argv", [["train", "recipe.toml"], ["train", "--resume", "begun"], ["eval", "run"]], ids=" ".join
)
def test_a_good_command_succeeds(argv: list[str]) -> None:
    kind = commands.Commands()
    assert kind.findings([{"argv": argv}]) == [None]
