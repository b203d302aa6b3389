"""ring: batches reach the device unchanged, and no slot is filled while anything may still read it."""

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

from tests.data.conftest import CONFIG, MIXED, MemorySet, assert_equal
from udskd.data import Batch, EvalLoader, TrainLoader, normalize_batch, prefetch_to_device
from udskd.data.prefetch import Ring, Slot, copy_ahead

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Machine:
    """A device whose streams get on as slowly as they are allowed to; each does its work in order."""

    def __init__(self) -> None:
        self.work: dict[str, deque[Any]] = {"copy": deque(), "compute": deque()}
        self.host: dict[int, int] = {}
        self.there: dict[int, int] = {}
        self.read: list[tuple[int, int]] = []

    def step(self, stream: str) -> None:
        """One piece of work, or, if the stream waits for another one, a piece of that."""
        if not self.work[stream]:
            return
        kind, *what = self.work[stream][0]
        if kind == "wait" and what[0].done < what[1]:
            self.step(what[0].stream)
            return
        self.work[stream].popleft()
        if kind == "copy":
            self.there[what[0]] = self.host[what[0]]
        elif kind == "read":
            self.read.append((self.there[what[0]], what[1]))
        elif kind == "record":
            what[0].done = what[1]


@dataclass
class FakeEvent:
    machine: Machine
    stream: str = ""
    recorded: int = 0
    done: int = 0

    def record(self, stream: str) -> None:
        self.stream, self.recorded = stream, self.recorded + 1
        self.machine.work[stream].append(("record", self, self.recorded))

    def wait(self, stream: str) -> None:
        self.machine.work[stream].append(("wait", self, self.recorded))

    def synchronize(self) -> None:
        while self.done < self.recorded:
            self.machine.step(self.stream)


@dataclass
class Play:
    """The filler and the user of a ring, one action at a time."""

    slots: int
    machine: Machine = field(default_factory=Machine)
    filled: int = 0
    held: int | None = None

    def __post_init__(self) -> None:
        self.ring: Ring[int] = Ring(self.slots, lambda: FakeEvent(self.machine))

    def fill(self) -> None:
        if self.ring._free.qsize():
            slot = self.ring.begin()
            assert slot is not None
            self.machine.host[slot] = self.filled
            self.machine.work["copy"].append(("copy", slot))
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
            self.machine.work["compute"] += [("read", self.held, number), ("read", self.held, number)]


ACTIONS = st.lists(st.sampled_from(["fill", "use", "copy", "compute"]), min_size=20, max_size=120)


@settings(max_examples=300)
@given(slots=st.integers(1, 4), actions=ACTIONS)
def test_whatever_the_order_everybody_reads_what_was_filled_for_him(slots: int, actions: list[str]) -> None:
    play = Play(slots)
    for action in actions:
        play.machine.step(action) if action in play.machine.work else getattr(play, action)()
    for _ in range(1000):
        play.machine.step("copy")
        play.machine.step("compute")
    assert not any(play.machine.work.values())
    assert all(found == expected for found, expected in play.machine.read)


class CpuEvent:
    def record(self, stream: Any) -> None: ...

    def wait(self, stream: Any) -> None: ...

    def synchronize(self) -> None: ...


class CpuStreams:
    """Where everything is done at once, no event has to be waited for."""

    def event(self) -> CpuEvent:
        return CpuEvent()

    def copying(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def current(self) -> None:
        return None


def ahead(batches: Iterator[Batch], slots: int = 2) -> Any:
    return copy_ahead(batches, [Slot(torch.device("cpu")) for _ in range(slots)], CpuStreams())


@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["plain", "mixup"])
def test_batches_go_round_unchanged(config: Any) -> None:
    config = replace(config, max_unreadable=0.9)
    loader = TrainLoader(
        MemorySet(60, bad=range(20)), config, seed=1, batch_size=6, on_unreadable=lambda *_: None
    )  # batches of different sizes
    assert_equal(loader.epoch(0), ahead(loader.epoch(0)))
    assert_equal(
        iter(EvalLoader(MemorySet(50), CONFIG, batch_size=8)), ahead(EvalLoader(MemorySet(50), CONFIG, batch_size=8))
    )


def test_copies_go_ahead_as_far_as_there_are_slots() -> None:
    made = []
    reached = threading.Event()

    def batches() -> Iterator[Batch]:
        for batch in TrainLoader(MemorySet(60), CONFIG, seed=1, batch_size=6).epoch(0):
            made.append(batch.step)
            if len(made) == 4:
                reached.set()
            yield batch

    going = ahead(batches(), slots=3)
    next(going)
    assert reached.wait(10)  # three in the slots, of which we use one, and the next in the hand
    assert made == [0, 1, 2, 3]
    going.close()
    assert made == [0, 1, 2, 3]


def test_labels_may_be_kept() -> None:
    loader = TrainLoader(MemorySet(60), CONFIG, seed=1, batch_size=6)
    kept = [batch.labels for batch in ahead(loader.epoch(0), slots=1)]
    assert [labels.tolist() for labels in kept] == [batch.labels.tolist() for batch in loader.epoch(0)]


def test_leaving_early_ends_the_thread() -> None:
    going = ahead(TrainLoader(MemorySet(60), CONFIG, seed=1, batch_size=6).epoch(0))
    next(going)
    going.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "udskd-copy"]


def test_mistakes_in_the_thread_are_raised_where_the_batches_are_used() -> None:
    def batches() -> Iterator[Batch]:
        yield from TrainLoader(MemorySet(12), CONFIG, seed=1, batch_size=6).epoch(0)
        raise RuntimeError("a mistake of ours")

    going = ahead(batches())
    assert [next(going).step, next(going).step] == [0, 1]
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        next(going)


def test_on_the_cpu_batches_pass_as_they_are() -> None:
    batches = list(TrainLoader(MemorySet(60), CONFIG, seed=1, batch_size=6).epoch(0))
    passed = list(prefetch_to_device(batches, "cpu"))
    assert all(one is other for one, other in zip(batches, passed, strict=True))
    assert list(prefetch_to_device([], "cpu")) == []


def test_on_the_cpu_leaving_early_reaches_the_loader() -> None:
    closed = []

    def batches() -> Iterator[Batch]:
        try:
            yield from TrainLoader(MemorySet(60), CONFIG, seed=1, batch_size=6).epoch(0)
        finally:
            closed.append(True)

    going = prefetch_to_device(batches(), "cpu")
    next(going), next(going)
    going.close()
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
        busy = busy @ busy * 1e-3  # so that the stream falls behind
        assert batch.images.device.type == batch.labels.device.type == "cuda"
        found.append(normalize_batch(batch, config, "cuda", 3))
    for batch, (images, target) in zip(loader.epoch(0), found, strict=True):
        expected_images, expected_target = normalize_batch(batch, config, "cuda", 3)
        assert torch.equal(images, expected_images)
        assert torch.equal(target, expected_target)


@pytest.mark.gpu
@needs_gpu
def test_the_gpu_is_not_waited_for_by_the_user_of_a_batch() -> None:
    loader = TrainLoader(MemorySet(400), replace(CONFIG, image_size=64), seed=1, batch_size=8)
    going = prefetch_to_device(loader.epoch(0), "cuda")
    for _ in range(4):
        normalize_batch(next(going), CONFIG, "cuda", 3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            normalize_batch(next(going), CONFIG, "cuda", 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        going.close()
