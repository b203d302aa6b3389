"""workers: errors and signals in threads and processes, and their end when a loader is left or closed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from tests.data.helpers.images import MemorySet, make_tree
from tests.data.helpers.loaders import CONFIG, assert_equal, each_loader, with_loader
from udskd.config.schema import DataConfig
from udskd.data import (
    EvalLoader,
    TrainLoader,
    decode,
    open_sets,
    pack,
)
from udskd.data.batch import BatchRequest, ReadCheck
from udskd.data.workers import AHEAD, MOST_THREADS, ProcessWorkers, SerialWorkers, ThreadWorkers, make_workers
from udskd.errors import DataError


@each_loader
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "left open"])
def test_an_abandoned_epoch_does_not_affect_the_next_one(closed: bool, loader: str, workers: int) -> None:
    config = with_loader(CONFIG, loader, workers)
    train_loader = TrainLoader(MemorySet(200), config, seed=3, batch_size=8)
    for epoch in (0, 1):
        abandoned = train_loader.epoch(epoch)
        next(abandoned)
        if closed:
            abandoned.close()  # type: ignore[attr-defined]
    assert_equal(TrainLoader(MemorySet(200), CONFIG, seed=3, batch_size=8).epoch(1), train_loader.epoch(1))


@each_loader
def test_closing_ends_threads_and_processes(loader: str, workers: int) -> None:
    processes, threads = len(multiprocessing.active_children()), set(threading.enumerate())  # of tests before this one
    train_loader = TrainLoader(MemorySet(200), with_loader(CONFIG, loader, workers), seed=3, batch_size=8)
    for epoch in (0, 1):
        batches = train_loader.epoch(epoch)  # alive when the loader is closed
        next(batches)
        train_loader.close()
        assert not [thread for thread in set(threading.enumerate()) - threads if thread.name.startswith("udskd")]
        assert len(multiprocessing.active_children()) == processes
    assert sum(len(batch) for batch in train_loader.epoch(2)) == 200
    train_loader.close()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError, "unable to write to file </torch_12_34>: No space left on device (28)"),
        (
            RuntimeError,
            "unable to allocate shared memory(shm) for file </torch_12_34>: Resource temporarily unavailable",
        ),
        (OSError, "[Errno 24] Too many open files"),
        (MemoryError, ""),
    ],
)
def test_a_limit_that_a_process_reaches_is_one_sentence(error: type[Exception], text: str) -> None:
    workers = make_workers(Failing(MemorySet(20), error(text)), "processes", 1)
    with pytest.raises(DataError, match="too little memory or shared memory is the usual cause") as caught:
        list(workers.run([BatchRequest(0, 0, np.arange(4))]))
    assert "\n" not in str(caught.value)
    assert text in str(caught.value)


class Failing(ReadCheck):
    """Views that fail in the process that makes them."""

    def __init__(self, images: MemorySet, error: Exception) -> None:
        super().__init__(images)
        self.error = error

    def __getitem__(self, request: BatchRequest) -> NoReturn:
        raise self.error


def test_threads_decode_ahead_and_stop_when_the_epoch_is_closed() -> None:
    seen: list[int] = []

    class Watched(MemorySet):
        def pixels(self, index: int) -> np.ndarray:
            seen.append(index)
            return super().pixels(index)

    loader = TrainLoader(Watched(800), with_loader(CONFIG, "threads", 2), seed=3, batch_size=8)
    batches = loader.epoch(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    loader.close()
    assert 8 <= len(seen) <= 8 * AHEAD


class DeadlySet(MemorySet):
    """Kills the process that decodes image 5, as Linux does when memory runs out."""

    def pixels(self, index: int) -> np.ndarray:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().pixels(index)


def test_a_dead_worker_is_one_clear_error() -> None:
    loader = EvalLoader(DeadlySet(10), with_loader(CONFIG, "processes", 1), batch_size=2)
    for _ in range(2):  # the second evaluation starts a new process
        with pytest.raises(DataError, match=r"a process that decodes images died .*data\.workers"):
            list(loader)


class BuggySet(MemorySet):
    def pixels(self, index: int) -> np.ndarray:
        raise RuntimeError("a bug")


@each_loader
def test_bugs_are_not_reported_as_bad_files(loader: str, workers: int) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        list(EvalLoader(BuggySet(4), with_loader(CONFIG, loader, workers), batch_size=2))


class InterruptedSet(MemorySet):
    """Sends its own process SIGINT, as Ctrl-C does to all processes of a terminal."""

    def pixels(self, index: int) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGINT)
        return super().pixels(index)


def test_worker_processes_ignore_ctrl_c() -> None:
    loader = EvalLoader(InterruptedSet(6), with_loader(CONFIG, "processes", 1), batch_size=2)
    assert sum(len(batch) for batch in loader) == 6


def test_workers_compute_with_one_thread() -> None:
    class ThreadCountSet(MemorySet):
        def pixels(self, index: int) -> np.ndarray:
            return np.full((8, 8, 3), torch.get_num_threads(), dtype=np.uint8)

    (batch,) = EvalLoader(ThreadCountSet(1), with_loader(CONFIG, "processes", 1), batch_size=1)
    assert batch.images.unique().tolist() == [1]


@pytest.mark.parametrize(("loader", "workers"), [("threads", 3), ("processes", 2)])
def test_a_process_exits_without_closing_its_workers(loader: str, workers: int) -> None:
    """At exit, Python sends SIGTERM to its child processes and waits for them."""
    code = (
        "from udskd.config.schema import DataConfig\n"
        "from udskd.data import TrainLoader, open_sets\n"
        f"config = DataConfig(image_size=32, loader={loader!r}, workers={workers})\n"
        "loader = TrainLoader(open_sets(config)[0], config, seed=0, batch_size=8)\n"
        "next(loader.epoch(0))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_auto_means_threads_for_jpegs_and_few_workers(tmp_path: Path) -> None:
    images = MemorySet(4)
    assert type(make_workers(ReadCheck(images), "auto", 0)) is SerialWorkers
    assert type(make_workers(ReadCheck(images), "auto", MOST_THREADS)) is ThreadWorkers
    assert type(make_workers(ReadCheck(images), "auto", MOST_THREADS + 1)) is ProcessWorkers
    images.releases_gil = False
    assert type(make_workers(ReadCheck(images), "auto", 1)) is ProcessWorkers


def test_decoding_releases_the_gil_for_jpegs_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.jpg", "b.JPEG", "c.webp"]
    assert (decode.are_jpegs(names), decode.are_jpegs(names[1:])) == (decode.simplejpeg is not None, False)
    make_tree(tmp_path / "tree")
    pack(tmp_path / "tree", tmp_path / "originals", short_side=None)
    pack(tmp_path / "tree", tmp_path / "packs")
    for root, releases in (("tree", False), ("originals", False), ("packs", True)):
        assert open_sets(DataConfig(root=str(tmp_path / root)))[0].releases_gil == releases
    monkeypatch.setattr(decode, "simplejpeg", None)
    assert not decode.are_jpegs(names)


class InterruptingSet(MemorySet):
    """Decoding image 3 raises SIGINT, as Ctrl-C does."""

    def pixels(self, index: int) -> np.ndarray:
        if index == 3:
            signal.raise_signal(signal.SIGINT)
        return super().pixels(index)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_ctrl_c_stops_threads_and_a_second_pass_works(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    images = InterruptingSet(64)
    loader = EvalLoader(images, with_loader(CONFIG, "threads", workers), batch_size=2)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(loader)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.setattr(InterruptingSet, "pixels", MemorySet.pixels)
    assert len(list(loader)) == 32
    loader.close()
