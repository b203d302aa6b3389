"""How many images per second a loader gives, in any of its ways, of a sample of a set."""

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
    """Some images of another set, in any order, as often as wanted."""

    def __init__(
        self, images: ImageSet, indices: npt.NDArray[np.int64], unreadable: dict[str, str] | None = None
    ) -> None:
        self.images, self.indices = images, indices
        self.unreadable = {} if unreadable is None else unreadable
        """Reasons by name of those that were found unreadable; note() adds to it."""
        self.classes, self.labels = images.classes, images.labels[indices]

    def name(self, index: int) -> str:
        return self.images.name(int(self.indices[index]))

    def pixels(self, index: int) -> Pixels:
        return self.images.pixels(int(self.indices[index]))

    def area(self, index: int) -> int:
        return self.images.area(int(self.indices[index]))

    def repeated(self, count: int) -> Sample:
        """As many images, all of them about equally often but those that were found unreadable."""
        readable = [index for index in self.indices.tolist() if self.images.name(index) not in self.unreadable]
        return Sample(self.images, np.resize(np.array(readable, dtype=np.int64), count), self.unreadable)

    def note(self, name: str, reason: str) -> None:
        """Keep in mind that an image cannot be read."""
        self.unreadable[name] = reason

    def unreadable_line(self) -> str:
        """How many of these images were found unreadable, for a message; "" if none were."""
        if not self.unreadable:
            return ""
        (name, reason), count = next(iter(self.unreadable.items())), len(self.unreadable)
        return f"{count} of {len(self)} images ({count / len(self):.1%}) cannot be read, {name} first ({reason})"


def sample(images: ImageSet, count: int, seed: int = 0) -> Sample:
    """Random images of a set, none twice."""
    drawn = np.random.default_rng(seed).permutation(len(images))[:count]
    return Sample(images, drawn.astype(np.int64))


def steady(batches: Iterable[object], skip: int, count: int, clock: Callable[[], T]) -> tuple[T, T]:
    """What a clock shows when batch `skip` arrives, and when `count` more have. All batches are taken, so that nothing
    is at work afterwards.

    At both moments the workers are busy with the same number of further batches, if there are enough of them: neither
    the start nor the end of an epoch is in it, which in a sample would weigh more than in a whole set.
    """
    begin = end = clock()
    for number, _ in enumerate(batches):
        if number == skip:
            begin = clock()
        if number == skip + count:
            end = clock()
    return begin, end


def batches_for(seconds: float, expected: float, rows: int, workers: int, least: int = 4) -> tuple[int, int]:
    """How many batches to skip at the begin, and to time then: whole rounds of the workers."""
    workers = max(1, workers)
    skip = max(2, workers)
    rounds = max(1, round(seconds * expected / rows / workers), -(-least // workers))
    return skip, rounds * workers


class Window:
    """A loader whose rate can be measured again and again: of some images as often as it takes, whatever the mode."""

    def __init__(
        self, images: Sample, config: DataConfig, rows: int, skip: int, count: int, device: torch.device | str
    ) -> None:
        """rows: of a batch; skip, count: batches before and within what is timed."""
        self.skip, self.count, self._device = skip, count, device
        # resident images are decoded once each: those are not repeated, but loaded in several epochs
        source = images if config.loader == "resident" else images.repeated(rows * (2 * skip + count))
        config = replace(config, max_unreadable=1.0)
        self.loader = TrainLoader(source, config, seed=0, batch_size=rows, on_unreadable=images.note, device=device)
        self.images = count * self.loader.batch_size
        """Within what is timed, where all can be read."""

    def run(self, clock: Callable[[], T], take: Callable[[Batch], object] = len) -> tuple[T, T]:
        """The clock at the begin and at the end of what is timed; `take` is called with each batch, on the device."""
        return steady(map(take, self._batches()), self.skip, self.count, clock)

    def close(self) -> None:
        """End its threads or processes."""
        self.loader.close()

    def _batches(self) -> Iterator[Batch]:
        epochs = (self.loader.epoch(epoch) for epoch in itertools.count())
        batches = itertools.islice(itertools.chain.from_iterable(epochs), 2 * self.skip + self.count)
        return prefetch_to_device(batches, self._device)


def loader_rate(
    images: Sample, config: DataConfig, rows: int, seconds: float, expected: float, device: torch.device
) -> float:
    """Images per second of the loader that config asks for, when nobody does anything with the batches."""
    window = Window(images, config, rows, *batches_for(seconds, expected, rows, config.workers), device)
    try:
        begin, end = window.run(time.perf_counter)
        return window.images / (end - begin)
    finally:
        window.close()
