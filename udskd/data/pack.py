"""Writing packs: each split of a tree as one file, its larger images scaled down."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from udskd.config.rules import MAX_WORKERS, shown
from udskd.data.dataset import Pixels, UnreadableImage, abbreviate, class_hash
from udskd.data.decode import MAX_PIXELS, decode, is_plain_jpeg, read_bytes, translate_errors
from udskd.data.folder import FolderSet, describe_shared_images, open_folder
from udskd.data.packed import ENTRY, MAGIC, PREFIX, SPLITS, VERSION, pack_file
from udskd.data.workers import in_order, no_op
from udskd.errors import ConfigError, DataError
from udskd.files import expand_user, replacing

PackProgress = Callable[[str, int, int], object]
"""Called with the split, the number of images that are done, and the number of all."""


class Packed(NamedTuple):
    """The summary of one split's pack."""

    images: int
    kept: int
    """Images whose files are in the pack unchanged."""
    source_bytes: int
    bytes: int
    ignored: str
    """The other files of the tree, in words; "" if there are none."""
    shared: str
    """The images that both splits of the tree contain, in words; "" if there are none."""


def pack(
    source: str | Path,
    destination: str | Path,
    *,
    short_side: int | None = 256,
    quality: int = 90,
    classes: int | None = None,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    progress: PackProgress = no_op,
) -> dict[str, Packed]:
    """Write destination/train.pack and destination/val.pack from an ImageFolder tree. Returns a summary of each split.

    An upright grey or RGB JPEG whose shorter side is at most `short_side` pixels keeps its bytes. Any other image
    becomes a JPEG of `quality` (1 to 100) whose shorter side is at most short_side. With short_side None, the files of
    all formats keep their bytes, and training on the packs gives the same bits as on the tree. Either both packs are
    written or none. An image of more than max_pixels counts as unreadable.

    Raises:
        ConfigError: short_side, quality or max_pixels is out of range.
        DataError: the tree is invalid or has an unreadable image, or the packs cannot be written.
    """
    if not 1 <= quality <= 100 or (short_side is not None and short_side < 8):
        raise ConfigError(
            f"quality must be 1 to 100 and short_side at least 8, got {shown(quality)} and {shown(short_side)}"
        )
    if not 0 <= workers <= MAX_WORKERS:
        raise ConfigError(f"workers must be from 0 to {MAX_WORKERS}, got {shown(workers)}")
    if max_pixels < 1:
        raise ConfigError(f"max_pixels must be at least 1, got {shown(max_pixels)}")
    source, destination = expand_user(source), expand_user(destination)
    sets = dict(zip(SPLITS, open_folder(source, classes, max_pixels), strict=True))
    if destination.resolve() == source.resolve():
        raise DataError(f"packs in their tree's folder {source} would be read in its place: name another folder")
    header = {"short_side": short_side, "quality": quality, "source": str(source.resolve())}
    try:
        destination.mkdir(parents=True, exist_ok=True)
        return _write_both(destination, sets, header, workers, progress)
    except OSError as error:
        raise DataError(f"cannot write packs to {destination}: {error.strerror or error}") from error


def _write_both(
    folder: Path, sets: dict[str, FolderSet], header: dict[str, Any], workers: int, progress: PackProgress
) -> dict[str, Packed]:
    shared = describe_shared_images(**sets)
    with ExitStack() as stack:  # the files take their names when the last one is complete
        files = {split: stack.enter_context(replacing(pack_file(folder, split))) for split in sets}
        return {
            split: _write(file, sets[split], {**header, "split": split}, workers, progress)._replace(shared=shared)
            for split, file in files.items()
        }


class _File(NamedTuple):
    """An image file of a pack."""

    data: bytes
    height: int
    width: int
    source_bytes: int
    kept: bool


class _Draft:
    """A pack that is being written. Its index is written last, when the sizes of all images are known."""

    def __init__(self, file: BinaryIO, images: FolderSet, header: dict[str, Any]) -> None:
        names = [os.fsencode(os.path.relpath(path, images.root)) for path in images.paths]
        self._file, self._names = file, b"".join(names)
        self._header = json.dumps({**header, "classes": images.classes, "class_hash": class_hash(images.classes)})
        self._entries = np.zeros(len(images), dtype=ENTRY)
        self._entries["label"], self._entries["name_end"] = images.labels, np.cumsum([len(name) for name in names])
        self._position = PREFIX.size + len(self._header) + self._entries.nbytes + len(self._names)
        self._kept = self._source_bytes = 0
        file.seek(self._position)

    def add(self, index: int, file: _File) -> None:
        values = {"offset": self._position, "size": len(file.data), "crc": zlib.crc32(file.data)}
        for key, value in {**values, "height": file.height, "width": file.width}.items():
            self._entries[key][index] = value
        self._file.write(file.data)
        self._position += len(file.data)
        self._kept += file.kept
        self._source_bytes += file.source_bytes

    def finish(self, ignored: str) -> Packed:
        index = self._header.encode() + self._entries.tobytes() + self._names
        lengths = len(self._header), len(self._entries), len(self._names), self._position
        self._file.seek(0)
        self._file.write(PREFIX.pack(MAGIC, VERSION, hashlib.sha256(index).digest(), *lengths) + index)
        self._file.flush()
        os.fsync(self._file.fileno())  # before any pack takes its name
        return Packed(len(self._entries), self._kept, self._source_bytes, self._position, ignored, "")


def _write(file: BinaryIO, images: FolderSet, header: dict[str, Any], workers: int, progress: PackProgress) -> Packed:
    def convert(index: int) -> _File | UnreadableImage:
        try:
            return _convert(images, index, header["short_side"], header["quality"])
        except UnreadableImage as error:
            return error

    unreadable, count, split = [], len(images), header["split"]
    with closing(in_order(convert, range(count), workers)) as results:
        draft = _Draft(file, images, header)
        for index, result in enumerate(results):
            if isinstance(result, UnreadableImage):
                unreadable.append(str(result))
            elif not unreadable:
                draft.add(index, result)
            progress(split, index + 1, count)
        if unreadable:
            what = f"{len(unreadable)} of the {count} {split} images cannot be read"
            raise DataError(f"{what}, and a pack leaves none out: {abbreviate(unreadable)}; repair or remove them")
        return draft.finish(images.describe_ignored())


def _convert(images: FolderSet, index: int, short_side: int | None, quality: int) -> _File:
    path, limit = images.paths[index], images.max_pixels
    data = read_bytes(path, limit)
    pixels = decode(data, path, limit)
    height, width, _ = pixels.shape
    if short_side is None or (min(height, width) <= short_side and is_plain_jpeg(data, limit)):
        return _File(data, height, width, len(data), True)
    with translate_errors(path):
        packed, height, width = shrink_to_jpeg(pixels, short_side, quality)
        return _File(packed, height, width, len(data), False)


def shrink_to_jpeg(pixels: Pixels, short_side: int, quality: int) -> tuple[bytes, int, int]:
    """A JPEG of the image with a shorter side of at most short_side pixels; its height and width."""
    image, file = _shrink(Image.fromarray(pixels), short_side), io.BytesIO()
    # Colour at half the resolution, as most cameras store it, saves a third of the bytes and of the decoding time.
    # Progressive JPEGs would take longer to decode.
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
    return file.getvalue(), image.height, image.width


def _shrink(image: Image.Image, short_side: int) -> Image.Image:
    """The image with a shorter side of at most short_side; by Lanczos, because training resizes it once more."""
    scale = short_side / min(image.size)
    if scale >= 1:
        return image
    size = [max(short_side, round(side * scale)) for side in image.size]
    return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
