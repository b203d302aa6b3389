"""The teacher's logits of every image's view in every epoch, computed once for several runs.

`udskd cache-teacher` writes DIR/cache.json, which says what the logits were made of, DIR/images.manifest, by which the
images are known again, and DIR/epoch-NNNN.npy for each epoch: fp16 [N, C] by the image's number, NaN where an image
could not be read. `teacher.cache` reads them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from udskd.config.schema import Config
from udskd.data import ImageSet, UnreadableImage, class_hash
from udskd.data.manifest import FILE as MANIFEST
from udskd.data.manifest import describe_changes, list_images, read_manifest, to_bytes
from udskd.data.workers import Poll, no_op
from udskd.errors import CheckpointError, ConfigError, DataError
from udskd.files import write_atomic
from udskd.models.checkpoints import fingerprint
from udskd.models.zoo import Model
from udskd.training.engine.session import Session
from udskd.training.runtime.device import Runtime

FORMAT = "udskd-teacher-cache-1"
_VIEW = ("image_size", "crop_scale", "flip", "mixup", "mean", "std")  # options of data that change what a teacher sees
_PROBES = 5
_OTHER_CACHE = "leave teacher.cache out, or make another cache"
Logits = npt.NDArray[np.float16]


def find(session: Session, model: Model) -> TeacherCache | None:
    """The logits that teacher.cache names, for this teacher (whose weights are final); None without that option.

    Raises ConfigError if the teacher has yet to be trained, or the logits are of another teacher, other images or
    views, another arithmetic or fewer epochs; CheckpointError if a file is damaged.
    """
    config = session.config
    if config.teacher.cache is None:
        return None
    own = session.folder.path / "teacher.safetensors"
    if config.teacher.checkpoint is None and not own.exists():
        raise ConfigError("teacher.cache needs the very teacher that it was made with: give it as teacher.checkpoint")
    folder = CacheFolder.open(Path(config.teacher.cache))
    if folder is None:
        raise ConfigError(
            f"there is no teacher cache at {config.teacher.cache}: udskd cache-teacher RECIPE.toml --output "
            f"{config.teacher.cache} makes one"
        )
    images = session.train.images
    folder.check(made_of(config, images, model, session.runtime), _OTHER_CACHE)
    folder.check_epochs(config.training.epochs)
    return TeacherCache(folder, images, session.runtime.dtype_of(config.teacher.precision))


class TeacherCache:
    """(epoch, indices) -> logits, read from the files of a cache as they are needed."""

    def __init__(self, folder: CacheFolder, images: ImageSet, dtype: torch.dtype) -> None:
        self._folder, self._images, self._dtype = folder, images, dtype
        self._epoch, self._rows = -1, np.empty((0, 0), dtype=np.float16)

    def __call__(self, epoch: int, indices: Tensor) -> Tensor:
        """Logits [B, C] of the images `indices` (int64 [B], on the host) in epoch `epoch`, counted from 0; on the host.

        They come in the dtype that the teacher itself would give in this run, so that the loss takes the same way. In
        fp16 they are the very bits, in bf16 down to 2^-17; in fp32 they are rounded to fp16.

        Raises CheckpointError if the epoch's file is damaged, DataError for an image that could not be read when the
        logits were computed.
        """
        if epoch != self._epoch:
            self._epoch, self._rows = epoch, self._folder.rows(epoch, verify=True)
        rows = np.asarray(self._rows[indices.numpy()])
        missing = indices.numpy()[np.isnan(rows[:, 0])]
        if missing.size:
            raise DataError(
                f"{self._images.name(int(missing[0]))} can be read now, but could not when the teacher cache "
                f"{self._folder.path} was written: make another one, or take the image out again"
            )
        return torch.from_numpy(rows).to(self._dtype)

    def unknown_images(self) -> str:
        """A line for a cache that cannot tell whether the images are still the same; "" if it can."""
        return self._folder.unknown_images()

    def check_images(self, advance: Callable[[], object], poll: Poll) -> None:
        """ConfigError if an image's content is not the one that the logits were computed of."""
        self._folder.check_images(self._images, _OTHER_CACHE, advance, poll)


