"""What a run does before the first step of the students, and what it does not do twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.training.helpers.runs import on_call
from tests.training.helpers.variants import options, run_of
from udskd.config.schema import Config
from udskd.models import tiny
from udskd.training import train
from udskd.training.evaluation.evaluate import Evaluator
from udskd.training.networks.inference import FrozenNetwork
from udskd.training.tasks.students import StudentsTask


def record(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, note: Callable[..., object]) -> list[Any]:
    """What note(arguments of the call) returns, for each call of owner.name from here on."""
    original, noted = getattr(owner, name), []

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        noted.append(note(*args, **kwargs))
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapper)
    return noted


def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The networks of each evaluation."""
    return record(monkeypatch, Evaluator, "evaluate", lambda _, networks: sorted(networks))


def test_every_network_is_built_once(config: Config, teacher_weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = record(monkeypatch, tiny, "build", lambda name, classes: name)
    frozen = record(monkeypatch, FrozenNetwork, "__init__", lambda *_, **__: "frozen")
    train(options(config, {"training.epochs": 1, "teacher.checkpoint": teacher_weights}))
    assert sorted(built) == ["tiny_plain_2", "tiny_plain_4", "tiny_separable_2"]
    assert len(frozen) == 1


def test_a_teacher_is_evaluated_once_after_its_last_epoch(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = evaluated(monkeypatch)
    train(options(config, {"training.epochs": 1, "teacher.epochs": 2}))
    assert networks == [["teacher"], ["teacher"], ["student_a", "student_b"]]


def test_a_shaped_teacher_is_evaluated_once_after_its_last_epoch(
    config: Config, teacher_weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = evaluated(monkeypatch)
    train(options(config, {"method": "cud", "training.epochs": 1, "teacher.checkpoint": teacher_weights}))
    assert networks == [["teacher_shaped"], ["teacher_shaped"], ["student_a", "student_b"]]


@pytest.mark.parametrize("given", [True, False])
def test_a_continued_run_does_not_evaluate_the_teacher_again(
    config: Config, teacher_weights: str, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    values = {"teacher.checkpoint": teacher_weights} if given else {}
    config = options(config, {"training.epochs": 1, **values})
    with monkeypatch.context() as patch:
        on_call(patch, StudentsTask, "losses", 2, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config)
    networks = evaluated(monkeypatch)
    train(config, resume=run_of(config))
    assert networks == [["student_a", "student_b"]]
