"""What single images cost: reading them from storage, decoding them, cutting a view."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
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

T = TypeVar("T")
SHORT_SIDE, QUALITY = 256, 90  # of the pack that is thought of


class Piece(NamedTuple):
    """Where some bytes of storage are; length 0 is the whole file."""

    path: str
    offset: int = 0
    length: int = 0


def pieces(images: Sample) -> list[Piece]:
    """What storage has to give for a sample: files, or as much of a pack; nothing for images that are in memory."""
    source = images.images
    if isinstance(source, FolderSet):
        return [Piece(images.name(k)) for k in range(len(images))]
    if isinstance(source, PackedSet):
        path, total = str(source.path), os.stat(source.path).st_size
        length = total // len(source)
        return [Piece(path, int(index) * length, length) for index in images.indices]
    return []


@dataclass(frozen=True)
class Reading:
    """Images and bytes per second, several at a time."""

    images: float
    bytes: float


def reading(wanted: Sequence[Piece], threads: int, cold: bool) -> Reading:
    """cold: after asking the system to drop these bytes from its page cache, which changes nothing in the files."""
    if cold:
        for piece in wanted:
            _drop(piece)
    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        count = sum(pool.map(_length, wanted))
    took = time.perf_counter() - begin
    return Reading(len(wanted) / took, count / took)


def _drop(piece: Piece) -> None:
    """Out of the page cache, where the system can do that."""
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):
        handle = os.open(piece.path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for ever
        try:
            os.posix_fadvise(handle, piece.offset, piece.length, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def _length(piece: Piece) -> int:
    if piece.length:
        with open(piece.path, "rb") as file:
            file.seek(piece.offset)
            return len(file.read(piece.length))
    try:
        return len(read_bytes(piece.path))
    except UnreadableImage:
        return 0


# --- one core ---------------------------------------------------------------------------------------------------------


@dataclass
class Costs:
    """Mean seconds and bytes of one image on one core; the last two of the same image as a pack would hold it."""

    images: int = 0
    read: float = 0.0
    decode: float = 0.0
    view: float = 0.0
    file_bytes: float = 0.0
    pixel_bytes: float = 0.0
    packed: float = 0.0
    packed_bytes: float = 0.0

    @property
    def core(self) -> float:
        """Images per second of one core that does it all."""
        return 1 / (self.read + self.decode + self.view)


def costs(images: Sample, config: DataConfig, budget: float, with_pack: bool) -> Costs:
    """Means over the images that a budget of seconds suffices for. DataError if none of them can be read."""
    total, begin, warm = Costs(), time.perf_counter(), False
    for row in range(len(images)):
        if total.images and time.perf_counter() - begin > budget:
            break
        try:
            if not warm:  # the first call of everything is slow
                _add(Costs(), images, config, row, with_pack)
                warm = True
            _add(total, images, config, row, with_pack)
            total.images += 1
        except UnreadableImage as error:
            images.note(error.name, error.reason)
    if total.images == 0:
        raise DataError(f"none of {len(images)} training images that were tried can be read, {images.name(0)} first")
    for name, value in vars(total).items():
        if name != "images":
            setattr(total, name, value / total.images)
    return total


def _add(total: Costs, images: Sample, config: DataConfig, row: int, with_pack: bool) -> None:
    """Another image's seconds and bytes. One that cannot be read adds nothing."""
    name = images.name(row)
    data, read = _timed(lambda: _bytes(images, row))
    pixels, decoded = _timed(lambda: images.pixels(row) if data is None else decode(data, name))
    packed = pack_one(data or b"", pixels) if with_pack else b""
    small, again = _timed(lambda: decode(packed, name)) if with_pack else (pixels, 0.0)
    total.read, total.decode = total.read + (0.0 if data is None else read), total.decode + decoded
    total.view += _view(images, config, row, pixels)
    total.file_bytes += len(data or b"")
    total.pixel_bytes += pixels.nbytes
    if with_pack:
        total.packed += again + _view(images, config, row, small)
        total.packed_bytes += len(packed)


def _bytes(images: Sample, row: int) -> bytes | None:
    """An image as storage has it; None if it is in memory."""
    source, index = images.images, int(images.indices[row])
    if isinstance(source, PackedSet):
        return source.file(index)
    return read_bytes(source.paths[index]) if isinstance(source, FolderSet) else None


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin


def _view(images: Sample, config: DataConfig, row: int, pixels: Pixels) -> float:
    """Seconds of the random view of one image; what is done once a batch is not counted."""
    batch = TrainViews(images, config, 0).begin(BatchRequest(0, 0, np.array([row])))
    return _timed(lambda: batch.write_view(0, pixels))[1]


def pack_one(data: bytes, pixels: Pixels) -> bytes:
    """What `udskd pack` makes of an image: the same JPEG if it is small, else one whose shorter side is SHORT_SIDE."""
    is_small = min(pixels.shape[:2]) <= SHORT_SIDE
    return data if is_small and data.startswith(b"\xff\xd8") else shrink_to_jpeg(pixels, SHORT_SIDE, QUALITY)[0]
