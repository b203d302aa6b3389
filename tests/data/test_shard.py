"""shard: the shards of a step together hold the images of the step."""

from __future__ import annotations

import pytest
import torch

from tests.data.helpers.images import MemorySet
from tests.data.helpers.loaders import CONFIG, MIXED, assert_equal
from udskd.config.schema import DataConfig
from udskd.data import (
    EvalLoader,
    Shard,
    TrainLoader,
    check_readable,
)
from udskd.errors import ConfigError, DataError


@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["plain", "mixup"])
@pytest.mark.parametrize(("ranks", "parts"), [(1, 4), (4, 1), (2, 2)])
def test_the_shards_of_a_step_are_the_step(config: DataConfig, ranks: int, parts: int) -> None:
    whole = list(TrainLoader(MemorySet(50), config, seed=3, batch_size=16).epoch(1, 1))
    shards = [Shard(rank, ranks, parts) for rank in range(ranks)]
    pieces = [list(TrainLoader(MemorySet(50), config, seed=3, batch_size=16, shard=s).epoch(1, 1)) for s in shards]
    assert [[(b.step, b.part) for b in piece] for piece in pieces] == [
        [(step, part) for step in (1, 2) for part in range(parts)]
    ] * ranks
    for number, step in enumerate(whole):
        parts_of_step = [pieces[rank][number * parts + part] for part in range(parts) for rank in range(ranks)]
        for key in ("images", "labels", "flips"):
            rows = torch.cat([getattr(b, key)[: len(b)] for b in parts_of_step])
            assert torch.equal(rows, getattr(step, key)[: len(step)]), key
        assert torch.equal(torch.cat([b.indices for b in parts_of_step]), step.indices)
        if step.mix is not None:
            assert torch.equal(torch.cat([b.mix for b in parts_of_step]), step.mix)
            partners = torch.cat([b.images[-1:] for b in parts_of_step])
            assert torch.equal(partners, step.images[4::4])


def test_a_set_smaller_than_a_step_is_cut_into_equal_pieces() -> None:
    batches = list(TrainLoader(MemorySet(11), CONFIG, seed=0, batch_size=64, shard=Shard(1, 2, 2)).epoch(0))
    assert [(b.step, b.part, len(b)) for b in batches] == [(0, 0, 2), (0, 1, 2)]


def test_shards_of_unequal_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be cut into 3 equal pieces"):
        TrainLoader(MemorySet(50), CONFIG, seed=0, batch_size=16, shard=Shard(0, 3, 1))
    with pytest.raises(DataError, match="3 training images are too few"):
        TrainLoader(MemorySet(3), CONFIG, seed=0, batch_size=16, shard=Shard(0, 2, 2))


def test_the_shards_of_an_evaluation_are_whole_batches() -> None:
    whole = list(EvalLoader(MemorySet(50), CONFIG, batch_size=8))
    for ranks in (2, 3, 8):
        for rank in range(ranks):
            loader = EvalLoader(MemorySet(50), CONFIG, batch_size=8, shard=Shard(rank, ranks))
            assert loader.batches == 7
            assert [batch.step for batch in loader] == list(range(rank, 7, ranks))
            assert len(loader) == len(range(rank, 7, ranks))
            assert_equal(iter(whole[rank::ranks]), iter(loader))


def test_every_process_checks_its_shard() -> None:
    found = []
    for rank in range(3):
        try:
            check_readable(MemorySet(500, bad=[0, 64, 128, 499]), shard=Shard(rank, 3))
        except DataError as error:
            found.append(int(str(error).split()[0]))
    assert sum(found) == 4
    assert len(found) > 1
