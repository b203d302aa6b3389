"""loader: every image once an epoch, the same bits for any workers and any start, and honest about bad files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.conftest import MemorySet, make_tree
from udskd.config import DataConfig
from udskd.data import Batch, EvalLoader, TrainLoader, check_readable, open_folder, views
from udskd.errors import DataError

CONFIG = DataConfig(image_size=8, workers=0)
MIXED = replace(CONFIG, mixup=0.4)


def assert_equal(first: Iterator[Batch], second: Iterator[Batch]) -> None:
    for one, other in zip(first, second, strict=True):
        for key, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(other, key)), key
            else:
                assert value == getattr(other, key), key


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["plain", "mixup"])
def test_bits_do_not_depend_on_the_number_of_workers(config: DataConfig, workers: int) -> None:
    alone = TrainLoader(MemorySet(50), config, seed=3, batch_size=8)
    helped = TrainLoader(MemorySet(50), replace(config, workers=workers), seed=3, batch_size=8)
    for epoch in (0, 1):
        assert_equal(alone.epoch(epoch), helped.epoch(epoch))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_entered_at_any_step(workers: int) -> None:
    config = replace(MIXED, workers=workers)
    whole = list(TrainLoader(MemorySet(50), config, seed=3, batch_size=8).epoch(4))
    resumed = TrainLoader(MemorySet(50), config, seed=3, batch_size=8)
    assert [batch.step for batch in whole] == list(range(6))
    assert_equal(iter(whole[4:]), resumed.epoch(4, start_step=4))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_abandoned_epoch_leaves_nothing_behind(workers: int) -> None:
    config = replace(CONFIG, workers=workers)
    loader = TrainLoader(MemorySet(200), config, seed=3, batch_size=8)
    next(iter(loader.epoch(0)))
    assert_equal(TrainLoader(MemorySet(200), config, seed=3, batch_size=8).epoch(1), loader.epoch(1))


def test_an_epoch_follows_its_order_and_drops_the_incomplete_batch() -> None:
    loader = TrainLoader(MemorySet(50), CONFIG, seed=3, batch_size=8)
    seen = torch.cat([batch.indices for batch in loader.epoch(2)])
    assert loader.steps_per_epoch == 6
    assert seen.tolist() == views.order(3, 2, 50)[:48].tolist()


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


def test_epochs_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(TrainLoader(MemorySet(10), replace(CONFIG, workers=1), seed=0, batch_size=4).epoch(0))
    list(EvalLoader(MemorySet(10), CONFIG, batch_size=4))
    assert torch.equal(before, torch.get_rng_state())


def test_unreadable_images_are_reported_once_and_counted() -> None:
    said: list[tuple[str, str]] = []
    config = replace(CONFIG, max_unreadable=0.1)
    images = MemorySet(40, bad=[7, 20])
    loader = TrainLoader(images, config, seed=0, batch_size=40, on_unreadable=lambda *entry: said.append(entry))
    for epoch in (0, 1):
        (batch,) = loader.epoch(epoch)
        assert sorted(batch.indices.tolist()) == [i for i in range(40) if i not in (7, 20)]
    assert sorted(said) == [("memory/20", "bad on purpose"), ("memory/7", "bad on purpose")]
    assert loader.unreadable == dict(said)


def test_unreadable_images_are_warned_of_by_default() -> None:
    loader = TrainLoader(MemorySet(40, bad=[7]), replace(CONFIG, max_unreadable=0.1), seed=0, batch_size=40)
    with pytest.warns(UserWarning, match=r"cannot be read: memory/7 \(bad on purpose\)"):
        list(loader.epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_unreadable_images_stop_the_training(workers: int) -> None:
    config = replace(CONFIG, max_unreadable=0.05, workers=workers)
    bad = [1, 5, 9, 13, 17, 21]  # 6 of 100; five would be allowed
    loader = TrainLoader(MemorySet(100, bad), config, seed=0, batch_size=10, on_unreadable=lambda *_: None)
    with pytest.raises(DataError) as caught:
        list(loader.epoch(0))
    message = str(caught.value)
    assert message.startswith("6 of 100 training images (6.0%) cannot be read")
    assert "data.max_unreadable = 0.05" in message
    assert "(bad on purpose)" in message
    assert "and 3 more" in message


def test_exactly_the_allowed_share_may_be_unreadable() -> None:
    config = replace(CONFIG, max_unreadable=0.05)
    loader = TrainLoader(MemorySet(100, range(5)), config, seed=0, batch_size=10, on_unreadable=lambda *_: None)
    assert sum(len(batch) for batch in loader.epoch(0)) == 95
    assert len(loader.unreadable) == 5


def test_a_step_without_any_readable_image_is_missing() -> None:
    order = views.order(0, 0, 20)
    config = replace(CONFIG, max_unreadable=0.5)
    loader = TrainLoader(
        MemorySet(20, order[4:8].tolist()), config, seed=0, batch_size=4, on_unreadable=lambda *_: None
    )
    assert [batch.step for batch in loader.epoch(0)] == [0, 2, 3, 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_image_once_in_order(workers: int) -> None:
    loader = EvalLoader(MemorySet(50), replace(CONFIG, workers=workers), batch_size=8)
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader) == 7
        assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(50))
        assert torch.cat([batch.labels for batch in batches]).tolist() == MemorySet(50).labels.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_never_skips(workers: int) -> None:
    loader = EvalLoader(MemorySet(50, bad=[30]), replace(CONFIG, workers=workers), batch_size=8)
    with pytest.raises(DataError, match=r"1 of the 50 images .* memory/30 \(bad on purpose\)"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_check_readable_names_all_bad_images(workers: int) -> None:
    check_readable(MemorySet(200), workers)
    with pytest.raises(DataError, match=r"4 of the 200 .* memory/0 \(.*memory/64 .* and 1 more"):
        check_readable(MemorySet(200, bad=[0, 64, 128, 199]), workers)


def test_real_files_go_all_the_way(tmp_path: Path) -> None:
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


class DeadlySet(MemorySet):
    """Kills the process that decodes image 5, as the kernel does when memory runs out."""

    def image(self, index: int) -> Image.Image:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().image(index)


def test_a_dead_worker_is_one_clear_error() -> None:
    loader = EvalLoader(DeadlySet(10), replace(CONFIG, workers=1), batch_size=2)
    with pytest.raises(DataError, match=r"a process that decodes images died .*data\.workers"):
        list(loader)


class BuggySet(MemorySet):
    def image(self, index: int) -> Image.Image:
        raise RuntimeError("a mistake of ours")


@pytest.mark.parametrize("workers", [0, 1])
def test_our_own_mistakes_are_not_taken_for_bad_files(workers: int) -> None:
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        list(EvalLoader(BuggySet(4), replace(CONFIG, workers=workers), batch_size=2))


class InterruptedSet(MemorySet):
    """Sends its own process what Ctrl-C sends to all processes of a terminal."""

    def image(self, index: int) -> Image.Image:
        os.kill(os.getpid(), signal.SIGINT)
        return super().image(index)


def test_workers_leave_ctrl_c_to_the_main_process() -> None:
    loader = EvalLoader(InterruptedSet(6), replace(CONFIG, workers=1), batch_size=2)
    assert sum(len(batch) for batch in loader) == 6


def test_workers_compute_with_one_thread() -> None:
    class Threads(MemorySet):
        def image(self, index: int) -> Image.Image:
            return Image.new("RGB", (8, 8), (torch.get_num_threads(),) * 3)

    (batch,) = EvalLoader(Threads(1), replace(CONFIG, workers=1), batch_size=1)
    assert batch.images.unique().tolist() == [1]


def test_labels_are_those_of_the_indices(memory_set: Callable[..., MemorySet]) -> None:
    images = memory_set(30)
    for batch in TrainLoader(images, CONFIG, seed=0, batch_size=7).epoch(0):
        np.testing.assert_array_equal(batch.labels.numpy(), images.labels[batch.indices.numpy()])


def test_a_process_that_leaves_its_workers_behind_ends() -> None:
    """Python ends them by SIGTERM at exit, and waits until they are gone."""
    code = (
        "from udskd.config import DataConfig\n"
        "from udskd.data import TrainLoader, open_sets\n"
        "config = DataConfig(image_size=32, workers=2)\n"
        "loader = TrainLoader(open_sets(config)[0], config, seed=0, batch_size=8)\n"
        "next(loader.epoch(0))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
