"""prefetch: batches reach the device unchanged, and no slot is filled while the device may still read it."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.helpers.images import MemorySet
from tests.data.helpers.loaders import CONFIG, MIXED, assert_equal
from udskd.data import Batch, EvalLoader, TrainLoader, normalize_batch, prefetch_to_device
from udskd.data.prefetch import Ring, Slot, copy_ahead

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class FakeDevice:
    """A device with two streams, which do their work in order and only when a test calls step()."""

    def __init__(self) -> None:
        self.work: dict[str, deque[Any]] = {"copy": deque(), "compute": deque()}
        self.host: dict[int, int] = {}
        self.device: dict[int, int] = {}
        self.read: list[tuple[int, int]] = []

    def step(self, stream: str) -> None:
        """Do one piece of the stream's work, or of the work of the stream that it waits for."""
        if not self.work[stream]:
            return
        kind, *arguments = self.work[stream][0]
        if kind == "wait" and arguments[0].done < arguments[1]:
            self.step(arguments[0].stream)
            return
        self.work[stream].popleft()
        if kind == "copy":
            self.device[arguments[0]] = self.host[arguments[0]]
        elif kind == "read":
            self.read.append((self.device[arguments[0]], arguments[1]))
        elif kind == "record":
            arguments[0].done = arguments[1]


@dataclass
class FakeEvent:
    device: FakeDevice
    stream: str = ""
    recorded: int = 0
    done: int = 0

    def record(self, stream: str) -> None:
        self.stream, self.recorded = stream, self.recorded + 1
        self.device.work[stream].append(("record", self, self.recorded))

    def wait(self, stream: str) -> None:
        self.device.work[stream].append(("wait", self, self.recorded))

    def synchronize(self) -> None:
        while self.done < self.recorded:
            self.device.step(self.stream)


@dataclass
class RingUsers:
    """The producer and the consumer of a ring, one action at a time."""

    slots: int
    device: FakeDevice = field(default_factory=FakeDevice)
    filled: int = 0
    held: int | None = None

    def __post_init__(self) -> None:
        self.ring: Ring[int] = Ring(self.slots, lambda: FakeEvent(self.device))

    def fill(self) -> None:
        if self.ring._free.qsize():
            slot = self.ring.begin()
            assert slot is not None
            self.device.host[slot] = self.filled
            self.device.work["copy"].append(("copy", slot))
            self.ring.filled(slot, self.filled, "copy")
            self.filled += 1

    def use(self) -> None:
        if self.held is not None:
            self.ring.release(self.held, "compute")
            self.held = None
        if self.ring._ready.qsize():
            entry = self.ring.take("compute")
            assert entry is not None
            self.held, number = entry
            self.device.work["compute"] += [("read", self.held, number), ("read", self.held, number)]


ACTIONS = st.lists(st.sampled_from(["fill", "use", "copy", "compute"]), min_size=20, max_size=120)


@settings(max_examples=300)
@given(slots=st.integers(1, 4), actions=ACTIONS)
def test_in_any_order_the_consumer_reads_what_the_producer_has_filled(slots: int, actions: list[str]) -> None:
    users = RingUsers(slots)
    for action in actions:
        users.device.step(action) if action in users.device.work else getattr(users, action)()
    for _ in range(1000):
        users.device.step("copy")
        users.device.step("compute")
    assert not any(users.device.work.values())
    assert all(found == expected for found, expected in users.device.read)


class CpuEvent:
    def record(self, stream: Any) -> None: ...

    def wait(self, stream: Any) -> None: ...

    def synchronize(self) -> None: ...


class CpuStreams:
    """Streams of the CPU, where all work is complete when a call returns."""

    def event(self) -> CpuEvent:
        return CpuEvent()

    def copying(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def current(self) -> None:
        return None


def ahead(batches: Iterator[Batch], slots: int = 2) -> Any:
    return copy_ahead(batches, [Slot(torch.device("cpu")) for _ in range(slots)], CpuStreams())


@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["plain", "mixup"])
def test_batches_are_unchanged(config: Any) -> None:
    config = replace(config, max_unreadable=0.9)
    loader = TrainLoader(
        MemorySet(60, bad=range(20)), config, seed=1, batch_size=6, on_unreadable=lambda *_: None
    )  # batches of different sizes
    assert_equal(loader.epoch(0), ahead(loader.epoch(0)))
    assert_equal(
        iter(EvalLoader(MemorySet(50), CONFIG, batch_size=8)), ahead(EvalLoader(MemorySet(50), CONFIG, batch_size=8))
    )


