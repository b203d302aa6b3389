"""Prefetching to a GPU: a thread copies the batches into the slots of a ring, ahead of their use.

A slot is a page-locked buffer on the host and a buffer on the device. It is filled again only after the consumer's
stream has passed the point at which the consumer asked for the next batch. Only the copying thread waits for the
device.
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

SLOTS = 3  # one in use, one filled, one being filled
_ALIGNMENT = 256  # bytes, a multiple of the size of every dtype
T = TypeVar("T")


def prefetch_to_device(batches: Iterable[Batch], device: torch.device | str) -> Generator[Batch]:
    """The batches with their tensors (all but the indices) on a device, copied ahead if it is a GPU.

    The consumer must use the images of a batch on the stream that is current when it asks for the next batch, and not
    afterwards. Another thread iterates over `batches`; what that raises is raised here. Close the generator if it is
    left early.
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
        yield from copy_ahead(chain([first], iterator), [Slot(device) for _ in range(SLOTS)], CudaStreams(device))
    finally:
        getattr(iterator, "close", lambda: None)()


class Streams(Protocol):
    """What the ring needs of the device's streams; copies have a stream of their own."""

    def event(self) -> Event:
        """A new event, not recorded yet."""

    def copying(self) -> AbstractContextManager[Any]:
        """Makes the stream of the copies current."""

    def current(self) -> Any:
        """The current stream."""


class Event(Protocol):
    """What the ring needs of torch.cuda.Event."""

    def record(self, stream: Any) -> None: ...

    def wait(self, stream: Any) -> None: ...

    def synchronize(self) -> None: ...


class CudaStreams:
    """The streams of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def event(self) -> Event:
        return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def copying(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(_copy_stream(self._device))

    def current(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self._device)


@lru_cache(maxsize=16)  # one for all rings: the allocator reuses memory only on the stream that allocated it
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    # High priority, because PyTorch hands out the same 32 streams of each priority in turn: a copy on the stream on
    # which a step is captured would become part of the graph, and the captures use streams of normal priority.
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


class Ring(Generic[T]):
    """Passes slots from a producer, which calls begin and filled in turn, to a consumer: take and release in turn."""

    def __init__(self, slots: int, event: Callable[[], Event]) -> None:
        self._filled = [event() for _ in range(slots)]
        self._released = [event() for _ in range(slots)]
        self._free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[tuple[int, T] | BaseException | None] = queue.SimpleQueue()
        self._closed = False
        for slot in range(slots):
            self._free.put(slot)

    def begin(self) -> int | None:
        """Wait for a slot that the device no longer uses. None if the consumer has closed the ring."""
        slot = self._free.get()
        if slot is None or self._closed:
            return None
        self._released[slot].synchronize()  # returns at once if the event has not been recorded
        return slot

    def filled(self, slot: int, item: T, stream: Any) -> None:
        """`stream` has the work that fills the slot; `item` goes to the consumer with it."""
        self._filled[slot].record(stream)
        self._ready.put((slot, item))

    def end(self, error: BaseException | None = None) -> None:
        """The producer fills no more slots; take() raises the error, if there is one."""
        self._ready.put(error)

    def take(self, stream: Any) -> tuple[int, T] | None:
        """Wait for the next item; work on `stream` from now on finds its slot filled. None after the last item."""
        entry = self._ready.get()
        if isinstance(entry, BaseException):
            raise entry
        if entry is not None:
            self._filled[entry[0]].wait(stream)
        return entry

    def release(self, slot: int, stream: Any) -> None:
        """`stream` has all the work that uses the slot."""
        self._released[slot].record(stream)
        self._free.put(slot)

    def close(self) -> None:
        """The consumer takes no more slots."""
        self._closed = True
        self._free.put(None)


class Slot:
    """Buffers for one batch on the host and on the device, which grow with the largest batch so far."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reserve(0)

    def _reserve(self, size: int) -> None:
        self._host_buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        self._device_buffer = torch.empty(size, dtype=torch.uint8, device=self._device)

    def load(self, batch: Batch) -> Batch:
        """The batch in this slot, by one copy on the current stream, for which the host does not wait."""
        parts = {"images": batch.images.permute(0, 2, 3, 1), "labels": batch.labels, "flips": batch.flips}
        if batch.mix is not None:
            parts["mix"] = batch.mix
        offsets, end = {}, 0
        for name, part in parts.items():
            offsets[name] = end
            end += -(-part.numel() * part.element_size() // _ALIGNMENT) * _ALIGNMENT
        if end > len(self._host_buffer):
            self._reserve(end)
        for name, part in parts.items():
            _part(self._host_buffer, offsets[name], part).copy_(part)
        self._device_buffer[:end].copy_(self._host_buffer[:end], non_blocking=True)
        copied = {name: _part(self._device_buffer, offsets[name], part) for name, part in parts.items()}
        return replace(
            batch,
            images=as_channels_last(copied["images"]),
            labels=copied["labels"],
            flips=copied["flips"],
            mix=copied.get("mix"),
        )


def _part(buffer: Tensor, offset: int, like: Tensor) -> Tensor:
    """The bytes of the buffer at an offset as a tensor of the dtype and the shape of `like`."""
    size = like.numel() * like.element_size()
    return buffer[offset : offset + size].view(like.dtype).view(like.shape)


def copy_ahead(batches: Iterator[Batch], slots: list[Slot], streams: Streams) -> Generator[Batch]:
    """The batches, copied by a thread into the slots of a ring."""
    ring: Ring[Batch] = Ring(len(slots), streams.event)
    thread = threading.Thread(target=_fill, args=(ring, batches, slots, streams), name="udskd-copy", daemon=True)
    thread.start()
    try:
        while (entry := ring.take(streams.current())) is not None:
            slot, batch = entry
            yield replace(batch, labels=batch.labels.clone())  # callers may keep targets for longer than images
            ring.release(slot, streams.current())
    finally:
        ring.close()
        thread.join()
        done = streams.event()
        done.record(streams.current())
        done.synchronize()  # the next ring may get the memory of these slots


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
