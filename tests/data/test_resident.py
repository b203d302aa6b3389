"""resident: the batches are those of the other loaders; a set that does not fit into memory is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.helpers.images import MemorySet, make_tree, photo
from tests.data.helpers.loaders import CONFIG, MIXED, assert_equal
from udskd.config.schema import DataConfig
from udskd.data import Batch, EvalLoader, Shard, TrainLoader, open_sets, pack, resident
from udskd.errors import DataError

RESIDENT = replace(CONFIG, loader="resident")
RESIDENT_MIXED = replace(MIXED, loader="resident")


class SizedSet(MemorySet):
    """Images of different sizes."""

    def pixels(self, index: int) -> np.ndarray:
        super().pixels(index)
        return np.asarray(photo(index, (10 + index % 7, 30 - index % 11)))


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["plain", "mixup"])
def test_bits_are_those_of_the_other_loaders(config: DataConfig, workers: int) -> None:
    resident_config = replace(config, loader="resident", workers=workers)
    for shard in (Shard(), Shard(1, 2, 2)):
        loaders = [TrainLoader(SizedSet(50), c, seed=3, batch_size=8, shard=shard) for c in (config, resident_config)]
        assert_equal(*(loader.epoch(0) for loader in loaders))
        assert_equal(*(loader.epoch(1, 3) for loader in loaders))
    evaluations = [EvalLoader(SizedSet(50), c, batch_size=8) for c in (config, resident_config)]
    for _ in range(2):
        assert_equal(*map(iter, evaluations))


def test_files_are_read_once(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", train=6)
    pack(tmp_path / "tree", tmp_path / "packs", short_side=None)
    expected = None
    for root in (tmp_path / "tree", tmp_path / "packs"):
        config = replace(RESIDENT_MIXED, root=str(root))
        train, val = open_sets(config)
        loader, evaluation = TrainLoader(train, config, seed=0, batch_size=4), EvalLoader(val, config, batch_size=3)
        found = [*loader.epoch(0), *evaluation]
        for path in root.rglob("*.*"):
            path.unlink()
        again = [*loader.epoch(0), *evaluation]
        assert_equal(iter(found), iter(again))
        assert_equal(iter(found), iter(expected or found))
        expected = found


@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["plain", "mixup"])
def test_unreadable_images_are_left_out_as_elsewhere(config: DataConfig) -> None:
    config, bad, reports = replace(config, max_unreadable=0.9), [3, 4, 17, 30, 31, 32, 33], []

    def batches(loader: Any) -> list[Batch]:
        errors: list[tuple[str, str]] = []
        reports.append(errors)
        images, wanted = SizedSet(50, bad), replace(config, loader=loader)
        return list(
            TrainLoader(images, wanted, seed=1, batch_size=4, on_unreadable=lambda *entry: errors.append(entry)).epoch(
                0
            )
        )

    assert_equal(iter(batches("threads")), iter(batches("resident")))
    assert reports[0] == reports[1] != []


def test_evaluation_never_skips() -> None:
    with pytest.raises(DataError, match=r"1 of the 50 images .* memory/30 \(bad on purpose\)"):
        list(EvalLoader(MemorySet(50, bad=[30]), RESIDENT, batch_size=8))


def test_an_image_whose_size_differs_from_its_header_is_unreadable() -> None:
    class WrongHeaderSet(MemorySet):
        def area(self, index: int) -> int:
            return 7 if index == 3 else super().area(index)

    reported: list[tuple[str, str]] = []
    config = replace(RESIDENT, max_unreadable=0.5)
    loader = TrainLoader(
        WrongHeaderSet(20), config, seed=0, batch_size=20, on_unreadable=lambda *entry: reported.append(entry)
    )
    (batch,) = loader.epoch(0)
    assert len(batch) == 19
    assert reported == [("memory/3", "its size is not that of its header")]


def test_prepare_shows_progress_and_decodes_once() -> None:
    seen: list[tuple[int, int]] = []
    loader = TrainLoader(MemorySet(20), RESIDENT, seed=0, batch_size=4)
    for _ in range(2):
        loader.prepare(lambda *where: seen.append(where))
    assert seen == [(k + 1, 20) for k in range(20)]
    loader.close()
    loader.prepare(lambda *where: seen.append(where))
    assert len(seen) == 40


def test_other_loaders_have_nothing_to_prepare() -> None:
    TrainLoader(MemorySet(20), CONFIG, seed=0, batch_size=4).prepare(lambda *_: pytest.fail("there is nothing to do"))


def test_preparing_can_be_stopped() -> None:
    class Stop(Exception):
        pass

    calls = []

    def poll() -> None:
        calls.append(True)
        if len(calls) == 30:
            raise Stop

    loader = TrainLoader(MemorySet(20), replace(RESIDENT, workers=2), seed=0, batch_size=4)
    with pytest.raises(Stop):
        loader.prepare(poll=poll)
    assert len(list(loader.epoch(0))) == 5


def test_an_abandoned_evaluation_starts_again() -> None:
    loader = EvalLoader(MemorySet(50), replace(RESIDENT, workers=2), batch_size=8)
    next(iter(loader))
    assert len(list(loader)) == 7
    with torch.inference_mode():
        assert_equal(iter(EvalLoader(MemorySet(50), CONFIG, batch_size=8)), iter(loader))


def test_batches_kept_from_inference_mode_are_ordinary_tensors() -> None:
    loader = EvalLoader(MemorySet(50), RESIDENT, batch_size=8)
    with torch.inference_mode():
        list(loader)
    assert not any(batch.images.is_inference() or batch.labels.is_inference() for batch in loader)


@pytest.mark.parametrize("loader", ["train", "eval"])
def test_a_set_that_does_not_fit_is_refused_with_both_numbers(loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "available_memory", lambda: resident.LEFT_IN_RAM + 1000)
    first = {
        "train": TrainLoader(MemorySet(20), RESIDENT, seed=0, batch_size=4).prepare,
        "eval": lambda: next(iter(EvalLoader(MemorySet(20), RESIDENT, batch_size=4))),
    }[loader]
    with pytest.raises(DataError, match=r"need 0.0 GiB decoded, but of the 2.0 GiB .* on cpu, 2.0 GiB .*udskd pack"):
        first()


def test_the_available_memory_is_known() -> None:
    assert 2**20 < resident.available_memory() <= 2**62


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["plain", "mixup"])
def test_the_gpu_makes_the_same_batches(config: DataConfig) -> None:
    config = replace(config, max_unreadable=0.9)
    images, resident_config = SizedSet(50, bad=[7]), replace(config, loader="resident")
    options: Any = {"seed": 3, "batch_size": 8, "on_unreadable": lambda *_: None}
    found = TrainLoader(images, resident_config, device="cuda", **options).epoch(0)
    moved = (batch.to(torch.device("cpu")) for batch in found)
    assert_equal(TrainLoader(images, config, **options).epoch(0), moved)
    evaluation = EvalLoader(SizedSet(50), resident_config, batch_size=8, device="cuda")
    for _ in range(2):
        batches = list(evaluation)
        assert all(batch.images.device.type == "cuda" for batch in batches)
        expected = iter(EvalLoader(SizedSet(50), config, batch_size=8))
        assert_equal(expected, (batch.to(torch.device("cpu")) for batch in batches))