def test_copies_run_ahead_until_all_slots_are_filled() -> None:
    made = []
    reached = threading.Event()

    def batches() -> Iterator[Batch]:
        for batch in TrainLoader(MemorySet(60), CONFIG, seed=1, batch_size=6).epoch(0):
            made.append(batch.step)
            if len(made) == 4:
                reached.set()
            yield batch

    prefetched = ahead(batches(), slots=3)
    next(prefetched)
    assert reached.wait(10)  # three in slots, one of which is in use, and one that waits for a slot
    assert made == [0, 1, 2, 3]
    prefetched.close()
    assert made == [0, 1, 2, 3]


def test_labels_may_be_kept() -> None:
    loader = TrainLoader(MemorySet(60), CONFIG, seed=1, batch_size=6)
    kept = [batch.labels for batch in ahead(loader.epoch(0), slots=1)]
    assert [labels.tolist() for labels in kept] == [batch.labels.tolist() for batch in loader.epoch(0)]


def test_closing_early_ends_the_thread() -> None:
    prefetched = ahead(TrainLoader(MemorySet(60), CONFIG, seed=1, batch_size=6).epoch(0))
    next(prefetched)
    prefetched.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "udskd-copy"]


def test_errors_in_the_thread_are_raised_in_the_consumer() -> None:
    def batches() -> Iterator[Batch]:
        yield from TrainLoader(MemorySet(12), CONFIG, seed=1, batch_size=6).epoch(0)
        raise RuntimeError("a bug")

    prefetched = ahead(batches())
    assert [next(prefetched).step, next(prefetched).step] == [0, 1]
    with pytest.raises(RuntimeError, match="a bug"):
        next(prefetched)


def test_on_the_cpu_batches_are_passed_through() -> None:
    batches = list(TrainLoader(MemorySet(60), CONFIG, seed=1, batch_size=6).epoch(0))
    passed = list(prefetch_to_device(batches, "cpu"))
    assert all(one is other for one, other in zip(batches, passed, strict=True))
    assert list(prefetch_to_device([], "cpu")) == []


def test_on_the_cpu_closing_early_closes_the_loader() -> None:
    closed = []

    def batches() -> Iterator[Batch]:
        try:
            yield from TrainLoader(MemorySet(60), CONFIG, seed=1, batch_size=6).epoch(0)
        finally:
            closed.append(True)

    prefetched = prefetch_to_device(batches(), "cpu")
    next(prefetched), next(prefetched)
    prefetched.close()
    assert closed == [True]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["plain", "mixup"])
def test_the_gpu_gets_what_a_direct_copy_gives(config: Any) -> None:
    config = replace(config, image_size=64)
    loader = TrainLoader(MemorySet(400), config, seed=1, batch_size=8)
    busy = torch.randn(2000, 2000, device="cuda")
    found = []
    for batch in prefetch_to_device(loader.epoch(0), "cuda"):
        busy = busy @ busy * 1e-3  # keeps the stream behind the host
        assert batch.images.device.type == batch.labels.device.type == "cuda"
        found.append(normalize_batch(batch, config, "cuda", 3))
    for batch, (images, target) in zip(loader.epoch(0), found, strict=True):
        expected_images, expected_target = normalize_batch(batch, config, "cuda", 3)
        assert torch.equal(images, expected_images)
        assert torch.equal(target, expected_target)


@pytest.mark.gpu
@needs_gpu
def test_the_consumer_does_not_wait_for_the_gpu() -> None:
    loader = TrainLoader(MemorySet(400), replace(CONFIG, image_size=64), seed=1, batch_size=8)
    prefetched = prefetch_to_device(loader.epoch(0), "cuda")
    for _ in range(4):
        normalize_batch(next(prefetched), CONFIG, "cuda", 3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            normalize_batch(next(prefetched), CONFIG, "cuda", 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        prefetched.close()
