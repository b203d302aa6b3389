"""What processes decide together, without the others: the wires are replaced."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed import HashStore

from tests.training.conftest import write_tree
from udskd.config import schema
from udskd.config.schema import Config
from udskd.errors import ConfigError, DataError, PeerFailed
from udskd.training import train
from udskd.training.engine.meter import Meter
from udskd.training.runtime.distributed import StopConsensus, World
from udskd.training.runtime.signals import StopRequest


class Work:
    def wait(self) -> None: ...


def test_a_wish_to_save_that_is_being_granted_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer comes a step late; until then the save is still due."""
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: Work())
    consensus = StopConsensus(World(ranks=2, control=object()), StopRequest())
    assert [consensus.poll(save) for save in (False, True, True, False, False)] == [False, False, True, False, False]


def test_unreadable_images_of_all_processes_count_together(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_tree(tmp_path / "tree")
    (root / "train" / "red" / "0.png").write_bytes(b"not an image")

    def gather(self: World, value: Any) -> list[Any]:
        theirs = (Meter().state(), {name: (f"/set/{name}", "damaged") for name in ("another", "a third")})
        return [value, theirs] if isinstance(value, tuple) else [value]

    monkeypatch.setattr(World, "gather", gather)
    options = {"method": "ce", "data.root": str(root), "data.max_unreadable": 0.07}  # 2 of the 36 images, not 3
    with pytest.raises(DataError, match="3 of 36 training images"):
        train(schema.with_values(config, options))


def told_by(rank: int, store: HashStore) -> tuple[Exception, float]:
    """What a process makes of a mistake that all find, and how long it takes."""
    stop, begin = StopRequest(), time.monotonic()
    stop.requested = rank > 0  # the others are told to end, as torchrun does, and do not wait for that
    error = World(rank, 2, control=object(), store=store).told(ConfigError("a mistake"), stop)
    return error, time.monotonic() - begin


def test_who_keeps_the_store_stays_until_the_others_have_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    store, others = HashStore(), []
    thread = threading.Timer(0.5, lambda: others.append(told_by(1, store)))
    thread.start()
    error, took = told_by(0, store)
    thread.join()
    assert (str(error), type(others[0][0])) == ("a mistake", PeerFailed)
    assert 0.4 < took < 2.5


def test_under_torchrun_nobody_need_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    error, took = told_by(0, HashStore())
    assert str(error) == "a mistake"
    assert took < 0.4
