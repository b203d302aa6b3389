"""Workers that decode a set once and keep it in memory: in the GPU's if it has a kernel for the views, else in RAM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from udskd.data.batch import BatchRequest, BatchResult, EvalViews, ReadError, TrainViews, copy_to_device
from udskd.data.dataset import ImageSet, Pixels, UnreadableImage
from udskd.data.resize import crop_resize_batch, has_kernel
from udskd.data.workers import Poll, Progress, Workers, in_order, make_workers, no_op
from udskd.errors import DataError

T = TypeVar("T")
GIB = 2**30
LEFT_ON_GPU, LEFT_IN_RAM = 8 * GIB, 2 * GIB
"""Memory that the images leave free for everything else; a third of a GPU's memory if that is less. Unmeasured."""


@dataclass(frozen=True)
class ResidentImages:
    """All N images of a set, decoded, in one tensor."""

    pixels: Tensor
    """uint8 [bytes]."""
    offsets: Tensor
    """First byte of each image, int64 [N], on the same device."""
    shapes: npt.NDArray[np.int64]
    """Height and width of each image, [N, 2]; an image that cannot be read is a black pixel."""
    unreadable: dict[int, ReadError]
    """By index."""


def decode_all(
    images: ImageSet, device: torch.device, threads: int, progress: Progress = no_op, poll: Poll = no_op
) -> ResidentImages:
    """Decode a whole set into a device's memory. `poll` is called for every image and may raise.

    Raises:
        DataError: the images need more memory than is free.
    """
    areas = np.array([1 if isinstance(a, UnreadableImage) else a for a in _each(images, images.area, threads, poll)])
    ends = 3 * areas.cumsum()
    starts, shapes = ends - 3 * areas, np.ones((len(images), 2), dtype=np.int64)
    check_fits(int(ends[-1]), f"the {len(images)} images of the training set", device)
    pixels = torch.zeros(int(ends[-1]), dtype=torch.uint8, device=device)
    unreadable: dict[int, ReadError] = {}
    for index, found in enumerate(_each(images, images.pixels, threads, poll)):
        if isinstance(found, UnreadableImage):
            unreadable[index] = (found.name, found.reason)
        elif found.size != ends[index] - starts[index]:
            unreadable[index] = (images.name(index), "its size is not that of its header")
        else:
            shapes[index] = found.shape[:2]
            pixels[int(starts[index]) : int(ends[index])].copy_(_as_tensor(found))
        progress(index + 1, len(images))
    return ResidentImages(pixels, torch.from_numpy(starts).to(device), shapes, unreadable)


def _each(images: ImageSet, function: Callable[[int], T], threads: int, poll: Poll) -> Iterator[T | UnreadableImage]:
    def attempt(index: int) -> T | UnreadableImage:
        try:
            return function(index)
        except UnreadableImage as error:
            return error

    with closing(in_order(attempt, range(len(images)), threads)) as results:
        for result in results:
            poll()
            yield result


def _as_tensor(pixels: Pixels) -> Tensor:
    flat = pixels.reshape(-1)
    return torch.from_numpy(flat if flat.flags.writeable else flat.copy())


class ResidentTraining(Workers):
    """Cuts the views of each batch from images that prepare() or the first run decodes."""

    def __init__(self, views: TrainViews, device: torch.device, threads: int) -> None:
        self._views, self._threads = views, threads
        self._device = device if has_kernel(device.type) else torch.device("cpu")
        self._images: ResidentImages | None = None

    def prepare(self, progress: Progress = no_op, poll: Poll = no_op) -> None:
        if self._images is None:
            self._images = decode_all(self._views.images, self._device, self._threads, progress, poll)

    def run(self, requests: Iterable[BatchRequest]) -> Iterator[BatchResult]:
        self.prepare()
        return map(self._make, requests)

    def _make(self, request: BatchRequest) -> BatchResult:
        images, size, indices = self._images, self._views.config.image_size, request.indices
        assert images is not None
        shapes, rows = images.shapes[indices], copy_to_device(torch.from_numpy(indices), self._device)
        out = torch.empty((len(indices), size, size, 3), dtype=torch.uint8, device=self._device)
        view = self._views.view_function(request)
        views = [view(row, width, height) for row, (height, width) in enumerate(shapes.tolist())]
        crop_resize_batch(images.pixels, images.offsets[rows], torch.from_numpy(shapes), np.array(views, np.int64), out)
        unreadable = {k: images.unreadable[i] for k, i in enumerate(indices.tolist()) if i in images.unreadable}
        return self._views.finish(request, out, unreadable).to(self._device)

    def close(self) -> None:
        self._images = None


class ResidentEvaluation(Workers):
    """Keeps the batches of the first complete run: central views are the same in every epoch."""

    def __init__(self, views: EvalViews, device: torch.device, threads: int) -> None:
        self._views, self._device, self._threads = views, device, threads
        self._results: list[BatchResult] = []

    def run(self, requests: Iterable[BatchRequest]) -> Iterator[BatchResult]:
        return iter(self._results) if self._results else self._decode(list(requests))

    def _decode(self, requests: list[BatchRequest]) -> Iterator[BatchResult]:
        count, size = sum(len(request.indices) for request in requests), self._views.config.image_size
        # On a GPU, the training has already allocated its memory, so that none must be left for it.
        left = 0 if self._device.type == "cuda" else None
        check_fits(3 * size * size * count, f"the {count} views of the evaluation", self._device, left)
        results, threads = [], make_workers(self._views, "threads", self._threads)
        try:
            decoded = threads.run(requests)
            for _ in requests:
                with torch.inference_mode(False):  # the batches outlive the first evaluation
                    results.append(next(decoded).to(self._device))
                yield results[-1]
        finally:
            threads.close()
        self._results = results

    def close(self) -> None:
        self._results = []


def check_fits(needed: int, what: str, device: torch.device, left: int | None = None) -> None:
    """DataError if a device's free memory is less than the needed bytes and those that must be left free."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # returns cached blocks, but not the memory of CUDA graphs
        free, total = torch.cuda.mem_get_info(device)
        left = min(LEFT_ON_GPU, total // 3) if left is None else left
    else:
        free, left = available_memory(), LEFT_IN_RAM if left is None else left
    if needed > free - left:
        sizes = f"{needed / GIB:.1f} GiB decoded, but of the {free / GIB:.1f} GiB that are free on {device}"
        raise DataError(
            f"{what} need {sizes}, {left / GIB:.1f} GiB must remain free for everything else: make the images "
            "smaller (udskd pack), or choose another data.loader"
        )


def available_memory() -> int:
    """Bytes of RAM that are available without swapping, from Linux; elsewhere 2^62."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 1 << 62
