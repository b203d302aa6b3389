"""The further training of the teacher, which some methods need before that of the students."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.conftest import tiny_config
from tests.training.helpers.runs import events, on_call, outcome
from tests.training.helpers.variants import options, run_of
from udskd import methods
from udskd.config import schema, toml
from udskd.config.schema import Config
from udskd.errors import CheckpointError, Interrupted
from udskd.models.checkpoints import load_weights
from udskd.training import evaluate_run, train
from udskd.training.networks.optim import Schedule
from udskd.training.tasks.students import StudentsTask


@pytest.fixture(scope="module")
def shaped(tree: Path, teacher_weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("shaped") / "run"
    train(options(tiny_config(tree, run), {"method": "cud", "teacher.checkpoint": teacher_weights}))
    return run


def test_the_stage_trains_the_teacher_further_and_keeps_the_one_it_began_with(
    shaped: Path, teacher_weights: str
) -> None:
    before, after = load_weights(Path(teacher_weights))[0], load_weights(shaped / "teacher_shaped.safetensors")[0]
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert [e["epoch"] for e in events(shaped, "teacher_stage_epoch")] == [1, 2]
    assert events(shaped, "teacher_stage_epoch")[0]["components"].keys() == {"focal", "bonus"}


def test_a_teacher_trained_in_the_run_is_shaped_as_one_that_was_given(config: Config, tmp_path: Path) -> None:
    """Here the teacher is the average of the weights, whose parameters have no gradients."""
    config = options(config, {"method": "cud", "training.epochs": 1})
    train(config)
    given = schema.with_values(config, {"teacher.checkpoint": str(run_of(config) / "teacher.safetensors")})
    train(replace(given, output=str(tmp_path / "given")))
    own, after = (load_weights(f / "teacher_shaped.safetensors")[0] for f in (run_of(config), tmp_path / "given"))
    assert all(torch.equal(own[name], after[name]) for name in own)
    before = load_weights(run_of(config) / "teacher.safetensors")[0]
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("weight"))


def test_a_shaped_teacher_serves_another_run_without_its_stage(shaped: Path, config: Config) -> None:
    values = {"teacher.checkpoint": str(shaped / "teacher_shaped.safetensors"), "teacher.stage": "none"}
    summary = train(options(config, {"method": "cud", **values}))
    assert not (run_of(config) / "teacher_shaped.safetensors").exists()
    assert summary["teacher"]["nll"] == json.loads((shaped / "summary.json").read_text())["teacher"]["nll"]


def test_evaluating_a_run_lists_both_teachers(shaped: Path) -> None:
    results = evaluate_run(shaped)
    assert results["teacher_shaped"]["nll"] == json.loads((shaped / "summary.json").read_text())["teacher"]["nll"]


def test_the_summary_names_the_stage_of_the_teacher(config: Config, teacher_weights: str) -> None:
    values = {"method": "kd", "teacher.stage": "cross_entropy", "teacher.checkpoint": teacher_weights}
    assert train(options(config, values))["options"]["teacher.stage"] == "cross_entropy"


def test_a_run_stopped_in_its_stage_continues_there(
    config: Config, teacher_weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from udskd.training.tasks.teacher import StageTask

    config = options(config, {"method": "cud", "teacher.checkpoint": teacher_weights})
    train(replace(config, output=str(tmp_path / "straight")))
    with monkeypatch.context() as patch:
        on_call(patch, StageTask, "losses", 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted, match="1 of 2 epochs of the teacher's stage and 2 of 3 steps"):
            train(config)
    train(config, resume=run_of(config))
    assert outcome(run_of(config)) == outcome(tmp_path / "straight")


def test_a_stage_is_not_continued_from_another_teacher(config: Config, teacher_weights: str, shaped: Path) -> None:
    config = options(config, {"method": "cud", "teacher.checkpoint": teacher_weights, "training.epochs": 1})
    train(config)
    (run_of(config) / "summary.json").unlink()
    other = schema.with_values(config, {"teacher.checkpoint": str(shaped / "teacher_shaped.safetensors")})
    with pytest.raises(CheckpointError, match=r"teacher_shaped\.safetensors was trained from another teacher"):
        train(other, resume=run_of(config))


def test_a_stage_begun_anew_with_another_teacher_can_be_continued(
    config: Config, teacher_weights: str, shaped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that stopped before the stage saved anything may continue with another teacher."""
    from udskd.training.tasks.teacher import StageTask

    def fail() -> None:
        raise ZeroDivisionError

    config = options(config, {"method": "cud", "teacher.checkpoint": teacher_weights, "training.epochs": 1})
    other = schema.with_values(config, {"teacher.checkpoint": str(shaped / "teacher_shaped.safetensors")})
    for first, task in ((config, StageTask), (other, StudentsTask)):
        with monkeypatch.context() as patch:
            on_call(patch, task, "losses", 1, fail)
            with pytest.raises(ZeroDivisionError):
                train(first, resume=run_of(config) if run_of(config).exists() else None)
    assert train(other, resume=run_of(config))["status"] == "complete"


def test_the_stage_has_a_learning_rate_of_its_own(shaped: Path) -> None:
    config = toml.load(shaped / "config.toml")
    schedule = Schedule.from_epochs(config.cud.stage_lr, epochs=2, warmup_epochs=1.0, steps_per_epoch=3)
    rates = [event["lr_teacher_shaped"] for event in events(shaped, "teacher_stage_epoch")]
    assert rates == [schedule.lr(2), schedule.lr(5)]
    assert config.cud.stage_lr != config.training.lr


def test_the_control_is_the_cross_entropy_that_the_teacher_had() -> None:
    values = {"method": "kd", "teacher.stage": "cross_entropy", "teacher.label_smoothing": 0.1}
    stage = methods.teacher_stage(schema.with_values(Config(), values))
    assert stage is not None
    logits, target = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    expected = torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.1)
    torch.testing.assert_close(stage.loss(logits, target)["loss"], expected)
