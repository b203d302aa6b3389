"""Batches for training and evaluation, decoded by worker processes."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from udskd.config import DataConfig
from udskd.data import views
from udskd.data.batch import Batch, EvalViews, Parcel, Request, TrainViews
from udskd.data.sets import ImageSet, UnreadableImage, few
from udskd.errors import DataError

OnUnreadable = Callable[[str, str], None]
Unreadable = list[tuple[str, str]]


class _EpochRequests(Sampler[Request]):
    """The requests of one epoch from `start` on; the loader sets epoch and start before it iterates."""

    def __init__(self, n: int, rows: int, steps: int, seed: int, partners: int) -> None:
        self.n, self.rows, self.steps, self.seed, self.partners = n, rows, steps, seed, partners
        self.epoch, self.start = 0, 0

    def __iter__(self) -> Iterator[Request]:
        epoch, order = self.epoch, views.order(self.seed, self.epoch, self.n)
        for step in range(self.start, self.steps):
            places = step * self.rows + np.arange(self.rows + self.partners)
            yield Request(epoch, step, order[places % self.n])


class TrainLoader:
    """Shuffled random views, pure functions of (seed, epoch, step); the last, incomplete batch is dropped.

    A set smaller than a batch gives one batch of all its images. Unreadable images are left out of their batch, kept in
    `unreadable` (name to reason) and reported once each: to `on_unreadable(name, reason)`, or as a warning.
    """

    def __init__(
        self,
        images: ImageSet,
        config: DataConfig,
        *,
        seed: int,
        batch_size: int,
        on_unreadable: OnUnreadable | None = None,
        pin_memory: bool = False,
    ) -> None:
        self.images, self.config = images, config
        self.batch_size = min(batch_size, len(images))
        self.steps_per_epoch = len(images) // self.batch_size
        self.unreadable: dict[str, str] = {}
        self._on_unreadable = on_unreadable or _warn_unreadable
        partners = int(config.mixup > 0)
        self._requests = _EpochRequests(len(images), self.batch_size, self.steps_per_epoch, seed, partners)
        dataset = TrainViews(images, config, seed)
        self._loader = _data_loader(dataset, self._requests, config.workers, pin_memory)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, beginning with step `start_step`; one epoch at a time.

        Raises:
            DataError: more than config.max_unreadable of the images cannot be read, or a worker died.
        """
        self._requests.epoch, self._requests.start = epoch, start_step
        for parcel in _parcels(self._loader):
            if parcel.unreadable:
                self._note(parcel.unreadable)
            if parcel.batch is not None:
                yield parcel.batch

    def _note(self, unreadable: Unreadable) -> None:
        for name, reason in unreadable:
            if name not in self.unreadable:
                self.unreadable[name] = reason
                self._on_unreadable(name, reason)
        count, total, limit = len(self.unreadable), len(self.images), self.config.max_unreadable
        if count > limit * total:
            raise DataError(
                f"{count} of {total} training images ({count / total:.1%}) cannot be read, more than "
                f"data.max_unreadable = {limit:g} allows: {_listed(self.unreadable.items())}; "
                "mend or remove them, or raise the limit"
            )


class EvalLoader:
    """Every image once, in order, in its central view; the last batch may be smaller. Never skips an image."""

    def __init__(self, images: ImageSet, config: DataConfig, *, batch_size: int, pin_memory: bool = False) -> None:
        self.images = images
        starts = range(0, len(images), batch_size)
        requests = [Request(0, k, np.arange(i, min(i + batch_size, len(images)))) for k, i in enumerate(starts)]
        self._loader = _data_loader(EvalViews(images, config), requests, config.workers, pin_memory)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Raises DataError if an image cannot be read or a worker died."""
        for parcel in _parcels(self._loader):
            if parcel.batch is None:
                raise _evaluation_error(parcel.unreadable, len(self.images))
            yield parcel.batch


def check_readable(images: ImageSet, workers: int = 0) -> None:
    """Decode every image of an evaluation set once, so that a bad file shows before hours of training, not after.

    Raises:
        DataError: some cannot be read; it says how many and names the first few.
    """
    parts = np.array_split(np.arange(len(images)), 1 + len(images) // 64)
    requests = [Request(0, step, part) for step, part in enumerate(parts)]
    loader = _data_loader(_Probe(images), requests, workers, pin_memory=False)
    unreadable = [entry for parcel in _parcels(loader) for entry in parcel.unreadable]
    if unreadable:
        raise _evaluation_error(unreadable, len(images))


class _Probe(Dataset[Parcel]):
    """Decodes, and keeps only the complaints."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __getitem__(self, request: Request) -> Parcel:
        unreadable = []
        for index in request.indices.tolist():
            try:
                self.images.image(index)
            except UnreadableImage as error:
                unreadable.append((error.name, error.reason))
        return Parcel(None, unreadable)


def _evaluation_error(unreadable: Unreadable, total: int) -> DataError:
    return DataError(
        f"{len(unreadable)} of the {total} images for evaluation cannot be read, and evaluation never skips one: "
        f"{_listed(unreadable)}; mend or remove them"
    )


def _listed(unreadable: Iterable[tuple[str, str]]) -> str:
    return few(f"{name} ({reason})" for name, reason in unreadable)


def _warn_unreadable(name: str, reason: str) -> None:
    warnings.warn(f"skipping an image that cannot be read: {name} ({reason})", stacklevel=2)


def _data_loader(dataset: Dataset[Parcel], requests: Any, workers: int, pin_memory: bool) -> DataLoader[Parcel]:
    return DataLoader(
        dataset,
        batch_size=None,  # a request is already a batch
        sampler=requests,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_init_worker,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else every epoch would draw a seed from the global generator
    )


def _as_is(parcel: Any) -> Any:
    return parcel


def _init_worker(_: int) -> None:
    # Ctrl-C reaches every process of the group; the main process decides when the workers stop. SIGTERM, by which
    # Python takes leave of them at exit, ends them without the complaint that a killed worker would cause.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    torch.set_num_threads(1)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(0)


def _parcels(loader: DataLoader[Parcel]) -> Iterator[Parcel]:
    try:
        yield from loader
    except (RuntimeError, ConnectionError, EOFError) as error:
        # The last two are how the queue breaks when a worker dies while it hands over a tensor.
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(
            f"a process that decodes images died ({' '.join(str(error).split())}): too little memory or shared memory "
            "is the usual cause; use fewer processes (data.workers) or a smaller batch"
        ) from error
