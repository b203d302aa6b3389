"""loader: an epoch has every image once, with the same bits for any workers and first step; bad files are reported."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.helpers.images import MemorySet, make_tree
from tests.data.helpers.loaders import CONFIG, MIXED, assert_equal, each_loader, with_loader
from udskd.config.schema import DataConfig
from udskd.data import EvalLoader, TrainLoader, augment, check_readable, open_folder
from udskd.data.hashing import random_bits
from udskd.errors import DataError


@each_loader
@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["plain", "mixup"])
def test_bits_do_not_depend_on_the_workers(config: DataConfig, loader: str, workers: int) -> None:
    alone = TrainLoader(MemorySet(50), config, seed=3, batch_size=8)
    parallel = TrainLoader(MemorySet(50), with_loader(config, loader, workers), seed=3, batch_size=8)
    for epoch in (0, 1):
        assert_equal(alone.epoch(epoch), parallel.epoch(epoch))


@each_loader
def test_an_epoch_can_be_entered_at_any_step(loader: str, workers: int) -> None:
    config = with_loader(MIXED, loader, workers)
    whole = list(TrainLoader(MemorySet(50), config, seed=3, batch_size=8).epoch(4))
    resumed = TrainLoader(MemorySet(50), config, seed=3, batch_size=8)
    assert [batch.step for batch in whole] == list(range(6))
    assert_equal(iter(whole[4:]), resumed.epoch(4, start_step=4))


def test_bits_do_not_depend_on_the_version(tmp_path: Path) -> None:
    """So a later version can resume a run."""
    for split, label in itertools.product(("train", "val"), (0, 1)):
        (tmp_path / split / "ab"[label]).mkdir(parents=True)
        for k in range(6):
            width, height = 20 + 7 * k, 50 - 5 * k - label
            bits = random_bits(label, k, np.arange(width * height * 3), 9)
            pixels = (bits >> np.uint64(56)).astype(np.uint8).reshape(height, width, 3)
            Image.fromarray(pixels).save(tmp_path / split / "ab"[label] / f"{k}.png")
    config = replace(CONFIG, image_size=24, mixup=0.4)
    train, val = open_folder(tmp_path)
    loader = TrainLoader(train, config, seed=5, batch_size=4)
    others = [replace(config, eval_crop=1.0, image_size=20), replace(config, eval_crop=0.5)]
    evaluated = (EvalLoader(val, c, batch_size=5) for c in (config, *others))
    batches = [*loader.epoch(0), *loader.epoch(3), *itertools.chain(*evaluated)]
    digest = hashlib.sha256()
    for batch in batches:
        for tensor in (batch.images.contiguous(), batch.labels, batch.indices, batch.flips, batch.mix):
            digest.update(b"" if tensor is None else tensor.numpy().tobytes())
    assert digest.hexdigest()[:16] == "b1acceb589b88595"


def test_an_epoch_follows_its_order_and_drops_the_incomplete_batch() -> None:
    loader = TrainLoader(MemorySet(50), CONFIG, seed=3, batch_size=8)
    seen = torch.cat([batch.indices for batch in loader.epoch(2)])
    assert loader.steps_per_epoch == 6
    assert seen.tolist() == augment.permutation(3, 2, 50)[:48].tolist()


def test_mixing_does_not_depend_on_the_batch_size() -> None:
    def pairs(batch_size: int) -> dict[int, tuple[float, int, bytes]]:
        found = {}
        for batch in TrainLoader(MemorySet(48), MIXED, seed=3, batch_size=batch_size).epoch(0):
            assert batch.mix is not None
            for row, index in enumerate(batch.indices.tolist()):
                partner = batch.images[row + 1].contiguous().numpy().tobytes()
                found[index] = (float(batch.mix[row]), int(batch.labels[row + 1]), partner)
        return found

    assert len(pairs(8)) == 48
    assert pairs(8) == pairs(12) == pairs(48)


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    for config in (CONFIG, MIXED):
        loader = TrainLoader(MemorySet(5), config, seed=0, batch_size=64)
        batches = list(loader.epoch(0))
        assert loader.steps_per_epoch == len(batches) == 1
        assert sorted(batches[0].indices.tolist()) == [0, 1, 2, 3, 4]


def test_a_single_image_is_its_own_partner() -> None:
    (batch,) = TrainLoader(MemorySet(1), MIXED, seed=0, batch_size=4).epoch(0)
    assert batch.images.shape == (2, 3, 8, 8)
    assert torch.equal(batch.images[0], batch.images[1])


def test_epochs_do_not_use_the_global_generator() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(TrainLoader(MemorySet(10), replace(CONFIG, workers=1), seed=0, batch_size=4).epoch(0))
    list(EvalLoader(MemorySet(10), CONFIG, batch_size=4))
    assert torch.equal(before, torch.get_rng_state())


def test_unreadable_images_are_reported_once_and_counted() -> None:
    reported: list[tuple[str, str]] = []
    config = replace(CONFIG, max_unreadable=0.1)
    images = MemorySet(40, bad=[7, 20])
    loader = TrainLoader(images, config, seed=0, batch_size=40, on_unreadable=lambda *entry: reported.append(entry))
    for epoch in (0, 1):
        (batch,) = loader.epoch(epoch)
        assert sorted(batch.indices.tolist()) == [i for i in range(40) if i not in (7, 20)]
    assert sorted(reported) == [("memory/20", "bad on purpose"), ("memory/7", "bad on purpose")]
    assert list(loader.unreadable.values()) == reported


def test_unreadable_images_cause_a_warning_by_default() -> None:
    loader = TrainLoader(MemorySet(40, bad=[7]), replace(CONFIG, max_unreadable=0.1), seed=0, batch_size=40)
    with pytest.warns(UserWarning, match=r"cannot be read: memory/7 \(bad on purpose\)"):
        list(loader.epoch(0))


@each_loader
def test_too_many_unreadable_images_stop_the_training(loader: str, workers: int) -> None:
    config = replace(with_loader(CONFIG, loader, workers), max_unreadable=0.05)
    bad = [1, 5, 9, 13, 17, 21]  # 6 of 100, where 5 are allowed
    images = TrainLoader(MemorySet(100, bad), config, seed=0, batch_size=10, on_unreadable=lambda *_: None)
    with pytest.raises(DataError) as caught:
        list(images.epoch(0))
    message = str(caught.value)
    assert message.startswith("6 of 100 training images (6.0%) cannot be read")
    assert "data.max_unreadable = 0.05" in message
    assert "(bad on purpose)" in message
    assert "and 3 more" in message


def test_exactly_the_allowed_fraction_may_be_unreadable() -> None:
    config = replace(CONFIG, max_unreadable=0.05)
    loader = TrainLoader(MemorySet(100, range(5)), config, seed=0, batch_size=10, on_unreadable=lambda *_: None)
    assert sum(len(batch) for batch in loader.epoch(0)) == 95
    assert len(loader.unreadable) == 5


@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["plain", "mixup"])
def test_a_step_without_any_readable_image_has_no_rows(config: DataConfig) -> None:
    order = augment.permutation(0, 0, 20)
    config = replace(config, max_unreadable=0.5)
    bad = order[4:8].tolist()
    loader = TrainLoader(MemorySet(20, bad), config, seed=0, batch_size=4, on_unreadable=lambda *_: None)
    batches = list(loader.epoch(0))
    assert [(batch.step, len(batch)) for batch in batches] == [(0, 4), (1, 0), (2, 4), (3, 4), (4, 4)]
    assert batches[1].images.shape == (0, 3, 8, 8)


@each_loader
def test_evaluation_sees_every_image_once_in_order(loader: str, workers: int) -> None:
    images = EvalLoader(MemorySet(50), with_loader(CONFIG, loader, workers), batch_size=8)
    for _ in range(2):
        batches = list(images)
        assert len(batches) == len(images) == images.batches == 7
        assert [batch.step for batch in batches] == list(range(7))
        assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(50))
        assert torch.cat([batch.labels for batch in batches]).tolist() == MemorySet(50).labels.tolist()


@each_loader
def test_evaluation_never_skips(loader: str, workers: int) -> None:
    images = EvalLoader(MemorySet(50, bad=[30]), with_loader(CONFIG, loader, workers), batch_size=8)
    with pytest.raises(DataError, match=r"1 of the 50 images .* memory/30 \(bad on purpose\)"):
        list(images)


@each_loader
def test_check_readable_names_all_bad_images(loader: str, workers: int) -> None:
    check_readable(MemorySet(200), workers, loader=loader)
    with pytest.raises(DataError, match=r"4 of the 200 .* memory/0 \(.*memory/64 .* and 1 more"):
        check_readable(MemorySet(200, bad=[0, 64, 128, 199]), workers, loader=loader)


def test_files_are_loaded_and_damaged_ones_reported(tmp_path: Path) -> None:
    make_tree(tmp_path, train=60, val=2)
    (tmp_path / "train" / "cat" / "7.png").write_bytes(b"")
    train, val = open_folder(tmp_path)
    config = replace(CONFIG, workers=2)
    loader = TrainLoader(train, config, seed=0, batch_size=20)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert sum(len(batch) for batch in loader.epoch(0)) == 119
    assert [str(w.message) for w in caught if "cannot be read" in str(w.message)] == [
        f"skipping an image that cannot be read: {tmp_path}/train/cat/7.png (the file is empty)"
    ]
    assert sum(len(batch) for batch in EvalLoader(val, config, batch_size=3)) == 4


def test_labels_are_those_of_the_indices(memory_set: Callable[..., MemorySet]) -> None:
    images = memory_set(30)
    for batch in TrainLoader(images, CONFIG, seed=0, batch_size=7).epoch(0):
        np.testing.assert_array_equal(batch.labels.numpy(), images.labels[batch.indices.numpy()])
