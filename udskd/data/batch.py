"""What a worker does: decode the images of one batch, cut their views, and hand over uint8 tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from udskd.config import DataConfig
from udskd.data import views
from udskd.data.sets import ImageSet, UnreadableImage

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Batch:
    """B images as they leave the workers; with mixup there is one row more: the partner of the last row."""

    images: Tensor
    """uint8 [B or B + 1, 3, S, S], in channels_last strides, not yet flipped."""
    labels: Tensor
    """int64 [B or B + 1]."""
    indices: Tensor
    """Numbers of the B images in their set, int64 [B]."""
    flips: Tensor
    """bool [B or B + 1]: which rows `to_device` mirrors."""
    mix: Tensor | None = None
    """float32 [B], share of row i in its mixture with row i + 1; None without mixup."""
    step: int = 0
    """Number of this batch in its epoch; steps of which no image could be read are missing."""

    def __len__(self) -> int:
        return len(self.indices)

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory (the DataLoader calls this)."""
        mix = None if self.mix is None else self.mix.pin_memory()
        images, labels = self.images.pin_memory(), self.labels.pin_memory()
        return replace(self, images=images, labels=labels, flips=self.flips.pin_memory(), mix=mix)


class Request(NamedTuple):
    """Which images a worker shall fetch; everything else about them follows from (seed, epoch, index)."""

    epoch: int
    step: int
    indices: npt.NDArray[np.int64]


class Parcel(NamedTuple):
    """A worker's answer: the batch (None if no image could be read) and (name, reason) of the unreadable images."""

    batch: Batch | None
    unreadable: list[tuple[str, str]]


class TrainViews(Dataset[Parcel]):
    """Random views. With mixup, the last index of a request is there only as the partner of the one before it."""

    def __init__(self, images: ImageSet, config: DataConfig, seed: int) -> None:
        self.images, self.config, self.seed = images, config, seed

    def __getitem__(self, request: Request) -> Parcel:
        config, (epoch, step, indices) = self.config, request
        draws = views.crop_draws(self.seed, epoch, indices)

        def view(row: int, image: Image.Image) -> Pixels:
            return resized_crop(image, views.crop_box(draws[row], *image.size, config.crop_scale), config.image_size)

        pixels, readable, unreadable = _decode(self.images, indices, config.image_size, view)
        rows, mix = np.flatnonzero(readable), None
        if config.mixup > 0:
            strengths = views.mixup_strengths(self.seed, epoch, indices[:-1], config.mixup)
            rows, mix = _pairs(readable, strengths)
        if len(rows) == 0:
            return Parcel(None, unreadable)
        batch = Batch(
            images=as_images(pixels if readable.all() else pixels[rows]),
            labels=torch.from_numpy(self.images.labels[indices[rows]]),
            indices=torch.from_numpy(indices[rows if mix is None else rows[:-1]]),
            flips=torch.from_numpy(views.flips(self.seed, epoch, indices[rows], config.flip)),
            mix=mix,
            step=step,
        )
        return Parcel(batch, unreadable)


def _pairs(readable: npt.NDArray[np.bool_], strengths: views.Floats) -> tuple[npt.NDArray[np.intp], Tensor]:
    """Rows to keep, then one more as the last one's partner, and the strengths.

    An image whose partner cannot be read stays unmixed. To mix it with the next but one would make it depend on where
    the batch ends.
    """
    strengths = np.where(readable[1:], strengths, 1.0)
    rows = np.flatnonzero(readable[:-1])
    mix = torch.from_numpy(strengths[rows].astype(np.float32))
    partner = [len(readable) - 1] if readable[-1] else rows[-1:]
    return (np.append(rows, partner) if len(rows) else rows), mix


class EvalViews(Dataset[Parcel]):
    """The central view of each image: shorter side to image_size / eval_crop, central square of image_size."""

    def __init__(self, images: ImageSet, config: DataConfig) -> None:
        self.images, self.config = images, config

    def __getitem__(self, request: Request) -> Parcel:
        config, indices = self.config, request.indices

        def view(_: int, image: Image.Image) -> Pixels:
            return central_view(image, config.image_size, config.eval_crop)

        pixels, readable, unreadable = _decode(self.images, indices, config.image_size, view)
        if not readable.all():
            return Parcel(None, unreadable)
        labels = torch.from_numpy(self.images.labels[indices])
        flips = torch.zeros(len(indices), dtype=torch.bool)
        return Parcel(Batch(as_images(pixels), labels, torch.from_numpy(indices), flips, step=request.step), [])


def _decode(
    images: ImageSet, indices: npt.NDArray[np.int64], size: int, view: Callable[[int, Image.Image], Pixels]
) -> tuple[Pixels, npt.NDArray[np.bool_], list[tuple[str, str]]]:
    """The views [B, size, size, 3], which rows of it are filled, and (name, reason) of the images that are not."""
    pixels = np.empty((len(indices), size, size, 3), dtype=np.uint8)
    readable = np.ones(len(indices), dtype=np.bool_)
    unreadable = []
    for row, index in enumerate(indices.tolist()):
        try:
            pixels[row] = view(row, images.image(index))
        except UnreadableImage as error:
            readable[row] = False
            unreadable.append((error.name, error.reason))
    return pixels, readable, unreadable


def as_images(pixels: Pixels) -> Tensor:
    """[B, S, S, 3] as a [B, 3, S, S] tensor over the same memory, which makes it channels_last for free."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def resized_crop(image: Image.Image, box: views.Box, size: int) -> Pixels:
    """Cut a box and resize it (bilinear with antialiasing, as torchvision does) to uint8 [size, size, 3]."""
    return np.asarray(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))


def central_view(image: Image.Image, size: int, share: float) -> Pixels:
    """Resize the shorter side to size / share and keep the central square, uint8 [size, size, 3]."""
    short, target = min(image.size), round(size / share)
    if short != target:
        width, height = (target if side == short else int(target * side / short) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))
