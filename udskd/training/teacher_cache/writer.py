"""`udskd cache-teacher`: computes and writes the logits of every epoch that a teacher cache lacks."""

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
from udskd.models.zoo import Model
from udskd.progress import Display
from udskd.training.networks.inference import FrozenNetwork
from udskd.training.runtime.device import Runtime
from udskd.training.runtime.signals import Stopped, StopRequest
from udskd.training.teacher_cache import dependencies
from udskd.training.teacher_cache.folder import CacheFolder, Logits

_MAX_PENDING = 64
"""Batches whose logits are copied from the device together: a copy of each batch would make the host wait for each.
Unmeasured."""


def cache_teacher(config: Config, output: Path, epochs: int | None = None) -> None:
    """Write the logits of teacher.checkpoint for the first `epochs` epochs (training.epochs by default) of a run with
    these options into a folder. Epochs that are there already are kept.

    Raises subclasses of UdskdError for wrong options, data and files, and Interrupted after Ctrl-C or SIGTERM, when
    every complete epoch is saved.
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
        if writer is not None and isinstance(error.__cause__, OSError):  # the disk is at fault, not the file
            raise CheckpointError(f"{error}; {writer.saved()}; correct that, then run the same command again") from None
        raise
    except Exception as error:
        # The signal that stops this process may end a worker first, whose death is then only a consequence.
        if isinstance(error, Stopped) or stop.requested:
            saved = "nothing was computed yet" if writer is None else writer.saved()
            raise Interrupted(f"stopped; {saved}; the same command continues") from None
        raise
    finally:
        if writer is not None:
            writer.loader.close()


class _Writer:
    """Computes the missing epochs of a cache. The constructor checks the options, the files and the images."""

    def __init__(self, config: Config, output: Path, wanted: int, stop: StopRequest) -> None:
        self._config, self._wanted, self._stop, self._display = config, wanted, stop, Display()
        self._runtime, (self._images, _) = Runtime.from_config(config.training), open_sets(config.data)
        model = load_network(Path(config.teacher.checkpoint or ""), config.teacher, self._images.classes, config.data)
        self._display.line(f"teacher: {model.describe()}")
        dtype = self._runtime.dtype_of(config.teacher.precision)
        self._logits = FrozenNetwork(model.module, self._runtime, dtype, config.training.compile)
        self.loader = self._open_loader()
        self._last: Tensor | None = None
        self._folder = self._open_folder(output, model)

    def _open_loader(self) -> TrainLoader:
        training = self._config.training
        loader = TrainLoader(
            self._images,
            self._config.data,
            seed=self._config.seed,
            batch_size=training.batch_size,
            on_unreadable=self._on_unreadable,
            shard=Shard(parts=training.accumulate),
            device=self._runtime.device,
        )
        # Training drops the last, incomplete step. Here the loader fills it with the first images of the epoch again.
        loader.steps_per_epoch = -(-len(self._images) // loader.batch_size)
        return loader

    def _open_folder(self, output: Path, model: Model) -> CacheFolder:
        """The cache to continue or a new one, after its images have been compared with those of this run."""
        wanted = dependencies.collect(self._config, self._images, model, self._runtime)
        folder = CacheFolder.open_or_create(output, wanted)
        if warning := folder.missing_manifest_warning():
            self._display.line(warning)
        with self._display.steps("identify the images", len(self._images)) as advance:
            folder.check_images(self._images, "choose another --output", advance, self._stop.poll)
            folder.write_manifest(self._images, advance, self._stop.poll)
        return folder

    def run(self) -> None:
        """Compute the missing epochs and write each when it is complete."""
        begin, title = time.perf_counter(), "teacher's logits of epoch"
        missing = [epoch for epoch in range(self._wanted) if not self._folder.has_epoch(epoch)]
        for epoch in missing:
            since = time.perf_counter()
            self._folder.write_epoch(epoch, self._compute_epoch(epoch, f"{title} {epoch + 1}/{self._wanted}"))
            speed = len(self._images) / (time.perf_counter() - since)
            self._display.line(f"{title} {epoch + 1}/{self._wanted} | {speed:.0f} images/s")
        size = sum(self._folder.epoch_file(epoch).stat().st_size for epoch in range(self._wanted)) / 1e6
        took = f"written in {time.perf_counter() - begin:.0f} s" if missing else "which were there already"
        self._display.line(f"{self._folder.path}: {self._wanted} epochs, {size:,.1f} MB, {took}{self._saving()}")

    def saved(self) -> str:
        """How many epochs are saved, for messages."""
        return f"{self._folder.count_complete(self._wanted)} of {self._wanted} epochs are in {self._folder.path}"

    def _compute_epoch(self, epoch: int, title: str) -> Logits:
        """The logits [N, C] of an epoch, NaN for unreadable images."""
        runtime, classes, table = self._runtime, len(self._images.classes), _EpochLogits(self._images)
        steps = self.loader.steps_per_epoch * self.loader.shard.parts
        with (
            self._display.steps(title, steps) as advance,
            closing(runtime.prefetch(self.loader.epoch(epoch))) as batches,
        ):
            for batch in batches:
                if len(batch):
                    self._last, _ = normalize_batch(
                        batch, self._config.data, runtime.device, classes, runtime.memory_format
                    )
                    table.add(batch.indices, self._logits(self._last))
                advance()
                self._stop.poll()
        table.flush()
        assert np.count_nonzero(~table.seen) <= len(self.loader.unreadable), "the loader skipped readable images"
        return table.rows

    def _saving(self) -> str:
        """How long the teacher takes for an epoch, measured by one more pass over the last batch, for the last line."""
        if self._last is None:
            return ""
        self._runtime.synchronize()
        begin = time.perf_counter()
        self._logits(self._last)
        self._runtime.synchronize()
        seconds = (time.perf_counter() - begin) * len(self._images) / len(self._last)
        return f"; on this machine, a run with teacher.cache saves the teacher's pass: {seconds:.2g} s an epoch"

    def _on_unreadable(self, name: str, reason: str) -> None:
        self._display.line(f"leaving out an image that cannot be read: {name} ({reason})")


class _EpochLogits:
    """The logits of an epoch, collected batch by batch."""

    def __init__(self, images: ImageSet) -> None:
        self._images = images
        self.rows: Logits = np.full((len(images), len(images.classes)), np.nan, dtype=np.float16)
        self.seen = np.zeros(len(images), dtype=np.bool_)
        self._pending: list[tuple[Tensor, Tensor]] = []

    def add(self, indices: Tensor, logits: Tensor) -> None:
        """Add logits [B, C] on the device. Of an image that occurs twice, the first logits count."""
        self._pending.append((indices, logits.half()))
        if len(self._pending) == _MAX_PENDING:
            self.flush()

    def flush(self) -> None:
        """Copy the pending logits to the host. CheckpointError if one is NaN or exceeds float16."""
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
