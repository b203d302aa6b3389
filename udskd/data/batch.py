"""Batches of uint8 views: the requests for them, and how they are made, row by row. The workers do it in parallel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from udskd.config.schema import DataConfig
from udskd.data import augment
from udskd.data.dataset import ImageSet, Pixels, UnreadableImage
from udskd.data.hashing import Floats
from udskd.data.resize import View, crop_resize

ReadError = tuple[str, str]
"""Name of an image that cannot be read, and the reason."""
Unreadable = dict[int, ReadError]
"""The images of a request that cannot be read, by their rows."""


@dataclass(frozen=True)
class Batch:
    """B images, not yet flipped; with mixup, one more row holds the partner of the last image.

    If no image of a training batch can be read, all its tensors have 0 rows.
    """

    images: Tensor
    """uint8 [B or B + 1, 3, S, S], in channels_last strides."""
    labels: Tensor
    """int64 [B or B + 1]."""
    indices: Tensor
    """Indices of the B images in their set, int64 [B], always on the host."""
    flips: Tensor
    """bool [B or B + 1]: which rows `normalize_batch` mirrors."""
    mix: Tensor | None = None
    """float32 [B], weight of row i in its mixture with row i + 1; None without mixup."""
    step: int = 0
    """Index of this batch's step in its epoch; in evaluation, index of the batch."""
    part: int = 0
    """Index of this batch in its step, below training.accumulate."""

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; the host does not wait for the copy."""
        mix = None if self.mix is None else copy_to_device(self.mix, device)
        images, labels, flips = (copy_to_device(t, device) for t in (self.images, self.labels, self.flips))
        return replace(self, images=images, labels=labels, flips=flips, mix=mix)

    def __reduce__(self) -> tuple[Any, ...]:
        # PyTorch passes every tensor between processes in a shared-memory segment of its own. Only the images are large
        # enough to gain from that; numpy arrays are pickled by value.
        small = [t.numpy() for t in (self.labels, self.indices, self.flips)]
        mix = None if self.mix is None else self.mix.numpy()
        return _unpickled, (self.images, small, mix, self.step, self.part)


def _unpickled(images: Tensor, small: list[Any], mix: Any, step: int, part: int) -> Batch:
    labels, indices, flips = map(torch.from_numpy, small)
    return Batch(images, labels, indices, flips, None if mix is None else torch.from_numpy(mix), step, part)


class BatchRequest(NamedTuple):
    """Which images make a batch; their views are functions of (seed, epoch, index)."""

    epoch: int
    step: int
    indices: npt.NDArray[np.int64]
    part: int = 0


class BatchResult(NamedTuple):
    """What a request results in: the batch, and the images that are left out because they cannot be read."""

    batch: Batch | None
    """None if an image of an evaluation batch cannot be read."""
    unreadable: list[ReadError]

    def to(self, device: torch.device) -> BatchResult:
        """The result with its batch on a device."""
        return self if self.batch is None else self._replace(batch=self.batch.to(device))


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; the host does not wait for a copy to a GPU, which goes through page-locked memory."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    # A non-blocking copy from a GPU to the host returns before the data have arrived.
    return tensor.to(device, non_blocking=device.type == "cuda")


ViewFunction = Callable[[int, int, int], View]
"""From the row of an image in a request, its width and its height to its view."""


@dataclass(frozen=True)
class PartialBatch:
    """A batch that is being made. Threads may fill different rows of it at the same time."""

    request: BatchRequest
    pixels: Tensor
    """uint8 [B, S, S, 3]. Threads write their rows in place: stacking the views afterwards would copy them again."""
    write_view: Callable[[int, Pixels], None]
    """Writes the view of a decoded image into a row of `pixels`."""


class Views(Dataset[BatchResult], ABC):
    """Makes batches, at once or in three steps: begin, fill all rows, finish."""

    images: ImageSet

    def __getitem__(self, request: BatchRequest) -> BatchResult:
        batch = self.begin(request)
        unreadable = self.fill(batch, range(len(request.indices)))
        return self.finish(request, batch.pixels, unreadable)

    def fill(self, batch: PartialBatch, rows: Iterable[int]) -> Unreadable:
        """Decode the images of some rows and write their views. Returns which of these rows are not filled, and why."""
        unreadable: Unreadable = {}
        for row in rows:
            try:
                batch.write_view(row, self.images.pixels(int(batch.request.indices[row])))
            except UnreadableImage as error:
                unreadable[row] = (error.name, error.reason)
        return unreadable

    @abstractmethod
    def begin(self, request: BatchRequest) -> PartialBatch:
        """A batch whose rows are not filled yet."""

    @abstractmethod
    def finish(self, request: BatchRequest, pixels: Tensor, unreadable: Unreadable) -> BatchResult:
        """The result from `pixels` [B, S, S, 3] on any device, whose unreadable rows are not filled."""


def _begin(request: BatchRequest, size: int, view: ViewFunction) -> PartialBatch:
    """A batch of views of size x size pixels."""
    pixels = _allocate(len(request.indices), size)
    rows = pixels.numpy()

    def write_view(row: int, image: Pixels) -> None:
        crop_resize(image, view(row, image.shape[1], image.shape[0]), rows[row])

    return PartialBatch(request, pixels, write_view)


class TrainViews(Views):
    """Random views. With mixup, a request has one index more, whose image is only the partner of the one before it."""

    def __init__(self, images: ImageSet, config: DataConfig, seed: int) -> None:
        self.images, self.config, self.seed = images, config, seed

    def begin(self, request: BatchRequest) -> PartialBatch:
        return _begin(request, self.config.image_size, self.view_function(request))

    def view_function(self, request: BatchRequest) -> ViewFunction:
        """The random resized crop of each image."""
        draws = augment.crop_draws(self.seed, request.epoch, request.indices)
        scale, size = self.config.crop_scale, self.config.image_size
        return lambda row, width, height: View(*augment.crop_box(draws[row], width, height, scale), size, size, 0, 0)

    def finish(self, request: BatchRequest, pixels: Tensor, unreadable: Unreadable) -> BatchResult:
        config, (epoch, step, indices, part) = self.config, request
        readable = np.ones(len(indices), dtype=np.bool_)
        readable[list(unreadable)] = False
        rows, mix = np.flatnonzero(readable), None
        if config.mixup > 0:
            strengths = augment.mixup_strengths(self.seed, epoch, indices[:-1], config.mixup)
            rows, mix = _pairs(readable, strengths)
        batch = Batch(
            images=as_channels_last(pixels if readable.all() else _select(pixels, rows)),
            labels=torch.from_numpy(self.images.labels[indices[rows]]),
            indices=torch.from_numpy(indices[rows if mix is None else rows[:-1]]),
            flips=torch.from_numpy(augment.flips(self.seed, epoch, indices[rows], config.flip)),
            mix=mix,
            step=step,
            part=part,
        )
        return BatchResult(batch, _sorted_by_row(unreadable))


def _select(pixels: Tensor, rows: npt.NDArray[np.intp]) -> Tensor:
    return pixels[copy_to_device(torch.from_numpy(rows), pixels.device)]


def _pairs(readable: npt.NDArray[np.bool_], strengths: Floats) -> tuple[npt.NDArray[np.intp], Tensor]:
    """The rows of the images to keep, then the row of the last one's partner; and the weights of the images, [B].

    An image whose partner cannot be read is not mixed. If it were mixed with the next readable image, it would depend
    on where the batch ends.
    """
    strengths = np.where(readable[1:], strengths, 1.0)
    rows = np.flatnonzero(readable[:-1])
    mix = torch.from_numpy(strengths[rows].astype(np.float32))
    partner = [len(readable) - 1] if readable[-1] else rows[-1:]
    return (np.append(rows, partner) if len(rows) else rows), mix


class EvalViews(Views):
    """The central view of each image: shorter side to image_size / eval_crop, central square of image_size."""

    def __init__(self, images: ImageSet, config: DataConfig) -> None:
        self.images, self.config = images, config

    def begin(self, request: BatchRequest) -> PartialBatch:
        size, crop = self.config.image_size, self.config.eval_crop
        return _begin(request, size, lambda _, width, height: augment.central_view(width, height, size, crop))

    def finish(self, request: BatchRequest, pixels: Tensor, unreadable: Unreadable) -> BatchResult:
        if unreadable:
            return BatchResult(None, _sorted_by_row(unreadable))
        labels, indices = (torch.from_numpy(a) for a in (self.images.labels[request.indices], request.indices))
        flips = torch.zeros(len(indices), dtype=torch.bool)
        return BatchResult(Batch(as_channels_last(pixels), labels, indices, flips, step=request.step), [])


class ReadCheck(Views):
    """Decodes images and keeps only the errors."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def begin(self, request: BatchRequest) -> PartialBatch:
        return PartialBatch(request, torch.empty(0, dtype=torch.uint8), lambda row, image: None)

    def finish(self, request: BatchRequest, pixels: Tensor, unreadable: Unreadable) -> BatchResult:
        return BatchResult(None, _sorted_by_row(unreadable))


def _sorted_by_row(unreadable: Unreadable) -> list[ReadError]:
    return [unreadable[row] for row in sorted(unreadable)]


def _allocate(rows: int, size: int) -> Tensor:
    """uint8 [rows, size, size, 3]; in a worker process in shared memory, which is passed on without a copy."""
    shape = (rows, size, size, 3)
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(rows * size * size * 3)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def as_channels_last(pixels: Tensor) -> Tensor:
    """The same memory, [B, S, S, 3], as [B, 3, S, S] in channels_last strides."""
    return pixels.permute(0, 3, 1, 2)
