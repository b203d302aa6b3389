"""Combinations of options that cannot be are refused in one sentence, before a run begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import write_tree
from tests.training.helpers.variants import run_of
from udskd.config import schema
from udskd.config.schema import Config
from udskd.errors import CheckpointError, ConfigError
from udskd.training import train

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a shape without a teacher": (
        {"method": "dml", "target.shape": "wrong_mass_clip"},
        'target.shape is "wrong_mass_clip", but method "dml" has no teacher',
    ),
    "a weight without a teacher": (
        {"method": "ce", "target.weight": "margin"},
        'target.weight is "margin", but method "ce" has no teacher',
    ),
    "a stage without a teacher": (
        {"method": "ce", "teacher.stage": "uncertainty_shaping"},
        'teacher.stage is "uncertainty_shaping", but method "ce" has no teacher',
    ),
    "answers of the teacher after a shape": (
        {"target.shape": "wrong_mass_clip+average", "variance.source": "views"},
        r'"average" takes the teacher\'s own responses \(views\) and ignores a shape before it: put it first',
    ),
    "the same shape twice": ({"target.shape": "context+context"}, "target.shape must name different shapes"),
    "features and several answers": (
        {"method": "sdkd", "sdkd.stages": 2, "target.shape": "average", "variance.source": "views"},
        "a run can have only one of them",
    ),
    "an unknown shape": (
        {"target.shape": "wrong_mas_clip"},
        r'unknown target.shape "wrong_mas_clip" \(did you mean "wrong_mass_clip"\?\); known are',
    ),
    "one answer": ({"method": "variance", "variance.responses": 1}, "variance.responses must be at least 2"),
    "alpha's bounds": (
        {"method": "akd", "akd.alpha_min": 0.9, "akd.alpha_max": 0.1},
        "akd.alpha_min",
    ),
    "a layer that is not there": (
        {"method": "sdkd", "sdkd.teacher_layers": "layer2,layer3"},
        'sdkd.teacher_layers.*"layer2"',
    ),
    "too many stages": ({"method": "sdkd", "sdkd.stages": 9}, "sdkd.stages"),
    "mixup where labels are needed": ({"method": "dkd", "data.mixup": 0.2}, "data.mixup"),
    "a cache of logits for features": (
        {"method": "sdkd", "teacher.cache": "cache"},
        "teacher.cache holds logits only, but this method needs the teacher's features",
    ),
    "a cache of logits for views": (
        {"method": "variance", "variance.source": "views", "teacher.cache": "cache"},
        "teacher.cache holds logits only, but this method needs the teacher's views",
    ),
    "a cache of the unshaped teacher": ({"method": "cud", "teacher.cache": "cache"}, "this method trains it further"),
    "dropout before no linear layer": (
        {"method": "variance", "variance.source": "dropout", "teacher.model": "squeezenet1_1", "data.image_size": 32},
        "last layer is not linear",
    ),
    "eta": ({"method": "cud", "cud.eta": 1.5}, "cud.eta must be above 0 and below 1"),
    "beta": ({"method": "dkd", "dkd.beta": -1.0}, "dkd.beta must be a finite number, 0 or more"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_combination_that_cannot_be_is_one_sentence_before_anything_is_written(case: str, config: Config) -> None:
    values, words = BAD[case]
    with pytest.raises(ConfigError, match=words) as error:
        train(schema.with_values(config, values))
    assert "\n" not in str(error.value)
    assert not run_of(config).exists()


def test_another_number_of_classes_than_the_teachers_is_refused(
    config: Config, teacher_weights: str, tmp_path: Path
) -> None:
    other = write_tree(tmp_path / "other", classes=("blue", "green", "red", "white"))
    with pytest.raises(CheckpointError, match="classes"):
        train(schema.with_values(config, {"data.root": str(other), "teacher.checkpoint": teacher_weights}))
