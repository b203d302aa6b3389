"""Writing packs: every image of a tree decoded once, made smaller where that saves work, and put into one file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from udskd.data.dataset import UnreadableImage, abbreviate, class_hash
from udskd.data.decode import decode, is_plain_jpeg, read_bytes, translate_errors
from udskd.data.folder import FolderSet, describe_shared_images, open_folder
from udskd.data.packed import ENTRY, MAGIC, PREFIX, SPLITS, VERSION, pack_file
from udskd.data.workers import in_order, no_op
from udskd.errors import ConfigError, DataError
from udskd.files import expand_user

Progress = Callable[[str, int, int], object]
"""Called with the split, and how many of how many images are done."""


class Packed(NamedTuple):
    """What became of one split."""

    images: int
    kept: int
    """Images whose files went in as they are."""
    source_bytes: int
    bytes: int
    ignored: str
    """What the tree holds besides images, in words; "" for nothing."""
    shared: str
    """What the tree shows in both splits, in words; "" for nothing."""


def pack(
    source: str | Path,
    destination: str | Path,
    *,
    short_side: int | None = 256,
    quality: int = 90,
    classes: int | None = None,
    workers: int = 2,
    progress: Progress = no_op,
) -> dict[str, Packed]:
    """Write destination/train.pack and destination/val.pack from an ImageFolder tree; returns what became of each.

    JPEGs whose shorter side is at most `short_side` pixels keep their bytes. All other images become JPEGs of `quality`
    (1 to 100), larger ones with that shorter side. Without a short_side, all files keep their bytes, whatever their
    format, so that the pack trains as the tree does, bit for bit. Both packs appear, or none.

    Raises:
        ConfigError: short_side or quality is out of range.
        DataError: the tree is not as it should be, has an unreadable image, or the packs cannot be written.
    """
    if not 1 <= quality <= 100 or (short_side is not None and short_side < 8):
        raise ConfigError(f"quality must be 1 to 100 and short_side at least 8, got {quality} and {short_side}")
    source, destination = expand_user(source), expand_user(destination)
    sets = dict(zip(SPLITS, open_folder(source, classes), strict=True))
    if destination.resolve() == source.resolve():
        raise DataError(f"a pack beside its tree, in {source}, would be used in its place: name another folder")
    shared = describe_shared_images(**sets)
    drafts = {split: destination / f".{split}.pack.{os.getpid()}" for split in SPLITS}
    try:
        destination.mkdir(parents=True, exist_ok=True)
        header = {"short_side": short_side, "quality": quality, "source": str(source.resolve())}
        packed = {
            split: _write(draft, sets[split], {**header, "split": split}, workers, progress)._replace(shared=shared)
            for split, draft in drafts.items()
        }
        for split, draft in drafts.items():
            os.replace(draft, pack_file(destination, split))
        return packed
    except OSError as error:
        raise DataError(f"cannot write packs to {destination}: {error.strerror or error}") from error
    finally:
        for draft in drafts.values():
            with suppress(OSError):
                draft.unlink()


class _File(NamedTuple):
    """An image file as it goes into a pack."""

    data: bytes
    height: int
    width: int
    source_bytes: int
    kept: bool


class _Draft:
    """A pack that is being written: the index is known only when all images are there."""

    def __init__(self, file: IO[bytes], images: FolderSet, header: dict[str, Any]) -> None:
        names = [os.fsencode(os.path.relpath(path, images.root)) for path in images.paths]
        self._file, self._names = file, b"".join(names)
        self._header = json.dumps({**header, "classes": images.classes, "class_hash": class_hash(images.classes)})
        self._entries = np.zeros(len(images), dtype=ENTRY)
        self._entries["label"], self._entries["name_end"] = images.labels, np.cumsum([len(name) for name in names])
        self._place = PREFIX.size + len(self._header) + self._entries.nbytes + len(self._names)
        self._kept = self._source_bytes = 0
        file.seek(self._place)

    def add(self, index: int, file: _File) -> None:
        values = {"offset": self._place, "size": len(file.data), "crc": zlib.crc32(file.data)}
        for key, value in {**values, "height": file.height, "width": file.width}.items():
            self._entries[key][index] = value
        self._file.write(file.data)
        self._place += len(file.data)
        self._kept += file.kept
        self._source_bytes += file.source_bytes

    def finish(self, ignored: str) -> Packed:
        index = self._header.encode() + self._entries.tobytes() + self._names
        lengths = len(self._header), len(self._entries), len(self._names), self._place
        self._file.seek(0)
        self._file.write(PREFIX.pack(MAGIC, VERSION, hashlib.sha256(index).digest(), *lengths) + index)
        self._file.flush()
        os.fsync(self._file.fileno())
        return Packed(len(self._entries), self._kept, self._source_bytes, self._place, ignored, "")


def _write(path: Path, images: FolderSet, header: dict[str, Any], workers: int, progress: Progress) -> Packed:
    def convert(index: int) -> _File | UnreadableImage:
        try:
            return _convert(images.paths[index], header["short_side"], header["quality"])
        except UnreadableImage as error:
            return error

    unreadable, count, split = [], len(images), header["split"]
    with open(path, "wb") as file, closing(in_order(convert, range(count), workers)) as results:
        draft = _Draft(file, images, header)
        for index, result in enumerate(results):
            if isinstance(result, UnreadableImage):
                unreadable.append(str(result))
            elif not unreadable:
                draft.add(index, result)
            progress(split, index + 1, count)
        if unreadable:
            what = f"{len(unreadable)} of the {count} {split} images cannot be read"
            raise DataError(f"{what}, and a pack leaves none out: {abbreviate(unreadable)}; mend or remove them")
        return draft.finish(images.describe_ignored())


def _convert(path: str, short_side: int | None, quality: int) -> _File:
    data = read_bytes(path)
    pixels = decode(data, path)
    height, width, _ = pixels.shape
    if short_side is None or (min(height, width) <= short_side and is_plain_jpeg(data)):
        return _File(data, height, width, len(data), True)
    with translate_errors(path):
        image = _shrink(Image.fromarray(pixels), short_side)
        file = io.BytesIO()
        # Half the resolution for colour, as cameras do: it is what most of the originals had, and saves a third of the
        # bytes and of the time that decoding takes. Progressive files would take longer to decode.
        image.save(file, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
        return _File(file.getvalue(), image.height, image.width, len(data), False)


def _shrink(image: Image.Image, short_side: int) -> Image.Image:
    """The image with that shorter side, if it is longer; Lanczos, because views are cut and resized once more."""
    scale = short_side / min(image.size)
    if scale >= 1:
        return image
    size = [max(short_side, round(side * scale)) for side in image.size]
    return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
