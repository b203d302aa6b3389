"""A run does not continue with its teacher's weights in a network of another stem."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.conftest import CLASSES
from tests.training.helpers.variants import options, run_of
from tests.training.test_train import events, on_call
from udskd.config import schema
from udskd.config.schema import Config, DataConfig
from udskd.errors import CheckpointError
from udskd.models import zoo
from udskd.models.checkpoints import WeightsInfo, save_weights
from udskd.training import train
from udskd.training.engine.task import Task
from udskd.training.tasks.students import StudentsTask
from udskd.training.tasks.teacher import StageTask


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """The same weights in a file that names the stem "small" and in a file without a stem."""
    torch.manual_seed(0)
    tensors = zoo.build("mobilenet_v2", 3, 32, "small").module.state_dict()
    info = WeightsInfo("mobilenet_v2", "small", CLASSES, 32, DataConfig.mean, DataConfig.std, 1.0)
    save_weights(tmp_path / "own.safetensors", tensors, info)
    torch.save(tensors, tmp_path / "plain.pth")
    return str(tmp_path / "own.safetensors"), str(tmp_path / "plain.pth")


def stopped(config: Config, patch: pytest.MonkeyPatch, task: type[Task], file: str) -> Config:
    """The config of a run with the teacher in `file` that failed in the second epoch of a task."""

    def fail() -> None:
        raise ZeroDivisionError

    values = {"teacher.model": "mobilenet_v2", "teacher.checkpoint": file, "data.image_size": 32, "training.epochs": 2}
    config = options(config, values)
    with patch.context() as context:
        on_call(context, task, "losses", 5, fail)
        with pytest.raises(ZeroDivisionError):
            train(config)
    return config


def with_teacher(config: Config, file: str) -> Config:
    return schema.with_values(config, {"teacher.checkpoint": file})


@pytest.mark.slow_for(cases=lambda method: method == "cud")
@pytest.mark.parametrize(("method", "task"), [("kd", StudentsTask), ("cud", StageTask), ("cud", StudentsTask)])
def test_a_run_is_not_continued_with_another_stem_of_the_same_weights(
    config: Config, files: tuple[str, str], monkeypatch: pytest.MonkeyPatch, method: str, task: type[Task]
) -> None:
    config = stopped(replace(config, method=method), monkeypatch, task, files[0])
    words = r'was started with a teacher of stem "small", but .*plain\.pth .* has stem "imagenet": put that one back'
    with pytest.raises(CheckpointError, match=words):
        train(with_teacher(config, files[1]), resume=run_of(config))
    assert train(config, resume=run_of(config))["status"] == "complete"


def test_the_stem_is_logged_and_not_among_the_metrics(
    config: Config, files: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stopped(replace(config, method="kd"), monkeypatch, StudentsTask, files[0])
    assert "stem" not in train(config, resume=run_of(config))["teacher"]
    assert [event["stem"] for event in events(run_of(config), "teacher")] == ["small"]


def test_a_run_of_an_earlier_version_without_the_stem_is_continued(
    config: Config, files: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stopped(replace(config, method="kd"), monkeypatch, StudentsTask, files[0])
    log = run_of(config) / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "stem"}) + "\n" for line in lines))
    assert train(config, resume=run_of(config))["status"] == "complete"
