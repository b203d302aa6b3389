"""Images, boxes and windows for the tests of resize, and the views that Pillow gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import udskd
from udskd.data import resize
from udskd.data.resize import View, crop_resize

ROOT = Path(__file__).parents[3]
LEVELS = list(udskd.build_info()["simd_levels"])
RUNNABLE = LEVELS[: LEVELS.index(udskd.build_info()["simd"]) + 1] if udskd.build_info()["simd"] else []
OTHER_LEVELS = RUNNABLE[:-1]  # all but the level in use, which the tests of this process run
needs_library = pytest.mark.skipif(not resize.has_kernel("cpu"), reason="there is no compiled library")
# Before version 13, Pillow always resizes rows before columns.
needs_13 = pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 has other bits")


class ViewCase(NamedTuple):
    """An image's height and width, a box of it, its resized width and height, and a window of that."""

    height: int
    width: int
    box: tuple[int, int, int, int]
    size: tuple[int, int]
    at: tuple[int, int]
    window: int

    @property
    def view(self) -> View:
        return View(*self.box, *self.size, *self.at)


def image(case: ViewCase) -> np.ndarray:
    """Noise with a white corner."""
    pixels = np.random.default_rng(case.height * 1000 + case.width).integers(0, 256, (case.height, case.width, 3))
    pixels[: case.height // 2, : case.width // 2] = 255
    return pixels.astype(np.uint8)


def pillow(case: ViewCase) -> np.ndarray:
    """The view that Pillow gives."""
    resized = Image.fromarray(image(case)).crop(case.box).resize(case.size, Image.Resampling.BILINEAR)
    (x, y), size = case.at, case.window
    return np.asarray(resized.crop((x, y, x + size, y + size)))


def ours(case: ViewCase) -> np.ndarray:
    out = np.full((case.window, case.window, 3), 77, np.uint8)
    crop_resize(image(case), case.view, out)
    return out


@st.composite
def cases(draw: st.DrawFn, largest: int = 300, window: int = 130) -> ViewCase:
    height, width = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    square = draw(st.integers(1, window))
    size = (square + draw(st.integers(0, 40)), square + draw(st.integers(0, 40))) if draw(st.booleans()) else None
    resized = size or (square, square)
    at = draw(st.integers(0, resized[0] - square)), draw(st.integers(0, resized[1] - square))
    return ViewCase(height, width, (left, top, right, bottom), resized, at, square)


def batch_of(given_cases: list[ViewCase]) -> tuple[Tensor, Tensor, Tensor, Any, Tensor]:
    """The arguments of crop_resize_batch: images without gaps between them, and an `out` filled with 77."""
    images = [image(case) for case in given_cases]
    ends = np.cumsum([x.size for x in images])
    pixels = torch.from_numpy(np.concatenate([x.ravel() for x in images]))
    offsets = torch.from_numpy(ends - [x.size for x in images])
    shapes = torch.tensor([x.shape[:2] for x in images])
    views = np.array([case.view for case in given_cases], dtype=np.int64)
    size = given_cases[0].window
    return pixels, offsets, shapes, views, torch.full((len(images), size, size, 3), 77, dtype=torch.uint8)


def whole(height: int, width: int, size: int) -> ViewCase:
    return ViewCase(height, width, (0, 0, width, height), (size, size), (0, 0), size)


def some_cases(size: int = 24) -> list[ViewCase]:
    shapes = [(30, 40), (1, 1), (200, 7), (7, 200), (24, 24), (64, 65), (3, 3), (100, 25)]
    return [whole(*shape, size) for shape in shapes]
