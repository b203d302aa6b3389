"""A split of an image set in one file, as `udskd pack` writes it: it saves listing folders and opening small files.

The file, little-endian: PREFIX (magic, version, SHA-256 of the index, lengths); the index, which is a JSON object
(classes, the options of `udskd pack`), one ENTRY for each image and the images' names; then the image files.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from udskd.config.validation import Count, Invalid, parse_json, reading
from udskd.data.dataset import ImageSet, Pixels, UnreadableImage, common_classes, content_digest, crc_digest, file_mark
from udskd.data.decode import MAX_PIXELS, are_jpegs, decode
from udskd.errors import DataError
from udskd.files import open_regular

MAGIC, VERSION = b"udskdpck", 1
PREFIX = struct.Struct("<8sI32sQQQQ")
"""Magic, version, SHA-256 of the index; bytes of the JSON object, number of images, bytes of the names, of the file."""
ENTRY = np.dtype(
    [("offset", "<u8"), ("name_end", "<u8")] + [(k, "<u4") for k in ("size", "crc", "label", "height", "width")]
)
SPLITS = ("train", "val")


class Header(TypedDict):
    """The JSON object of a pack."""

    classes: list[str]
    short_side: Count | None


def pack_file(root: Path, split: str) -> Path:
    """The path of the pack of a split."""
    return root / f"{split}.pack"


class PackedSet(ImageSet):
    """One split from its pack, with the images of the first `classes` classes (or all), each checked by its CRC-32.

    Raises:
        DataError: the file cannot be read, is not a pack, has another version, is incomplete or damaged.
    """

    checksum = "crc32"

    def __init__(self, path: str | Path, classes: int | None = None, max_pixels: int = MAX_PIXELS) -> None:
        self.path, self._limit, self.max_pixels = Path(path), classes, max_pixels
        try:
            # Read with pread: threads and forked processes share no file position, and a disk error is an exception,
            # unlike with mmap, where it is a SIGBUS that ends the process.
            self._file = open_regular(self.path, buffering=0)
            self._mark = file_mark(os.fstat(self._file.fileno()))  # before the index is read
            self.header, self._entries, self._names = _read_index(self.path, self._file.fileno())
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror or error}") from error
        self.classes = tuple(self.header["classes"][:classes])
        self._kept = np.flatnonzero(self._entries["label"] < len(self.classes))
        self.labels = self._entries["label"][self._kept].astype(np.int64)
        self.releases_gil = self.header["short_side"] is not None or are_jpegs(map(self.name, range(len(self))))

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedSet, (self.path, self._limit, self.max_pixels)

    def name(self, index: int) -> str:
        return f"{self.path}: {self._name(index)}"

    def strip_root(self, name: str) -> str:
        return name.removeprefix(f"{self.path}: ").replace(os.sep, "/")

    def _name(self, index: int) -> str:
        row = int(self._kept[index])
        begin = int(self._entries["name_end"][row - 1]) if row else 0
        return os.fsdecode(self._names[begin : int(self._entries["name_end"][row])])

    def mark(self, index: int) -> tuple[int, ...]:
        return self._mark

    def recorded_digest(self, index: int) -> str:
        entry = self._entries[self._kept[index]]
        return crc_digest(int(entry["crc"]), int(entry["size"]))

    def digest(self, index: int, checksum: str) -> str:
        return content_digest(self.file(index), checksum)

    def pixels(self, index: int) -> Pixels:
        return decode(self.file(index), self.name(index), self.max_pixels)

    def file(self, index: int) -> bytes:
        """The bytes of one image file. Raises UnreadableImage if they have changed since they were packed."""
        entry = self._entries[self._kept[index]]
        try:
            data = os.pread(self._file.fileno(), int(entry["size"]), int(entry["offset"]))
        except OSError as error:
            raise UnreadableImage(self.name(index), error.strerror or str(error)) from error
        if zlib.crc32(data) != entry["crc"]:
            raise UnreadableImage(self.name(index), "its bytes in the pack are damaged")
        return data

    def area(self, index: int) -> int:
        entry = self._entries[self._kept[index]]
        return int(entry["height"]) * int(entry["width"])


def _read_index(path: Path, file: int) -> tuple[Header, Any, bytes]:
    """The JSON object, ENTRY [N] and names of a pack, after all checks that need no image."""
    prefix = os.pread(file, PREFIX.size, 0)
    if len(prefix) < PREFIX.size or not prefix.startswith(MAGIC):
        raise DataError(f"{path} is not a pack: make one with udskd pack")
    _, version, digest, json_bytes, count, name_bytes, total = PREFIX.unpack(prefix)
    if version != VERSION:
        raise DataError(f"{path} is a pack of version {version}, this udskd reads version {VERSION}: pack it again")
    size = os.fstat(file).st_size
    if size != total:
        raise DataError(f"{path} has {size} bytes instead of {total}, it was not copied completely: copy it again")
    with reading(path, DataError, "copy it again, or pack it again"):
        index_bytes = json_bytes + count * ENTRY.itemsize + name_bytes
        if PREFIX.size + index_bytes > size:  # before anything of this length is read
            raise Invalid("its index is longer than the file")
        index = os.pread(file, index_bytes, PREFIX.size)
        if hashlib.sha256(index).digest() != digest:
            raise Invalid("its index has another SHA-256")
        entries = np.frombuffer(index, ENTRY, count, json_bytes)
        header = parse_json(index[:json_bytes], Header)
        _check_entries(entries, len(header["classes"]), name_bytes, PREFIX.size + index_bytes, size)
        return header, entries, index[json_bytes + entries.nbytes :]


def _check_entries(entries: Any, classes: int, name_bytes: int, begin: int, end: int) -> None:
    """Invalid unless every image is between two offsets of the file, and has a label of a class and a name."""
    offsets, sizes, names = entries["offset"], entries["size"], entries["name_end"]
    if not ((offsets >= begin) & (offsets <= end) & (sizes <= end - np.minimum(offsets, end))).all():
        raise Invalid("an image is outside the file")
    if not (entries["label"] < classes).all():
        raise Invalid("an image has the label of no class")
    if not ((names <= name_bytes).all() and (names[1:] >= names[:-1]).all()):
        raise Invalid("a name is outside the names")


def has_packs(root: Path) -> bool:
    """Whether a folder has the pack of any split."""
    return any(pack_file(root, split).exists() for split in SPLITS)


def open_packs(root: Path, classes: int | None = None, max_pixels: int = MAX_PIXELS) -> tuple[PackedSet, PackedSet]:
    """The train and val splits from their packs, with the first `classes` classes in sorted order (or all).

    Images of more than max_pixels are unreadable.

    Raises:
        DataError: a pack is missing or damaged, the classes differ, or there are fewer than `classes`.
    """
    train, val = (PackedSet(pack_file(root, split), max_pixels=max_pixels) for split in SPLITS)
    count = len(common_classes(root, train.classes, val.classes, classes))
    if count == len(train.classes):
        return train, val
    return PackedSet(train.path, count, max_pixels), PackedSet(val.path, count, max_pixels)
