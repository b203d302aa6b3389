"""The same seed gives the same bits, whoever decodes the images, and wherever they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import tiny_config
from tests.training.helpers.runs import outcome
from udskd.config import schema
from udskd.config.schema import Config
from udskd.data import pack
from udskd.training import train

OPTIONS = {"training.epochs": 2, "data.mixup": 0.2, "student_b.model": "mobilenet_v3_small"}


def result(config: Config, output: Path, **options: Any) -> Any:
    train(schema.with_values(config, {**OPTIONS, **options, "output": str(output)}))
    found = outcome(output)
    for value in (found["summary"]["dataset"], *(e["data"] for e in found["log"] if e["event"] == "start")):
        value.pop("root")  # where the images are may differ
        value.pop("val_contents")  # by the checksum that the set holds
    return found


@pytest.fixture(scope="module")
def packed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack(tree, folder, short_side=None)
    return folder


@pytest.fixture(scope="module")
def plain(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    output = tmp_path_factory.mktemp("plain") / "run"
    return result(tiny_config(tree, output), output, **{"data.workers": 0})


@pytest.mark.slow_for(cases=lambda source, workers: source == "files" and workers == 3)
@pytest.mark.parametrize(
    ("source", "loader", "workers"),
    [
        ("files", "threads", 1),
        ("files", "threads", 3),
        ("files", "processes", 1),
        ("files", "processes", 3),
        ("files", "resident", 1),
        ("pack", "threads", 0),
        ("pack", "threads", 3),
        ("pack", "processes", 3),
        ("pack", "resident", 1),
    ],
)
def test_every_loader_ends_in_the_same_bits(
    config: Config, plain: Any, packed: Path, tmp_path: Path, source: str, loader: str, workers: int
) -> None:
    options: dict[str, Any] = {"data.loader": loader, "data.workers": workers}
    if source == "pack":
        options["data.root"] = str(packed)
    assert result(config, tmp_path / "run", **options) == plain


def test_a_step_in_parts_sees_the_same_images(config: Config, plain: Any, tmp_path: Path) -> None:
    """What batch-norm makes of them differs; what the loss is made of at the first step hardly does."""
    found = result(config, tmp_path / "run", **{"training.accumulate": 2})
    one, other = (next(e for e in r["log"] if e["event"] == "teacher_epoch") for r in (found, plain))
    assert one["images"] == other["images"]
    assert one["loss"] == pytest.approx(other["loss"], rel=0.05)


def test_threads_of_pytorch_change_nothing_but_rounding(config: Config, plain: Any, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = result(config, tmp_path / "run")
    finally:
        torch.set_num_threads(before)
    losses = [[e["loss"] for e in r["log"] if e["event"] == "epoch"] for r in (found, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