@dataclass
class CacheFolder:
    """A cache's files."""

    path: Path
    made_of: dict[str, Any]
    """What the logits depend on, by name, as JSON gives it back."""
    sums: dict[str, str] = field(default_factory=dict)
    """SHA-256 (hex) of each complete epoch's logits, by the name of its file."""

    @staticmethod
    def open(path: Path) -> CacheFolder | None:
        """The cache in a folder, None if there is none. CheckpointError if cache.json cannot be understood."""
        file = path / "cache.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}, not {FORMAT!r}")
            return CacheFolder(path, dict(content["made_of"]), dict(content["epochs"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{file} is no teacher cache's, or damaged ({error}): make the cache anew") from None

    @staticmethod
    def begin(path: Path, made_of: dict[str, Any]) -> CacheFolder:
        """The cache in a folder, to be continued, or a new one.

        Raises ConfigError if it is of something else, or the folder is not a cache's; CheckpointError for the disk.
        """
        folder = CacheFolder.open(path)
        if folder is not None:
            folder.check(made_of, "choose another --output")
            return folder
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(
                f"{path} exists and is neither an empty folder nor a teacher cache: choose another --output"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make the folder {path}: {error.strerror or error}") from error
        folder = CacheFolder(path, made_of)
        folder._save({})
        return folder

    def check(self, wanted: dict[str, Any], advice: str) -> None:
        """ConfigError naming the first thing that the logits depend on and that is otherwise than wanted."""
        for name, value in wanted.items():
            if not _agree(self.made_of.get(name), value):
                raise ConfigError(
                    f"{self.path} was made with {name} = {self.made_of.get(name)!r}, not {value!r}: {advice}"
                )

    @property
    def knows_images(self) -> bool:
        """Whether the cache has a manifest of its images: those of earlier versions have none."""
        return (self.path / MANIFEST).exists()

    def check_images(
        self, images: ImageSet, advice: str, advance: Callable[[], object] = no_op, poll: Poll = no_op
    ) -> None:
        """ConfigError if the logits are known to be of other training images."""
        known = read_manifest(self.path / MANIFEST)
        if known is None:
            return
        changes = describe_changes(known, list_images({"train": images}, known, advance, poll))
        if changes:
            raise ConfigError(f"{self.path} was made of other images than there are now: {changes}: {advice}")

    def unknown_images(self) -> str:
        """A line for logits without a manifest; "" if there are none, or it is there."""
        if self.knows_images or not self.sums:
            return ""
        return f"{self.path} has no list of its images: that they are still the same is not checked"

    def note_images(self, images: ImageSet, advance: Callable[[], object] = no_op, poll: Poll = no_op) -> None:
        """Write the manifest of the training images, unless there is one. CheckpointError for the disk.

        Not where there are logits without it: of which images they were computed is not known.
        """
        if not self.knows_images and not self.sums:
            write_atomic(self.path / MANIFEST, to_bytes(list_images({"train": images}, None, advance, poll)))

    def check_epochs(self, wanted: int) -> None:
        """ConfigError unless the first `wanted` epochs are there; CheckpointError if the file of one is damaged."""
        complete = self.complete(wanted)
        if complete < wanted:
            raise ConfigError(
                f"{self.path} holds {complete} epochs without a gap, training.epochs is {wanted}: run udskd "
                f"cache-teacher again with --epochs {wanted}"
            )
        for epoch in range(wanted):
            self.rows(epoch)

    def complete(self, wanted: int) -> int:
        """How many of the first `wanted` epochs are there without a gap."""
        return next((epoch for epoch in range(wanted) if not self.holds(epoch)), wanted)

    def holds(self, epoch: int) -> bool:
        """Whether an epoch is complete; who deletes its file has it computed again."""
        return self.file(epoch).name in self.sums and self.file(epoch).exists()

    def file(self, epoch: int) -> Path:
        """Where an epoch, counted from 0, lies."""
        return self.path / f"epoch-{epoch:04d}.npy"

    def rows(self, epoch: int, verify: bool = False) -> Logits:
        """The logits of an epoch, fp16 [N, C], as a map of its file. CheckpointError if it is truncated or, if that is
        to be verified, altered."""
        file, shape = self.file(epoch), (self.made_of["data.images"], self.made_of["data.classes"])
        try:
            rows: Logits = np.load(file, mmap_mode="r")
            whole = rows.dtype == np.float16 and rows.shape == shape
            whole = whole and (not verify or _sum(rows) == self.sums[file.name])
        except (OSError, ValueError, EOFError):
            whole = False
        if not whole:
            raise CheckpointError(
                f"{file} is truncated or altered: delete it and run udskd cache-teacher again, which "
                "computes what is missing"
            )
        return rows

    def add(self, epoch: int, rows: Logits) -> None:
        """Write an epoch's logits [N, C]; it is there completely, or not at all. CheckpointError for the disk."""
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(rows))
        write_atomic(self.file(epoch), header.getvalue(), rows.reshape(-1).view(np.uint8).data)
        self._save({**self.sums, self.file(epoch).name: _sum(rows)})

    def _save(self, sums: dict[str, str]) -> None:
        content = {"format": FORMAT, "made_of": self.made_of, "epochs": dict(sorted(sums.items()))}
        write_atomic(self.path / "cache.json", (json.dumps(content, indent=2) + "\n").encode())
        self.sums = sums


def made_of(config: Config, images: ImageSet, model: Model, runtime: Runtime) -> dict[str, Any]:
    """Everything that the logits depend on but the images' contents, by name, as JSON gives it back.

    Not among it is what changes no more than their rounding: device, batch size, memory format, compilation.
    """
    values = {
        "seed": config.seed,
        "teacher.model": model.name,
        "teacher.stem": model.stem,
        "teacher.sha256": fingerprint(model.module.state_dict()),
        "data.classes": len(images.classes),
        "data.class_hash": class_hash(images.classes),
        "data.images": len(images),
        "data.images_sha256": _names_and_labels(images),
        "data.areas": _areas(images),
        **{f"data.{name}": getattr(config.data, name) for name in _VIEW},
        "teacher.precision": str(runtime.dtype_of(config.teacher.precision)).removeprefix("torch."),
    }
    result: dict[str, Any] = json.loads(json.dumps(values))
    return result


def _names_and_labels(images: ImageSet) -> str:
    """SHA-256 of the images' names from their class folder on, wherever that is, and of their labels, in order."""
    names = [images.name(index) for index in range(len(images))]
    begin = max(0, _shared(names) - _shared([f"{name}/" for name in images.classes]))
    digest = hashlib.sha256()
    for name, label in zip(names, images.labels.tolist(), strict=True):
        digest.update(f"{name[begin:].replace(os.sep, '/')}\t{label}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _shared(texts: Sequence[str]) -> int:
    """With how many characters all begin alike."""
    return len(os.path.commonprefix([min(texts), max(texts)]))  # noqa: RUF071 (characters are meant)


def _areas(images: ImageSet) -> Sequence[int | None]:
    """Pixels of a few images, None for unreadable ones: the same tree in another resolution has the same names."""
    areas: list[int | None] = []
    for index in np.linspace(0, len(images) - 1, _PROBES).astype(int).tolist():
        try:
            areas.append(images.area(index))
        except UnreadableImage:
            areas.append(None)
    return areas


def _agree(old: Any, new: Any) -> bool:
    """Whether two values are the same, as far as both are known."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return all(a == b or a is None or b is None for a, b in zip(old, new, strict=True))
    return bool(old == new)


def _sum(rows: Logits) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data).hexdigest()
