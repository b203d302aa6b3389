"""`udskd cache-teacher`: one pass of the teacher over every image of every epoch, for several runs."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from udskd import methods
from udskd.config.schema import Config
from udskd.data import ImageSet, Shard, TrainLoader, normalize_batch, open_sets
from udskd.errors import CheckpointError, ConfigError, Interrupted
from udskd.models.loading import load_network
from udskd.progress import Display
from udskd.training.networks.inference import FrozenNetwork
from udskd.training.runtime.device import Runtime
from udskd.training.runtime.signals import Stopped, StopRequest
from udskd.training.teacher_cache.reader import CacheFolder, Logits, made_of

_PENDING = 64  # batches whose logits stay on the device, so that not every one is waited for


def cache_teacher(config: Config, output: Path, epochs: int | None = None) -> None:
    """Write the logits of teacher.checkpoint for the first `epochs` epochs (training.epochs by default) of a run with
    these options into a folder, or those of them that are not there yet.

    Any method may read them, with any batch size, workers and number of processes.

    Raises UdskdError's subclasses: for options, data, files, and Interrupted after Ctrl-C or SIGTERM, when every
    complete epoch is saved.
    """
    methods.check(config)
    wanted = config.training.epochs if epochs is None else epochs
    if wanted < 1:
        raise ConfigError(f"--epochs must be at least 1, got {wanted}")
    if config.teacher.checkpoint is None:
        raise ConfigError("there is no teacher to cache: give the weights of a trained one as teacher.checkpoint")
    if os.environ.get("RANK") and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ConfigError("udskd cache-teacher is for one process: start it without torchrun")
    with StopRequest() as stop:
        _write(config, output, wanted, stop)


def _write(config: Config, output: Path, wanted: int, stop: StopRequest) -> None:
    writer: _Writer | None = None
    try:
        writer = _Writer(config, output, wanted, stop)
        writer.run()
    except CheckpointError as error:
        if writer is not None and isinstance(error.__cause__, OSError):  # the disk's fault, not a file's
            raise CheckpointError(f"{error}; {writer.saved()}; mend that and run the same command again") from None
        raise
    except Exception as error:
        if isinstance(error, Stopped) or stop.requested:  # a worker that died of the same signal is not the news
            saved = "nothing was computed yet" if writer is None else writer.saved()
            raise Interrupted(f"stopped; {saved}; the same command continues") from None
        raise
    finally:
        if writer is not None:
            writer.loader.close()


class _Writer:
    """Computes what a cache lacks. Everything that can be wrong shows when it is made."""

    def __init__(self, config: Config, output: Path, wanted: int, stop: StopRequest) -> None:
        training = config.training
        self._data, self._wanted, self._stop, self._display = config.data, wanted, stop, Display()
        self._runtime, (self._images, _) = Runtime.from_config(training), open_sets(config.data)
        model = load_network(Path(config.teacher.checkpoint or ""), config.teacher, self._images.classes, config.data)
        self._display.line(f"teacher: {model.describe()}")
        dtype = self._runtime.dtype_of(config.teacher.precision)
        self._logits = FrozenNetwork(model.module, self._runtime, dtype, training.compile)
        self.loader = TrainLoader(
            self._images,
            config.data,
            seed=config.seed,
            batch_size=training.batch_size,
            on_unreadable=self._on_unreadable,
            shard=Shard(parts=training.accumulate),
            device=self._runtime.device,
        )
        # Training drops the last, incomplete step; here it is completed with the first images of the order, once more.
        self.loader.steps_per_epoch = -(-len(self._images) // self.loader.batch_size)
        self._last: Tensor | None = None
        self._folder = CacheFolder.begin(output, made_of(config, self._images, model, self._runtime))
        if unknown := self._folder.unknown_images():
            self._display.line(unknown)
        with self._display.steps("identify the images", len(self._images)) as advance:
            self._folder.check_images(self._images, "choose another --output", advance, stop.poll)
            self._folder.note_images(self._images, advance, stop.poll)

    def run(self) -> None:
        """The epochs that are not there, each written when it is complete."""
        begin, title = time.perf_counter(), "teacher's logits of epoch"
        missing = [epoch for epoch in range(self._wanted) if not self._folder.holds(epoch)]
        for epoch in missing:
            since = time.perf_counter()
            self._folder.add(epoch, self._epoch(epoch, f"{title} {epoch + 1}/{self._wanted}"))
            speed = len(self._images) / (time.perf_counter() - since)
            self._display.line(f"{title} {epoch + 1}/{self._wanted} | {speed:.0f} images/s")
        size = sum(self._folder.file(epoch).stat().st_size for epoch in range(self._wanted)) / 1e6
        took = f"written in {time.perf_counter() - begin:.0f} s" if missing else "which were there already"
        self._display.line(f"{self._folder.path}: {self._wanted} epochs, {size:,.1f} MB, {took}{self._saving()}")

    def saved(self) -> str:
        """What is there, in words."""
        return f"{self._folder.complete(self._wanted)} of {self._wanted} epochs are in {self._folder.path}"

    def _epoch(self, epoch: int, title: str) -> Logits:
        """Logits [N, C], NaN for unreadable images."""
        runtime, classes, table = self._runtime, len(self._images.classes), _Table(self._images)
        steps = self.loader.steps_per_epoch * self.loader.shard.parts
        with (
            self._display.steps(title, steps) as advance,
            closing(runtime.prefetch(self.loader.epoch(epoch))) as batches,
        ):
            for batch in batches:
                if len(batch):
                    self._last, _ = normalize_batch(batch, self._data, runtime.device, classes, runtime.memory_format)
                    table.put(batch.indices, self._logits(self._last))
                advance()
                self._stop.poll()
        table.flush()
        assert np.count_nonzero(~table.seen) <= len(self.loader.unreadable), "the loader left images out"
        return table.rows

    def _saving(self) -> str:
        """What the teacher's pass over an epoch takes, measured on one more batch of it."""
        if self._last is None:
            return ""
        self._runtime.synchronize()
        begin = time.perf_counter()
        self._logits(self._last)
        self._runtime.synchronize()
        seconds = (time.perf_counter() - begin) * len(self._images) / len(self._last)
        return f"; teacher.cache saves a run here the teacher's pass, {seconds:.2g} s an epoch"

    def _on_unreadable(self, name: str, reason: str) -> None:
        self._display.line(f"leaving out an image that cannot be read: {name} ({reason})")


