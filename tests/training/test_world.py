"""What processes decide together, without the others: the wires are replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.training.conftest import write_tree
from udskd import recipe
from udskd.config import Config
from udskd.errors import DataError
from udskd.training import train
from udskd.training.meter import Meter
from udskd.training.signals import StopRequest
from udskd.training.world import Vote, World


class Work:
    def wait(self) -> None: ...


def test_a_wish_to_save_that_is_being_granted_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer comes a step late; until then the save is still due."""
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: Work())
    vote = Vote(World(ranks=2, control=object()), StopRequest())
    assert [vote.poll(save) for save in (False, True, True, False, False)] == [False, False, True, False, False]


def test_unreadable_images_of_all_processes_count_together(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_tree(tmp_path / "tree")
    (root / "train" / "red" / "0.png").write_bytes(b"not an image")

    def gather(self: World, value: Any) -> list[Any]:
        theirs = (Meter().state(), {"another": "damaged", "a third": "damaged"})
        return [value, theirs] if isinstance(value, tuple) else [value]

    monkeypatch.setattr(World, "gather", gather)
    options = {"method": "ce", "data.root": str(root), "data.max_unreadable": 0.07}  # 2 of the 36 images, not 3
    with pytest.raises(DataError, match="3 of 36 training images"):
        train(recipe.with_values(config, options))
