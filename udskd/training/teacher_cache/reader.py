"""The teacher cache of a run (`teacher.cache`): checked before the run begins, then read in place of the teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from udskd.data import ImageSet
from udskd.data.workers import Poll
from udskd.errors import ConfigError, DataError
from udskd.models.zoo import Model
from udskd.training.engine.session import Session
from udskd.training.teacher_cache import dependencies
from udskd.training.teacher_cache.folder import CacheFolder

_ADVICE = "leave teacher.cache out, or make another cache"


def open_cache(session: Session, model: Model) -> TeacherCache | None:
    """The cache that teacher.cache names, for this teacher, whose weights are final; None without that option.

    Raises ConfigError if the teacher has yet to be trained, or the cache has other dependencies or fewer epochs than
    the run; CheckpointError if a file is damaged. TeacherCache.check_images() compares the images' contents.
    """
    config = session.config
    if config.teacher.cache is None:
        return None
    trained = session.folder.path / "teacher.safetensors"
    if config.teacher.checkpoint is None and not trained.exists():
        raise ConfigError(
            "teacher.cache belongs to one trained teacher, but this run would train another: give the teacher of the "
            "cache as teacher.checkpoint"
        )
    folder = CacheFolder.open(Path(config.teacher.cache))
    if folder is None:
        raise ConfigError(
            f"there is no teacher cache at {config.teacher.cache}: udskd cache-teacher RECIPE.toml --output "
            f"{config.teacher.cache} makes one"
        )
    images = session.train.images
    folder.check_dependencies(dependencies.collect(config, images, model, session.runtime), _ADVICE)
    folder.check_epochs(config.training.epochs)
    return TeacherCache(folder, images, session.runtime.dtype_of(config.teacher.precision))


class TeacherCache:
    """(epoch, indices) -> logits, read from a cache's files on demand."""

    def __init__(self, folder: CacheFolder, images: ImageSet, dtype: torch.dtype) -> None:
        self._folder, self._images, self._dtype = folder, images, dtype
        self._epoch, self._rows = -1, np.empty((0, 0), dtype=np.float16)

    def __call__(self, epoch: int, indices: Tensor) -> Tensor:
        """Logits [B, C] on the host, for the images `indices` (int64 [B], on the host) in an epoch, counted from 0.

        They have the dtype of the teacher's own logits in this run. In float16 they have the same bits, in bfloat16
        the same bits down to a magnitude of 2^-17; in float32 they are rounded to float16.

        Raises CheckpointError if the epoch's file is damaged, DataError for an image that could not be read when the
        cache was written.
        """
        if epoch != self._epoch:
            self._epoch, self._rows = epoch, self._folder.read_epoch(epoch, verify=True)
        rows = np.asarray(self._rows[indices.numpy()])
        missing = indices.numpy()[np.isnan(rows[:, 0])]
        if missing.size:
            raise DataError(
                f"{self._images.name(int(missing[0]))} can be read now, but could not when the teacher cache "
                f"{self._folder.path} was written: make another one, or take the image out again"
            )
        return torch.from_numpy(rows).to(self._dtype)

    def missing_manifest_warning(self) -> str:
        """A line for a cache that cannot show whether the images are still the same, else ""."""
        return self._folder.missing_manifest_warning()

    def check_images(self, advance: Callable[[], object], poll: Poll) -> None:
        """ConfigError if the cache was computed from images of other contents."""
        self._folder.check_images(self._images, _ADVICE, advance, poll)