class _Table:
    """The logits of an epoch, as they come in."""

    def __init__(self, images: ImageSet) -> None:
        self._images = images
        self.rows: Logits = np.full((len(images), len(images.classes)), np.nan, dtype=np.float16)
        self.seen = np.zeros(len(images), dtype=np.bool_)
        self._pending: list[tuple[Tensor, Tensor]] = []

    def put(self, indices: Tensor, logits: Tensor) -> None:
        """Take in logits [B, C] on the device. Of an image that comes twice, the first stay."""
        self._pending.append((indices, logits.half()))
        if len(self._pending) == _PENDING:
            self.flush()

    def flush(self) -> None:
        """Fetch what is still on the device. CheckpointError if it is more than fp16 holds, or NaN."""
        if not self._pending:
            return
        indices, first = np.unique(torch.cat([i for i, _ in self._pending]).numpy(), return_index=True)
        values = torch.cat([logits for _, logits in self._pending]).cpu().numpy()[first]
        self._pending = []
        bad = indices[~np.isfinite(values).all(1)]
        if bad.size:
            raise CheckpointError(
                f"the teacher's logits of {self._images.name(int(bad[0]))} are NaN or above fp16's 65504: "
                "teacher.checkpoint is of a training that failed"
            )
        new = ~self.seen[indices]
        self.rows[indices[new]] = values[new]
        self.seen[indices] = True
