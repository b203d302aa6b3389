"""The interface of image sets: numbered images with labels; and the error for an image that cannot be read."""

from __future__ import annotations

import hashlib
import os
import time
import unicodedata
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from udskd.errors import DataError

Pixels = npt.NDArray[np.uint8]
CLOCK_STEP = 2_000_000_000
"""The coarsest resolution of file times on any file system, in nanoseconds: two changes of a file within one step can
have the same time."""


class UnreadableImage(Exception):
    """The image called `name` cannot be decoded, for the given reason. The caller decides whether that is fatal."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # in args, so that the exception can be pickled
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class ImageSet(ABC):
    """N labelled images of C classes, indexed from 0; an index always means the same image."""

    classes: tuple[str, ...]
    """Names of the C classes, in the order of their labels."""
    labels: npt.NDArray[np.int64]
    """Label of every image, [N]."""
    releases_gil: bool = True
    """Whether most of the decoding releases the GIL, so that threads are as fast as processes."""
    ignored: Mapping[str, int] = MappingProxyType({})
    """The number of files among the images that are not images, by kind."""
    checksum: str = "sha256"
    """The digest that costs this set least, see content_digest()."""

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    @abstractmethod
    def name(self, index: int) -> str:
        """The name of the image for messages: the path of its file."""

    @abstractmethod
    def pixels(self, index: int) -> Pixels:
        """Decode one image into RGB, uint8 [H, W, 3], C-contiguous, possibly read-only. Thread-safe.

        Raises:
            UnreadableImage: the file is missing, damaged, or not an image.
        """

    def relative_name(self, index: int) -> str:
        """The name of the image relative to its set: CLASS/FILE, with slashes on every system."""
        return self.strip_root(self.name(index))

    def strip_root(self, name: str) -> str:
        """The relative name of the image that name() calls `name`."""
        return name

    def mark(self, index: int) -> tuple[int, ...]:
        """Numbers that change whenever the image's content does, found without reading it; () if there are none."""
        return ()

    def recorded_digest(self, index: int) -> str | None:
        """The digest (of kind `checksum`) that the set has stored for an image; None if it stores none."""
        return None

    def digest(self, index: int, checksum: str) -> str:
        """A digest of one image's file, or of its pixels if there is no file. Thread-safe.

        Raises:
            UnreadableImage: the file is missing or cannot be read.
        """
        return content_digest(self.pixels(index).tobytes(), checksum)

    def area(self, index: int) -> int:
        """H x W of one image, if possible without decoding it. Raises UnreadableImage."""
        height, width, _ = self.pixels(index).shape
        return int(height * width)

    def describe_ignored(self) -> str:
        """The number and the kinds of the ignored files, for a message; "" if there are none."""
        count = sum(self.ignored.values())
        kinds = sorted(self.ignored.items(), key=lambda item: (-item[1], item[0]))
        listed = abbreviate((f"{kind} {number}" for kind, number in kinds), limit=8)
        return f"{count} file{'s' if count > 1 else ''} ignored: {listed}" if count else ""


def file_mark(status: os.stat_result) -> tuple[int, ...]:
    """The mark (ImageSet.mark) of an image in a file; () if the file changed within the last CLOCK_STEP."""
    if time.time_ns() - status.st_ctime_ns < CLOCK_STEP:
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def content_digest(content: bytes, checksum: str) -> str:
    """The first 128 bits of the SHA-256 ("sha256"), or CRC-32 and size ("crc32", which packs store for every image)."""
    if checksum == "crc32":
        return crc_digest(zlib.crc32(content), len(content))
    return hashlib.sha256(content).hexdigest()[:32]


def crc_digest(crc: int, size: int) -> str:
    """The "crc32" digest of a content with this CRC-32 and size in bytes."""
    return f"{crc:08x}-{size}"


def abbreviate(items: Iterable[str], limit: int = 3) -> str:
    """The first items of a list for a message, and the number of the others."""
    names = list(items)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def common_classes(root: Path, train: Sequence[str], val: Sequence[str], wanted: int | None) -> Sequence[str]:
    """The first `wanted` classes (or all) of the two splits of a set.

    Raises:
        DataError: the splits have different classes, two classes look alike, or there are fewer than two classes or
            fewer than wanted.
    """
    _refuse_lookalikes(root, train, val)
    if train != val:
        only = {"train": sorted({*train} - {*val}), "val": sorted({*val} - {*train})}
        difference = "; ".join(f"{abbreviate(names)} only in {split}" for split, names in only.items() if names)
        raise DataError(f"{root}/train and {root}/val have different classes: {difference or 'their order differs'}")
    if len(train) < 2:
        raise DataError(f"{root} has a single class, {train[0]}: a classifier needs at least two")
    if wanted is not None and not 2 <= wanted <= len(train):
        raise DataError(f"data.classes is {wanted}, but {root} has {len(train)} classes: give 2 to {len(train)}")
    return train[:wanted]


def _refuse_lookalikes(root: Path, train: Sequence[str], val: Sequence[str]) -> None:
    """DataError if the names of two classes are the same text in two Unicode forms, which look alike."""
    known: dict[str, tuple[str, str]] = {}
    for split, names in (("train", train), ("val", val)):
        for name in names:
            text = unicodedata.normalize("NFC", name)
            first, where = known.setdefault(text, (name, split))
            if first != name:
                raise DataError(
                    f'{root} has the class "{text}" in two spellings that look alike: {_form(first)} in {where}, '
                    f"{_form(name)} in {split}; rename the folders so that there is one"
                )


def _form(name: str) -> str:
    """The Unicode form of a name and its characters."""
    if unicodedata.is_normalized("NFC", name):
        form = "composed (NFC)"
    else:
        form = "decomposed (NFD)" if unicodedata.is_normalized("NFD", name) else "partly decomposed"
    return f"{form}, {name!a},"


def class_hash(classes: Iterable[str]) -> str:
    """SHA-256 (hex) of the class names in order, each with a newline: sets with the same hash have the same labels."""
    return hashlib.sha256("".join(f"{name}\n" for name in classes).encode("utf-8", "surrogateescape")).hexdigest()
