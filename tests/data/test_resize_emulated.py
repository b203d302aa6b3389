"""resize: the CUDA kernel's source, run on the CPU by tests/emulator, gives the CPU's bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.data.helpers.resizing import ViewCase, batch_of, cases, pillow
from tests.loss.helpers import emulated

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(emulated.reason() is not None, reason=str(emulated.reason())),
]
SOME = [
    ViewCase(20, 31, (3, 2, 30, 19), (9, 9), (0, 0), 9),
    ViewCase(40, 12, (0, 0, 12, 40), (16, 16), (0, 0), 16),  # columns first
    ViewCase(17, 17, (0, 0, 17, 17), (30, 24), (10, 3), 14),
    ViewCase(1, 1, (0, 0, 1, 1), (20, 20), (0, 0), 20),
]


@pytest.fixture(autouse=True)
def library() -> None:
    emulated.load()
    emulated.reset()
    emulated.log()


def resize(pixels: Tensor, offsets: Tensor, shapes: Tensor, views: np.ndarray, out: Tensor) -> None:
    torch.ops.udskd_emulated.crop_resize.default(pixels, offsets, shapes, torch.from_numpy(views), out)


@settings(max_examples=40)
@given(cases(largest=24, window=20))
def test_a_view_has_pillows_bits(case: ViewCase) -> None:
    pixels, offsets, shapes, views, out = batch_of([case])
    resize(pixels, offsets, shapes, views, out)
    np.testing.assert_array_equal(out[0].numpy(), pillow(case))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_batch_has_the_bits_of_its_images_in_every_order(order: int) -> None:
    emulated.order(order)
    same = [case._replace(size=(18, 18), at=(0, 0), window=18) for case in SOME]
    pixels, offsets, shapes, views, out = batch_of(same)
    resize(pixels, offsets, shapes, views, out)
    for row, case in enumerate(same):
        np.testing.assert_array_equal(out[row].numpy(), pillow(case))


def test_a_batch_is_one_launch() -> None:
    resize(*batch_of([SOME[0]] * 3))
    (line,) = emulated.log()
    assert line.startswith("resize_views")


def test_an_image_outside_of_the_pixels_is_black() -> None:
    pixels, offsets, shapes, views, out = batch_of([SOME[0]] * 4)
    offsets[1], offsets[2] = -1, len(pixels)
    resize(pixels, offsets, shapes, views, out)
    assert not out[1:3].any()
    np.testing.assert_array_equal(out[3].numpy(), pillow(SOME[0]))


def test_an_empty_batch_launches_no_kernel() -> None:
    resize(*(x[:0] for x in batch_of([SOME[0]])))
    assert emulated.log() == []
