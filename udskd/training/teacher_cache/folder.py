"""The files of a teacher cache: read, verified and written."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import numpy.typing as npt

from udskd.config.validation import Count, Invalid, parse_json, reading
from udskd.data import ImageSet
from udskd.data.manifest import FILE as MANIFEST
from udskd.data.manifest import describe_changes, list_images, read_manifest, to_bytes
from udskd.data.workers import Poll, no_op
from udskd.errors import CheckpointError, ConfigError
from udskd.files import make_folder, open_regular, read_regular, write_atomic
from udskd.training.teacher_cache.dependencies import Dependencies, first_difference

FORMAT = "udskd-teacher-cache-1"
DESCRIPTION = "cache.json"
Logits = npt.NDArray[np.float16]
_NO_CACHE = "does not describe a teacher cache, or is damaged"
_DELETE = "delete it and run udskd cache-teacher again, which computes what is missing"
_MadeOf = TypedDict("_MadeOf", {"data.images": Count, "data.classes": Count})


class _Description(TypedDict):
    """cache.json."""

    format: Literal["udskd-teacher-cache-1"]
    made_of: _MadeOf
    epochs: dict[str, str]


@dataclass
class CacheFolder:
    """A teacher cache on disk. The package's docstring lists its files."""

    path: Path
    dependencies: Dependencies
    """What the logits were computed with ("made_of" in cache.json)."""
    checksums: dict[str, str] = field(default_factory=dict)
    """SHA-256 (hex) of the logits of each complete epoch, by the name of its file ("epochs" in cache.json)."""

    @staticmethod
    def open(path: Path) -> CacheFolder | None:
        """The cache in a folder, None if there is none. CheckpointError if cache.json cannot be read."""
        file = path / DESCRIPTION
        try:
            with reading(file, CheckpointError, "make the cache anew", damaged=_NO_CACHE):
                content = parse_json(read_regular(file), _Description)
                return CacheFolder(path, content["made_of"], content["epochs"])
        except FileNotFoundError:
            return None

    @staticmethod
    def open_or_create(path: Path, dependencies: Dependencies) -> CacheFolder:
        """The cache in a folder, or a new one without epochs.

        Raises ConfigError if the cache has other dependencies, or the folder holds something else; CheckpointError if
        it cannot be written.
        """
        folder = CacheFolder.open(path)
        if folder is not None:
            folder.check_dependencies(dependencies, "choose another --output")
            return folder
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(
                f"{path} exists and is neither an empty folder nor a teacher cache: choose another --output"
            )
        make_folder(path)
        folder = CacheFolder(path, dependencies)
        folder._write_description({})
        return folder

    def check_dependencies(self, wanted: Dependencies, advice: str) -> None:
        """ConfigError naming the first dependency that differs, with both values and the advice."""
        name = first_difference(self.dependencies, wanted)
        if name is not None:
            raise ConfigError(
                f"{self.path} was made with {name} = {self.dependencies.get(name)!r}, not {wanted[name]!r}: {advice}"
            )

    @property
    def has_manifest(self) -> bool:
        """Whether the cache lists its images. Earlier versions wrote caches without a list."""
        return (self.path / MANIFEST).exists()

    def check_images(
        self, images: ImageSet, advice: str, advance: Callable[[], object] = no_op, poll: Poll = no_op
    ) -> None:
        """ConfigError if the manifest lists other training images than these."""
        recorded = read_manifest(self.path / MANIFEST)
        if recorded is None:
            return
        changes = describe_changes(recorded, list_images({"train": images}, recorded, advance, poll))
        if changes:
            raise ConfigError(f"{self.path} was computed from other images than there are now: {changes}: {advice}")

    def missing_manifest_warning(self) -> str:
        """A line for a cache that holds logits but no manifest, else ""."""
        if self.has_manifest or not self.checksums:
            return ""
        return f"{self.path} has no list of its images: that they are still the same is not checked"

    def write_manifest(self, images: ImageSet, advance: Callable[[], object] = no_op, poll: Poll = no_op) -> None:
        """Write the manifest of the training images, unless there is one. CheckpointError if it cannot be written.

        A cache that holds logits without a manifest gets none: the images may have changed since.
        """
        if not self.has_manifest and not self.checksums:
            write_atomic(self.path / MANIFEST, to_bytes(list_images({"train": images}, None, advance, poll)))

    def check_epochs(self, wanted: int) -> None:
        """ConfigError unless the first `wanted` epochs are complete; CheckpointError if the file of one is damaged."""
        complete = self.count_complete(wanted)
        if complete < wanted:
            raise ConfigError(
                f"{self.path} holds {complete} epochs without a gap, training.epochs is {wanted}: run udskd "
                f"cache-teacher again with --epochs {wanted}"
            )
        for epoch in range(wanted):
            self.read_epoch(epoch)

    def count_complete(self, wanted: int) -> int:
        """How many of the first `wanted` epochs are complete without a gap."""
        return next((epoch for epoch in range(wanted) if not self.has_epoch(epoch)), wanted)

    def has_epoch(self, epoch: int) -> bool:
        """Whether an epoch is complete. An epoch whose file was deleted is not."""
        return self.epoch_file(epoch).name in self.checksums and self.epoch_file(epoch).exists()

    def epoch_file(self, epoch: int) -> Path:
        """The file of an epoch, counted from 0."""
        return self.path / f"epoch-{epoch:04d}.npy"

    def read_epoch(self, epoch: int, verify: bool = False) -> Logits:
        """The logits of an epoch, float16 [N, C], memory-mapped.

        Raises CheckpointError if the file is truncated or, with verify, does not match its checksum.
        """
        file = self.epoch_file(epoch)
        shape = (self.dependencies["data.images"], self.dependencies["data.classes"])
        try:
            with reading(file, CheckpointError, _DELETE, damaged="is truncated or altered"):
                rows = _map(file, shape)
        except FileNotFoundError:
            raise CheckpointError(f"there is no {file}: {_DELETE}") from None
        if verify and _sha256(rows) != self.checksums.get(file.name):
            raise CheckpointError(f"{file} is truncated or altered: {_DELETE}")
        return rows

    def write_epoch(self, epoch: int, rows: Logits) -> None:
        """Write an epoch's logits [N, C], completely or not at all. CheckpointError if it cannot be written."""
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(rows))
        write_atomic(self.epoch_file(epoch), header.getvalue(), rows.reshape(-1).view(np.uint8).data)
        self._write_description({**self.checksums, self.epoch_file(epoch).name: _sha256(rows)})

    def _write_description(self, checksums: dict[str, str]) -> None:
        content = {"format": FORMAT, "made_of": self.dependencies, "epochs": dict(sorted(checksums.items()))}
        write_atomic(self.path / DESCRIPTION, (json.dumps(content, indent=2) + "\n").encode())
        self.checksums = checksums


def _map(file: Path, shape: tuple[int, int]) -> Logits:
    """The float16 array of a .npy file, memory-mapped. np.load would also open archives and pickles."""
    with open_regular(file) as opened:
        version = np.lib.format.read_magic(opened)
        if version != (1, 0):
            raise Invalid(f"its version is {version}")
        header = np.lib.format.read_array_header_1_0(opened)
        if header != (shape, False, np.dtype("<f2")):
            raise Invalid("its header is of other logits")
        return np.memmap(opened, "<f2", "r", opened.tell(), shape)


def _sha256(rows: Logits) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data).hexdigest()
