"""Images per second of a loader, measured on a sample of a set."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from udskd.config.schema import DataConfig
from udskd.data import Batch, ImageSet, TrainLoader
from udskd.data.dataset import Pixels
from udskd.data.prefetch import prefetch_to_device

T = TypeVar("T")


class Sample(ImageSet):
    """Images of another set, in any order; an image may be repeated."""

    def __init__(
        self, images: ImageSet, indices: npt.NDArray[np.int64], unreadable: dict[str, str] | None = None
    ) -> None:
        self.images, self.indices = images, indices
        self.unreadable = {} if unreadable is None else unreadable
        """Reasons by name of the images that could not be read, which note() adds."""
        self.classes, self.labels = images.classes, images.labels[indices]

    def name(self, index: int) -> str:
        return self.images.name(int(self.indices[index]))

    def pixels(self, index: int) -> Pixels:
        return self.images.pixels(int(self.indices[index]))

    def area(self, index: int) -> int:
        return self.images.area(int(self.indices[index]))

    def repeated(self, count: int) -> Sample:
        """`count` images: the readable ones in turn."""
        readable = [index for index in self.indices.tolist() if self.images.name(index) not in self.unreadable]
        return Sample(self.images, np.resize(np.array(readable, dtype=np.int64), count), self.unreadable)

    def note(self, name: str, reason: str) -> None:
        """Record that an image cannot be read."""
        self.unreadable[name] = reason

    def unreadable_line(self) -> str:
        """A line about the unreadable images, "" if there are none."""
        if not self.unreadable:
            return ""
        (name, reason), count = next(iter(self.unreadable.items())), len(self.unreadable)
        return f"{count} of {len(self)} images ({count / len(self):.1%}) cannot be read, {name} first ({reason})"


def sample(images: ImageSet, count: int, seed: int = 0) -> Sample:
    """Random images of a set, without repetition."""
    drawn = np.random.default_rng(seed).permutation(len(images))[:count]
    return Sample(images, drawn.astype(np.int64))


def time_steady_state(batches: Iterable[object], skip: int, count: int, clock: Callable[[], T]) -> tuple[T, T]:
    """The clock when batch `skip` arrives, and when `count` more have arrived. All batches are consumed, so that no
    worker continues afterwards.

    At both times the workers are busy with the same number of further batches, if enough batches follow. So the time
    contains neither the start nor the end of an epoch, which weigh more in a sample than in the whole set.
    """
    begin = end = clock()
    for number, _ in enumerate(batches):
        if number == skip:
            begin = clock()
        if number == skip + count:
            end = clock()
    return begin, end


def measurement_length(seconds: float, expected: float, rows: int, workers: int, least: int = 4) -> tuple[int, int]:
    """The numbers of batches to skip and to time: whole rounds of the workers."""
    workers = max(1, workers)
    skip = max(2, workers)
    rounds = max(1, round(seconds * expected / rows / workers), -(-least // workers))
    return skip, rounds * workers


class LoaderMeasurement:
    """A loader whose rate can be measured repeatedly. It repeats the images as often as the measurement needs."""

    def __init__(
        self, images: Sample, config: DataConfig, rows: int, skip: int, count: int, device: torch.device | str
    ) -> None:
        """rows: of a batch; skip, count: batches before and within the measurement."""
        self.skip, self.count, self._device = skip, count, device
        # resident images are decoded once each: they are not repeated, but loaded in several epochs
        source = images if config.loader == "resident" else images.repeated(rows * (2 * skip + count))
        config = replace(config, max_unreadable=1.0)
        self.loader = TrainLoader(source, config, seed=0, batch_size=rows, on_unreadable=images.note, device=device)
        self.images = count * self.loader.batch_size
        """Images within the measurement, if all can be read."""

    def run(self, clock: Callable[[], T], take: Callable[[Batch], object] = len) -> tuple[T, T]:
        """The clock at both ends of the measurement. `take` is called with each batch on the device."""
        return time_steady_state(map(take, self._batches()), self.skip, self.count, clock)

    def close(self) -> None:
        """End the loader's threads or processes."""
        self.loader.close()

    def _batches(self) -> Iterator[Batch]:
        epochs = (self.loader.epoch(epoch) for epoch in itertools.count())
        batches = itertools.islice(itertools.chain.from_iterable(epochs), 2 * self.skip + self.count)
        return prefetch_to_device(batches, self._device)


def loader_rate(
    images: Sample, config: DataConfig, rows: int, seconds: float, expected: float, device: torch.device
) -> float:
    """Images per second of the loader that config selects, if the batches are not used."""
    skip, count = measurement_length(seconds, expected, rows, config.workers)
    measurement = LoaderMeasurement(images, config, rows, skip, count, device)
    try:
        begin, end = measurement.run(time.perf_counter)
        return measurement.images / (end - begin)
    finally:
        measurement.close()
