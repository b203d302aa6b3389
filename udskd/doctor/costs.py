"""The costs of single images: reading them from storage, decoding them, cutting a view."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from udskd.config.schema import DataConfig
from udskd.data import FolderSet, UnreadableImage
from udskd.data.batch import BatchRequest, TrainViews
from udskd.data.dataset import Pixels
from udskd.data.decode import decode, read_bytes
from udskd.data.pack import shrink_to_jpeg
from udskd.data.packed import PackedSet
from udskd.doctor.rates import Sample
from udskd.errors import DataError
from udskd.files import open_regular

T = TypeVar("T")
SHORT_SIDE, QUALITY = 256, 90
"""The options of the pack whose costs are estimated."""


# --- storage ----------------------------------------------------------------------------------------------------------


class ByteRange(NamedTuple):
    """A part of a file; length 0 is the whole file."""

    path: str
    offset: int = 0
    length: int = 0


def byte_ranges(images: Sample) -> list[ByteRange]:
    """The parts of files that hold a sample: whole files, or equal parts of a pack. Empty for images in memory."""
    source = images.images
    if isinstance(source, FolderSet):
        return [ByteRange(images.name(k)) for k in range(len(images))]
    if isinstance(source, PackedSet):
        path, total = str(source.path), os.stat(source.path).st_size
        length = total // len(source)
        return [ByteRange(path, int(index) * length, length) for index in images.indices]
    return []


@dataclass(frozen=True)
class ReadRate:
    """Images and bytes that are read in one second."""

    images: float
    bytes: float


def measure_reading(ranges: Sequence[ByteRange], threads: int, cold: bool) -> ReadRate:
    """The rate at which so many threads read the ranges.

    cold: ask the system first to drop the bytes from its page cache, which changes nothing in the files.
    """
    if cold:
        for part in ranges:
            _drop_from_cache(part)
    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        count = sum(pool.map(_read_length, ranges))
    took = time.perf_counter() - begin
    return ReadRate(len(ranges) / took, count / took)


def _drop_from_cache(part: ByteRange) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError), open_regular(part.path) as file:
        os.posix_fadvise(file.fileno(), part.offset, part.length, os.POSIX_FADV_DONTNEED)


def _read_length(part: ByteRange) -> int:
    if part.length:
        with open_regular(part.path) as file:
            file.seek(part.offset)
            return len(file.read(part.length))
    try:
        return len(read_bytes(part.path))
    except UnreadableImage:
        return 0


# --- one core ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """Seconds and bytes of one image on one core."""

    read: float
    decode: float
    view: float
    file_bytes: float
    pixel_bytes: float
    packed: float
    """Seconds to decode the image from a pack and cut a view; 0 where packing changes nothing."""
    packed_bytes: float

    @property
    def core(self) -> float:
        """Images per second of one core that reads, decodes and cuts views."""
        return 1 / (self.read + self.decode + self.view)


def mean_costs(images: Sample, config: DataConfig, budget: float, with_pack: bool) -> Costs:
    """Means over as many images as the budget (in seconds) allows, at least one. DataError if none can be read."""
    each: list[Costs] = []
    begin = time.perf_counter()
    for row in range(len(images)):
        if each and time.perf_counter() - begin > budget:
            break
        try:
            if not each:  # the first calls are slower
                _measure(images, config, row, with_pack)
            each.append(_measure(images, config, row, with_pack))
        except UnreadableImage as error:
            images.note(error.name, error.reason)
    if not each:
        raise DataError(f"none of {len(images)} training images that were tried can be read, {images.name(0)} first")
    return Costs(*(sum(values) / len(each) for values in zip(*map(astuple, each), strict=True)))


def _measure(images: Sample, config: DataConfig, row: int, with_pack: bool) -> Costs:
    """The costs of one image. Raises UnreadableImage."""
    name = images.name(row)
    data, read = _timed(lambda: _stored_bytes(images, row))
    pixels, decoded = _timed(lambda: images.pixels(row) if data is None else decode(data, name, config.max_pixels))
    view, packed_seconds, packed = _time_view(images, config, row, pixels), 0.0, b""
    if with_pack:
        packed = pack_one(data or b"", pixels)
        small, decoded_again = _timed(lambda: decode(packed, name))
        packed_seconds = decoded_again + _time_view(images, config, row, small)
    read_seconds = 0.0 if data is None else read
    return Costs(read_seconds, decoded, view, len(data or b""), pixels.nbytes, packed_seconds, len(packed))


def _stored_bytes(images: Sample, row: int) -> bytes | None:
    """The file of an image; None if the image is in memory."""
    source, index = images.images, int(images.indices[row])
    if isinstance(source, PackedSet):
        return source.file(index)
    return read_bytes(source.paths[index], source.max_pixels) if isinstance(source, FolderSet) else None


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin


def _time_view(images: Sample, config: DataConfig, row: int, pixels: Pixels) -> float:
    """Seconds for the random view of one image, without the work that is done once for a batch."""
    batch = TrainViews(images, config, 0).begin(BatchRequest(0, 0, np.array([row])))
    return _timed(lambda: batch.write_view(0, pixels))[1]


def pack_one(data: bytes, pixels: Pixels) -> bytes:
    """The file that `udskd pack` writes for an image: the same JPEG if it is small, else a smaller one."""
    is_small = min(pixels.shape[:2]) <= SHORT_SIDE
    return data if is_small and data.startswith(b"\xff\xd8") else shrink_to_jpeg(pixels, SHORT_SIDE, QUALITY)[0]
