"""Batches for training and evaluation: what they hold, whoever makes them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch

from udskd.config.schema import DataConfig
from udskd.data import augment
from udskd.data.batch import Batch, BatchRequest, BatchResult, EvalViews, ReadCheck, ReadError, TrainViews
from udskd.data.dataset import ImageSet, abbreviate
from udskd.data.resident import ResidentEvaluation, ResidentTraining
from udskd.data.shard import Shard
from udskd.data.workers import Poll, Progress, make_workers, no_op
from udskd.errors import DataError

OnUnreadable = Callable[[str, str], None]
_ALONE = Shard()


class TrainLoader:
    """Shuffled random views, pure functions of (seed, epoch, step); the last, incomplete step is dropped.

    A step has `batch_size` images, of which `shard` says which are ours and in how many batches. A set smaller than a
    step gives one step of all its images (that can be cut into equal pieces). Unreadable images are left out of their
    batch, which may leave it with 0 rows; they are kept in `unreadable` (relative name to name and reason) and reported
    once each: to `on_unreadable(name, reason)`, or as a warning.

    Raises:
        ConfigError: a step's images cannot be cut into equal pieces.
        DataError: there are fewer images than pieces.
    """

    def __init__(
        self,
        images: ImageSet,
        config: DataConfig,
        *,
        seed: int,
        batch_size: int,
        on_unreadable: OnUnreadable | None = None,
        shard: Shard = _ALONE,
        device: torch.device | str = "cpu",
    ) -> None:
        self.images, self.config, self.seed, self.shard = images, config, seed, shard
        shard.rows(batch_size)
        pieces = shard.ranks * shard.parts
        self.batch_size = min(batch_size, len(images) // pieces * pieces)
        if self.batch_size == 0:
            raise DataError(f"{len(images)} training images are too few for {pieces} processes x training.accumulate")
        self.steps_per_epoch = len(images) // self.batch_size
        self.unreadable: dict[str, ReadError] = {}
        self._on_unreadable = on_unreadable or _warn_unreadable
        work = TrainViews(images, config, seed)
        self._workers = (
            ResidentTraining(work, torch.device(device), config.workers)
            if config.loader == "resident"
            else make_workers(work, config.loader, config.workers)
        )

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, `shard.parts` of each step, beginning with `start_step`; one epoch at a time.

        Raises:
            DataError: more than config.max_unreadable of the images cannot be read, or a worker died.
        """
        return self._readable(self._workers.run(self._requests(epoch, start_step)))

    def prepare(self, progress: Progress = no_op, poll: Poll = no_op) -> None:
        """Decode the set, if it is to be resident, else the first epoch does so, unseen. What poll() raises stops it.

        Raises:
            DataError: it needs more memory than is free.
        """
        self._workers.prepare(progress, poll)

    def close(self) -> None:
        """End processes and threads and forget resident images; the next epoch begins anew."""
        self._workers.close()

    def _requests(self, epoch: int, start_step: int) -> Iterator[BatchRequest]:
        order = augment.permutation(self.seed, epoch, len(self.images))
        rows = np.arange(self.shard.rows(self.batch_size) + int(self.config.mixup > 0))
        for step in range(start_step, self.steps_per_epoch):
            for part in range(self.shard.parts):
                places = step * self.batch_size + self.shard.begin(part, self.batch_size) + rows
                yield BatchRequest(epoch, step, order[places % len(order)], part)

    def _readable(self, results: Iterator[BatchResult]) -> Iterator[Batch]:
        for batch, unreadable in results:
            if unreadable:
                self._note(unreadable)
            assert batch is not None
            yield batch

    def _note(self, unreadable: list[ReadError]) -> None:
        for name, reason in unreadable:
            if (image := self.images.relative(name)) not in self.unreadable:
                self.unreadable[image] = (name, reason)
                self._on_unreadable(name, reason)
        self.refuse_too_many(self.unreadable)

    def refuse_too_many(self, unreadable: Mapping[str, ReadError]) -> None:
        """DataError if so many images (by relative name) are more than config.max_unreadable allows."""
        count, total, limit = len(unreadable), len(self.images), self.config.max_unreadable
        if count > limit * total:
            raise DataError(
                f"{count} of {total} training images ({count / total:.1%}) cannot be read, more than "
                f"data.max_unreadable = {limit:g} allows: {_listed(unreadable.values())}; "
                "mend or remove them, or raise the limit"
            )


class EvalLoader:
    """Every image once, in order, in its central view; the last batch may be smaller. Never skips an image.

    Of the `batches` batches, those whose number leaves the remainder shard.rank by shard.ranks are ours; where they
    begin and end does not depend on it.
    """

    def __init__(
        self,
        images: ImageSet,
        config: DataConfig,
        *,
        batch_size: int,
        shard: Shard = _ALONE,
        device: torch.device | str = "cpu",
    ) -> None:
        self.images, self.batch_size, self.shard = images, batch_size, shard
        self.batches = -(-len(images) // batch_size)
        self._numbers = range(shard.rank, self.batches, shard.ranks)
        work = EvalViews(images, config)
        self._workers = (
            ResidentEvaluation(work, torch.device(device), config.workers)
            if config.loader == "resident"
            else make_workers(work, config.loader, config.workers)
        )

    def __len__(self) -> int:
        """Number of our batches."""
        return len(self._numbers)

    def __iter__(self) -> Iterator[Batch]:
        """Raises DataError if an image cannot be read or a worker died."""
        return self._complete(self._workers.run(self._requests()))

    def close(self) -> None:
        """End processes and threads and forget resident images; the next evaluation begins anew."""
        self._workers.close()

    def _requests(self) -> Iterator[BatchRequest]:
        for number in self._numbers:
            begin = number * self.batch_size
            yield BatchRequest(0, number, np.arange(begin, min(begin + self.batch_size, len(self.images))))

    def _complete(self, results: Iterator[BatchResult]) -> Iterator[Batch]:
        for batch, unreadable in results:
            if batch is None:
                raise _evaluation_error(unreadable, len(self.images))
            yield batch


def check_readable(images: ImageSet, workers: int = 0, *, loader: str = "auto", shard: Shard = _ALONE) -> None:
    """Decode our shard of an evaluation set once, so that a bad file shows before hours of training, not after.

    Raises:
        DataError: some cannot be read; it says how many and names the first few.
    """
    parts = np.array_split(np.arange(len(images)), 1 + len(images) // 64)
    decoders = make_workers(ReadCheck(images), loader, workers)
    try:
        requests = [BatchRequest(0, step, part) for step, part in enumerate(parts)]
        results = decoders.run(requests[shard.rank :: shard.ranks])
        unreadable = [entry for result in results for entry in result.unreadable]
    finally:
        decoders.close()
    if unreadable:
        raise _evaluation_error(unreadable, len(images))


def _evaluation_error(unreadable: list[ReadError], total: int) -> DataError:
    return DataError(
        f"{len(unreadable)} of the {total} images for evaluation cannot be read, and evaluation never skips one: "
        f"{_listed(unreadable)}; mend or remove them"
    )


def _listed(unreadable: Iterable[ReadError]) -> str:
    return abbreviate(f"{name} ({reason})" for name, reason in unreadable)


def _warn_unreadable(name: str, reason: str) -> None:
    warnings.warn(f"skipping an image that cannot be read: {name} ({reason})", stacklevel=2)
