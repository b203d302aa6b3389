"""What one process decides about the others, with the communication replaced."""

from __future__ import annotations

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
from udskd.training.runtime import distributed
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


@pytest.fixture
def under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(distributed, "GRACE", 0.0)


def test_the_first_rank_reports_a_mistake_that_all_find(under_torchrun: None) -> None:
    store = HashStore()
    worlds = [World(rank, 2, control=object(), store=store) for rank in (1, 0)]
    errors = [world.report_once(ConfigError("a mistake"), StopRequest()) for world in worlds]
    assert [type(error) for error in errors] == [ConfigError, PeerFailed]


def test_without_torchruns_store_each_rank_reports_its_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    error = ConfigError("a mistake")
    assert World(1, 2, control=object(), store=None).report_once(error, StopRequest()) is error


@pytest.mark.parametrize("signalled", [True, False])
def test_a_broken_collective_is_reported_only_if_torchrun_ends_nobody(under_torchrun: None, signalled: bool) -> None:
    stop = StopRequest()
    stop.requested = signalled
    broken = RuntimeError("Connection closed by peer\nException raised from ...")
    error = World(0, 2, control=object()).report_once(broken, stop)
    assert isinstance(error, PeerFailed)
    assert str(error) == ("" if signalled else "another process of the run has ended (Connection closed by peer)")
