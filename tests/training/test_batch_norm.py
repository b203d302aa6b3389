"""Batches of a single image, for which batch-norm of 1 x 1 pixels has a single value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.conftest import write_tree
from udskd.config import schema
from udskd.config.schema import Config
from udskd.errors import ConfigError
from udskd.training import train

SHUFFLENET = {"method": "ce", "training.epochs": 1, "student_a.model": "resnet18", "student_a.stem": "imagenet"}
"""At 8 pixels, the last batch-norm of this student sees 1 x 1 pixels."""


@pytest.mark.parametrize("sizes", [{"training.batch_size": 1}, {"training.batch_size": 4, "training.accumulate": 4}])
def test_a_batch_of_one_image_is_refused_before_anything_is_written(
    config: Config, tmp_path: Path, sizes: dict[str, int]
) -> None:
    with pytest.raises(
        ConfigError, match=r"a batch would hold 1 image .* batch-norm in student_a \(resnet18\) needs two"
    ):
        train(schema.with_values(config, {**SHUFFLENET, **sizes}))
    assert not (tmp_path / "run").exists()


def test_a_batch_of_one_image_is_taken_where_batch_norm_sees_more_pixels(config: Config) -> None:
    summary = train(schema.with_values(config, {"method": "ce", "training.epochs": 1, "training.batch_size": 1}))
    assert summary["status"] == "complete"


def test_a_batch_with_one_readable_image_is_trained_on(config: Config, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", train=4)
    for name in ("blue/0", "blue/1", "green/0", "green/1", "red/0"):
        (root / "train" / f"{name}.png").write_bytes(b"not an image")
    data = replace(config.data, root=str(root), max_unreadable=1.0)
    options = {**SHUFFLENET, "training.batch_size": 2, "training.epochs": 2}
    assert train(schema.with_values(replace(config, data=data), options))["unreadable"] == 5
