"""Trained networks for use elsewhere: udskd.load("runs/a/student_a.safetensors")."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from udskd.config.schema import DataConfig
from udskd.data import ImageSet, normalize_batch
from udskd.data.batch import BatchRequest, EvalViews
from udskd.data.dataset import Pixels
from udskd.data.decode import pixels_of, translate_errors
from udskd.errors import CheckpointError, DataError
from udskd.files import PREDICTIONS
from udskd.models.checkpoints import keep_stem_mark
from udskd.models.loading import load_own_network

OneImage: TypeAlias = "Image.Image | npt.NDArray[np.uint8] | Tensor"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A trained network with the preprocessing of its images and the names of its classes."""

    name: str
    """Name of the model, such as "mobilenet_v2"."""
    stem: str
    """The first layers: "imagenet" is torchvision's network; in "half" and "small" they down-sample less."""
    classes: tuple[str, ...] = field(repr=False)
    """Names of the classes, in the order of the logits."""
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    eval_crop: float
    """Part of the resized image's shorter side that preprocess() keeps."""
    module: nn.Module = field(repr=False)
    """Images float32 [B, 3, S, S] -> logits [B, C]; in eval mode, on the CPU. If the stem is not torchvision's, the
    state dict names it, so that torchvision's network refuses the state dict."""

    def preprocess(self, images: OneImage | Sequence[OneImage]) -> Tensor:
        """The input of the network, float32 [B, 3, S, S] with S = image_size, with the same bits as in the evaluation.

        images: a PIL image, whose EXIF orientation is applied; an RGB array or tensor uint8 [H, W, 3]; a sequence of
        these, whose sizes may differ; or an array or tensor uint8 [B, H, W, 3].

        Give a PIL image as Image.open() returned it: a copy has lost its format and the tags of a TIFF. So with more
        than 8 bits, a copy of mode "I" is refused, and a copy of a TIFF whose 0 is white is inverted.

        Raises ValueError for arrays of another shape or dtype, DataError for an image that PIL cannot decode.
        """
        data = DataConfig(
            image_size=self.image_size,
            eval_crop=self.eval_crop,
            flip=0.0,
            mean=_three(self.mean),
            std=_three(self.std),
        )
        image_list = _ImageList(images, self.classes)
        batch, unreadable = EvalViews(image_list, data)[BatchRequest(0, 0, np.arange(len(image_list)))]
        if batch is None:
            name, reason = unreadable[0]
            raise DataError(f"{name} cannot be decoded: {reason}")
        return normalize_batch(batch, data, "cpu", len(self.classes))[0]

    @torch.no_grad()
    def predict(self, images: OneImage | Sequence[OneImage]) -> Tensor:
        """p(class | image), float32 [B, C], of images as for preprocess()."""
        parameter = next(self.module.parameters())
        return torch.softmax(self.module(self.preprocess(images).to(parameter)).float(), -1)


def load(path: str | os.PathLike[str]) -> LoadedModel:
    """The network in a .safetensors file of a run: a student, the teacher, teacher_shaped, or one of the best.

    Loading executes no code of the file. Raises CheckpointError if it is missing, damaged or not udskd's.
    """
    file = _weights_file(path)
    model, info = load_own_network(file)
    if info.eval_crop is None:
        warnings.warn(
            f"{file} is of an older udskd and does not record data.eval_crop: {DataConfig.eval_crop} is assumed",
            stacklevel=2,
        )
    crop = DataConfig.eval_crop if info.eval_crop is None else info.eval_crop
    module = model.module.eval()
    keep_stem_mark(module, info.model, info.stem)
    return LoadedModel(info.model, info.stem, info.classes, info.image_size, info.mean, info.std, crop, module)


def _weights_file(path: str | os.PathLike[str]) -> Path:
    """The path with the home folder in place of ~. CheckpointError if it cannot be a file of weights."""
    try:
        file = Path(path).expanduser()
    except RuntimeError:
        raise CheckpointError(f"there is no checkpoint at {os.fspath(path)}: the home folder is not known") from None
    if file.is_dir():
        raise CheckpointError(f"{file} is a folder{_files(file)}")
    if file.exists() and file.suffix.lower() != ".safetensors":
        raise CheckpointError(
            f"{file} is not a .safetensors file: udskd.load takes those of udskd train, which describe their network"
        )
    if file.exists() and file.name == PREDICTIONS:
        raise CheckpointError(f"{file} holds the students' predictions, not weights{_files(file.parent)}")
    return file


def _files(folder: Path) -> str:
    names = sorted(file.name for file in folder.glob("*.safetensors") if file.name != PREDICTIONS)
    return f": load one of its files, {', '.join(names)}" if names else " without weights: give a .safetensors file"


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third


class _ImageList(ImageSet):
    """The caller's images, without labels."""

    def __init__(self, images: OneImage | Sequence[OneImage], classes: tuple[str, ...]) -> None:
        several = isinstance(images, Sequence) or (isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4)
        self._images = list(images) if several else [images]  # type: ignore[arg-type]
        for index, image in enumerate(self._images):
            if not isinstance(image, Image.Image):
                _check(image, index)
        self.classes = classes
        self.labels = np.zeros(len(self._images), dtype=np.int64)

    def name(self, index: int) -> str:
        return f"image {index}"

    def pixels(self, index: int) -> Pixels:
        image = self._images[index]
        if isinstance(image, Image.Image):
            with translate_errors(self.name(index)):
                _refuse_copy(image)
                return np.ascontiguousarray(pixels_of(image))
        return np.ascontiguousarray(image.cpu().numpy() if isinstance(image, Tensor) else image)


def _refuse_copy(image: Image.Image) -> None:
    """ValueError for pixels whose brightness range follows from the file's format, if the format is lost."""
    if image.mode == "I" and image.format is None:
        raise ValueError(
            'its pixels are of mode "I" and it has no format, so their brightness range is not known: give the image '
            "as Image.open() returned it, not a copy"
        )


def _check(image: object, index: int) -> None:
    expected = "expected a PIL image, or an array or tensor uint8 [H, W, 3]"
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ValueError(f"images: image {index} is a {type(image).__name__}, {expected}")
    if image.dtype not in (np.uint8, torch.uint8) or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        shape, dtype = list(image.shape), str(image.dtype).removeprefix("torch.")
        raise ValueError(f"images: image {index} is {dtype} {shape}, {expected}")
