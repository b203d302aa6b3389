"""resize: the errors about wrong arguments, the same with and without the compiled library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.data.helpers.resizing import batch_of, needs_library, whole
from udskd import _native
from udskd.data.resize import View, crop_resize, crop_resize_batch

GOOD: dict[str, Any] = {
    "pixels": np.zeros((30, 40, 3), np.uint8),
    "view": View(1, 2, 21, 22, 16, 16, 0, 0),
    "out": np.zeros((16, 16, 3), np.uint8),
}
VIEWS = [
    ({"left": -1}, "(left -1, top 2, right 21, bottom 22), which is empty or not within its 30 x 40 pixels"),
    ({"left": 21}, "box (left 21, top 2, right 21, bottom 22)"),
    ({"top": 25}, "box (left 1, top 25, right 21, bottom 22)"),
    ({"right": 41}, "box (left 1, top 2, right 41, bottom 22)"),
    ({"bottom": 31}, "box (left 1, top 2, right 21, bottom 31)"),
    ({"bottom": 2**62}, "box (left 1, top 2, right 21, bottom 4611686018427387904)"),
    ({"width": 0}, "resized to width 0, height 16, expected 1 to 16777216"),
    ({"height": -5}, "resized to width 16, height -5"),
    ({"width": 2**24 + 1}, "resized to width 16777217, height 16"),
    ({"width": 15}, "window of 16 pixels at x 0, y 0, which is not within width 15, height 16"),
    ({"x": 1}, "window of 16 pixels at x 1, y 0"),
    ({"x": -1}, "window of 16 pixels at x -1, y 0"),
    ({"y": 2**62}, "window of 16 pixels at x 0, y 4611686018427387904"),
]


@pytest.fixture(params=[pytest.param(True, id="compiled", marks=needs_library), pytest.param(False, id="pillow")])
def each_implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(_native, "problem", "disabled by the test")


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize(("changes", "words"), VIEWS, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_a_wrong_view_is_named(changes: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=r"^crop_resize: image 0 ") as caught:
        crop_resize(**(GOOD | {"view": GOOD["view"]._replace(**changes)}))
    assert words in str(caught.value)


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pixels": np.zeros((30, 40), np.uint8)}, "pixels must be contiguous uint8 [height, width, 3]"),
        ({"pixels": np.zeros((30, 40, 4), np.uint8)}, "pixels must be contiguous"),
        ({"pixels": np.zeros((30, 40, 3), np.float32)}, "pixels must be contiguous"),
        ({"pixels": np.zeros((30, 80, 3), np.uint8)[:, ::2]}, "pixels must be contiguous"),
        ({"out": np.zeros((16, 17, 3), np.uint8)}, "out must be contiguous uint8 [size, size, 3]"),
        ({"out": np.zeros((16, 16, 3), np.int8)}, "out must be contiguous"),
        ({"out": np.zeros((3, 16, 16), np.uint8).transpose(1, 2, 0)}, "out must be contiguous"),
        ({"out": np.frombuffer(bytes(768), np.uint8).reshape(16, 16, 3)}, "out is read-only"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_wrong_array_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="crop_resize: ") as caught:
        crop_resize(**(GOOD | changes))
    assert words in str(caught.value)


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("offset", [-244, 1, 2**62, -(2**62)])
def test_an_image_outside_of_the_pixels_is_named(offset: int) -> None:
    pixels, offsets, shapes, views, out = batch_of([whole(9, 9, 4)] * 2)
    offsets[1] += offset
    with pytest.raises(ValueError, match=r"image 1 of 243 bytes at offset .* is not within the 486 bytes of pixels"):
        crop_resize_batch(pixels, offsets, shapes, views, out)


@pytest.mark.usefixtures("each_implementation")
def test_a_wrong_view_in_a_batch_is_named_with_its_row() -> None:
    pixels, offsets, shapes, views, out = batch_of([whole(9, 9, 4)] * 3)
    views[2, 2] = 10
    with pytest.raises(ValueError, match="crop_resize: image 2 has the box"):
        crop_resize_batch(pixels, offsets, shapes, views, out)


@needs_library
@pytest.mark.parametrize(
    ("position", "wrong", "words"),
    [
        (0, torch.zeros(2, 243, dtype=torch.uint8), "pixels must be contiguous uint8"),
        (0, torch.zeros(486), "pixels must be contiguous uint8"),
        (1, torch.zeros(3, dtype=torch.int64), "offsets must be contiguous int64 for 2 images"),
        (1, torch.zeros(2, dtype=torch.int32), "offsets must be contiguous int64"),
        (2, torch.ones(2, 3, dtype=torch.int64), "shapes must be contiguous int64"),
        (2, torch.zeros(2, 2, dtype=torch.int64), "image 0 is 0 x 0 pixels"),
        (2, torch.full((2, 2), 2**40), "image 0 is 1099511627776 x 1099511627776 pixels"),
        (3, np.zeros((2, 7), np.int64), "views must be contiguous int64"),
        (3, np.zeros((2, 8), np.int32), "views must be contiguous int64"),
        (4, torch.zeros(2, 4, 4, 4, dtype=torch.uint8), "out must be contiguous uint8 [images, size, size, 3]"),
        (4, torch.zeros(2, 3, 4, 4, dtype=torch.uint8).permute(0, 2, 3, 1), "out must be contiguous"),
    ],
)
def test_a_wrong_argument_of_a_batch_is_named(position: int, wrong: Any, words: str) -> None:
    arguments: list[Any] = list(batch_of([whole(9, 9, 4)] * 2))
    arguments[position] = wrong
    with pytest.raises(ValueError, match="crop_resize: ") as caught:
        crop_resize_batch(*arguments)
    assert words in str(caught.value)


def test_a_device_without_a_kernel_is_named() -> None:
    arguments = [x.to("meta") if isinstance(x, Tensor) else x for x in batch_of([whole(9, 9, 4)])]
    with pytest.raises(NotImplementedError, match="views of images on meta"):
        crop_resize_batch(*arguments)
