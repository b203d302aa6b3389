"""Batches on their way to the GPU: copied by a thread of their own into the slots of a ring, ahead of their use.

A slot is a page-locked buffer of the host and one of the device. It is not filled again before the stream of whoever
uses its batch has passed the point where the next one was asked for; only the thread that copies waits for the device.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from udskd.data.batch import Batch, as_channels_last

SLOTS = 3
_ALIGNMENT = 256
T = TypeVar("T")


def prefetch_to_device(batches: Iterable[Batch], device: torch.device | str) -> Generator[Batch]:
    """The batches with their tensors (all but the indices) on a device, copied ahead where it is a GPU.

    The images of a batch are to be used on the stream that is current when the next batch is asked for, and not
    afterwards. Batches are made, and complaints of unreadable images are heard, in another thread. Close it when it is
    left early. Whatever the batches raise is raised here.
    """
    device, iterator = torch.device(device), iter(batches)
    first = next(iterator, None)
    if first is None:
        return
    if device.type == first.images.device.type:
        yield first
        yield from iterator
        return
    try:
        yield from copied_ahead(chain([first], iterator), [Slot(device) for _ in range(SLOTS)], CudaStreams(device))
    finally:
        getattr(iterator, "close", lambda: None)()


class Streams(Protocol):
    """The device's streams: copies have one of their own."""

    def event(self) -> Event:
        """A point in the work of a stream."""

    def copying(self) -> AbstractContextManager[Any]:
        """Makes the stream of the copies the current one."""

    def current(self) -> Any:
        """The current stream."""


class Event(Protocol):
    """What the ring needs of torch.cuda.Event."""

    def record(self, stream: Any) -> None: ...

    def wait(self, stream: Any) -> None: ...

    def synchronize(self) -> None: ...


class CudaStreams:
    """Streams of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def event(self) -> Event:
        return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def copying(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(_copy_stream(self._device))

    def current(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self._device)


@lru_cache(maxsize=16)  # one for all rings: memory returns to the stream that it was taken on
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    # Of high priority, another pool than that of the streams that steps are captured on: PyTorch has 32 of each, deals
    # them out again and again, and a copy on a stream that is being captured would become part of the graph.
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


class Ring(Generic[T]):
    """Who may use which slot when. One thread fills: begin, filled, and so on; one uses: take, release, and so on."""

    def __init__(self, slots: int, event: Callable[[], Event]) -> None:
        self._filled = [event() for _ in range(slots)]
        self._released = [event() for _ in range(slots)]
        self._free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[tuple[int, T] | BaseException | None] = queue.SimpleQueue()
        self._closed = False
        for slot in range(slots):
            self._free.put(slot)

    def begin(self) -> int | None:
        """Waits for a slot that the device has no more use for. None: nobody takes any more."""
        slot = self._free.get()
        if slot is None or self._closed:
            return None
        self._released[slot].synchronize()  # returns at once as long as the event was never recorded
        return slot

    def filled(self, slot: int, item: T, stream: Any) -> None:
        """The work that fills the slot was given to `stream`; `item` is for whoever takes it."""
        self._filled[slot].record(stream)
        self._ready.put((slot, item))

    def end(self, error: BaseException | None = None) -> None:
        """Nothing will be filled any more, because of the error if there is one."""
        self._ready.put(error)

    def take(self, stream: Any) -> tuple[int, T] | None:
        """Waits for the next item, whose slot is filled for work given to `stream` from now on. None: no more."""
        entry = self._ready.get()
        if isinstance(entry, BaseException):
            raise entry
        if entry is not None:
            self._filled[entry[0]].wait(stream)
        return entry

    def release(self, slot: int, stream: Any) -> None:
        """All the work that uses the slot was given to `stream`."""
        self._released[slot].record(stream)
        self._free.put(slot)

    def close(self) -> None:
        """Nothing will be taken any more."""
        self._closed = True
        self._free.put(None)


class Slot:
    """Room for one batch on the host and on the device, as large as the largest so far."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reserve(0)

    def _reserve(self, size: int) -> None:
        self._host = torch.empty(size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        self._there = torch.empty(size, dtype=torch.uint8, device=self._device)

    def load(self, batch: Batch) -> Batch:
        """The batch in this slot: one copy to the device, on the current stream, for which nothing waits."""
        parts = {"images": batch.images.permute(0, 2, 3, 1), "labels": batch.labels, "flips": batch.flips}
        if batch.mix is not None:
            parts["mix"] = batch.mix
        places, end = {}, 0
        for name, part in parts.items():
            places[name] = end
            end += -(-part.numel() * part.element_size() // _ALIGNMENT) * _ALIGNMENT
        if end > len(self._host):
            self._reserve(end)
        for name, part in parts.items():
            _part(self._host, places[name], part).copy_(part)
        self._there[:end].copy_(self._host[:end], non_blocking=True)
        there = {name: _part(self._there, places[name], part) for name, part in parts.items()}
        return replace(
            batch,
            images=as_channels_last(there["images"]),
            labels=there["labels"],
            flips=there["flips"],
            mix=there.get("mix"),
        )


def _part(buffer: Tensor, place: int, like: Tensor) -> Tensor:
    size = like.numel() * like.element_size()
    return buffer[place : place + size].view(like.dtype).view(like.shape)


def copied_ahead(batches: Iterator[Batch], slots: list[Slot], streams: Streams) -> Generator[Batch]:
    """The batches in the slots of a ring."""
    ring: Ring[Batch] = Ring(len(slots), streams.event)
    thread = threading.Thread(target=_fill, args=(ring, batches, slots, streams), name="udskd-copy", daemon=True)
    thread.start()
    try:
        while (entry := ring.take(streams.current())) is not None:
            slot, batch = entry
            yield replace(batch, labels=batch.labels.clone())  # targets may be kept for longer than images
            ring.release(slot, streams.current())
    finally:
        ring.close()
        thread.join()
        done = streams.event()
        done.record(streams.current())
        done.synchronize()  # for now the slots' memory is given back, and may soon be another ring's


def _fill(ring: Ring[Batch], batches: Iterator[Batch], slots: list[Slot], streams: Streams) -> None:
    try:
        with streams.copying():
            for batch in batches:
                slot = ring.begin()
                if slot is None:
                    break
                ring.filled(slot, slots[slot].load(batch), streams.current())
        ring.end()
    except BaseException as error:
        ring.end(error)
