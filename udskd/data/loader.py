"""The loaders of training and evaluation: which images are in which batch, and what happens to unreadable ones."""

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
from udskd.data.workers import Poll, Progress, Workers, make_workers, no_op
from udskd.errors import DataError, printable

OnUnreadable = Callable[[str, str], None]
_WHOLE = Shard()


class TrainLoader:
    """Shuffled random views, pure functions of (seed, epoch, step); the last, incomplete step is dropped.

    A step has `batch_size` images; `shard` selects those of this process and their number of batches. A set smaller
    than a step gives one step, of as many images as equal pieces allow. A batch has no rows for its unreadable images,
    so it may have 0 rows. `unreadable` maps their relative names to name and reason; each is reported once, to
    `on_unreadable(name, reason)` or as a warning.

    Raises:
        ConfigError: a step's images cannot be divided into equal pieces.
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
        shard: Shard = _WHOLE,
        device: torch.device | str = "cpu",
    ) -> None:
        self.images, self.config, self.seed, self.shard = images, config, seed, shard
        self.batch_size = _step_size(len(images), batch_size, shard)
        self.steps_per_epoch = len(images) // self.batch_size
        self.unreadable: dict[str, ReadError] = {}
        self._on_unreadable = on_unreadable or _warn_unreadable
        views, loader, count = TrainViews(images, config, seed), config.loader, config.workers
        self._workers: Workers = (
            ResidentTraining(views, torch.device(device), count)
            if loader == "resident"
            else make_workers(views, loader, count)
        )

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from `start_step` on, `shard.parts` in each step. Only one epoch can be active.

        Raises:
            DataError: the fraction of unreadable images exceeds config.max_unreadable, or a worker died.
        """
        return self._readable(self._workers.run(self._requests(epoch, start_step)))

    def prepare(self, progress: Progress = no_op, poll: Poll = no_op) -> None:
        """Decode a resident set now, with progress; otherwise its first epoch does so. `poll` may raise to stop it.

        Raises:
            DataError: the set needs more memory than is free.
        """
        self._workers.prepare(progress, poll)

    def close(self) -> None:
        """End processes and threads and free resident images; the next epoch starts them again."""
        self._workers.close()

    def _requests(self, epoch: int, start_step: int) -> Iterator[BatchRequest]:
        order = augment.permutation(self.seed, epoch, len(self.images))
        rows = np.arange(self.shard.rows(self.batch_size) + int(self.config.mixup > 0))
        for step in range(start_step, self.steps_per_epoch):
            for part in range(self.shard.parts):
                positions = step * self.batch_size + self.shard.begin(part, self.batch_size) + rows
                yield BatchRequest(epoch, step, order[positions % len(order)], part)

    def _readable(self, results: Iterator[BatchResult]) -> Iterator[Batch]:
        for batch, unreadable in results:
            if unreadable:
                self._report(unreadable)
            assert batch is not None
            yield batch

    def _report(self, unreadable: list[ReadError]) -> None:
        for name, reason in unreadable:
            if (image := self.images.strip_root(name)) not in self.unreadable:
                self.unreadable[image] = (name, reason)
                self._on_unreadable(name, reason)
        self.refuse_too_many(self.unreadable)

    def refuse_too_many(self, unreadable: Mapping[str, ReadError]) -> None:
        """DataError if these images, by relative name, are more than config.max_unreadable allows."""
        count, total, limit = len(unreadable), len(self.images), self.config.max_unreadable
        if count > limit * total:
            raise DataError(
                f"{count} of {total} training images ({count / total:.1%}) cannot be read, more than "
                f"data.max_unreadable = {limit:g} allows: {_list_errors(unreadable.values())}; "
                "repair or remove them, or raise the limit"
            )


def _step_size(total: int, batch_size: int, shard: Shard) -> int:
    """The images of one step: batch_size, or as many of a smaller set as equal pieces allow."""
    shard.rows(batch_size)  # raises ConfigError if the pieces of a step are unequal
    pieces = shard.ranks * shard.parts
    size = min(batch_size, total // pieces * pieces)
    if size == 0:
        raise DataError(f"{total} training images are too few for {pieces} processes x training.accumulate")
    return size


class EvalLoader:
    """The central views of all images once, in order. The last batch may be smaller; no image is left out.

    The set has `batches` batches whatever the shard is; this process gets batches rank, rank + ranks, and so on.
    """

    def __init__(
        self,
        images: ImageSet,
        config: DataConfig,
        *,
        batch_size: int,
        shard: Shard = _WHOLE,
        device: torch.device | str = "cpu",
    ) -> None:
        self.images, self.batch_size, self.shard = images, batch_size, shard
        self.batches = -(-len(images) // batch_size)
        self._numbers = range(shard.rank, self.batches, shard.ranks)
        views, loader, count = EvalViews(images, config), config.loader, config.workers
        self._workers: Workers = (
            ResidentEvaluation(views, torch.device(device), count)
            if loader == "resident"
            else make_workers(views, loader, count)
        )

    def __len__(self) -> int:
        """Number of batches of this process."""
        return len(self._numbers)

    def __iter__(self) -> Iterator[Batch]:
        """Raises DataError if an image cannot be read or a worker dies."""
        return self._complete(self._workers.run(self._requests()))

    def close(self) -> None:
        """End processes and threads and free resident images; the next evaluation starts them again."""
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


def check_readable(images: ImageSet, workers: int = 0, *, loader: str = "auto", shard: Shard = _WHOLE) -> None:
    """Decode this process's shard of an evaluation set, so that an unreadable file shows before the training.

    Raises:
        DataError: some images cannot be read; the message has their number and the first names.
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
        f"{_list_errors(unreadable)}; repair or remove them"
    )


def _list_errors(unreadable: Iterable[ReadError]) -> str:
    return abbreviate(f"{name} ({reason})" for name, reason in unreadable)


def _warn_unreadable(name: str, reason: str) -> None:
    warnings.warn(printable(f"skipping an image that cannot be read: {name} ({reason})"), stacklevel=2)
