"""Views of images: Pillow's bits at every SIMD level, on any number of threads, and without the library; and nothing
outside of the arguments is read or written."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from hypothesis import example, given

from tests.data.helpers.resizing import (
    ROOT,
    RUNNABLE,
    Case,
    batch_of,
    cases,
    image,
    needs_13,
    needs_library,
    ours,
    pillow,
    some_cases,
    whole,
)
from tests.helpers.threads import threads
from udskd import _native
from udskd.data.resize import crop_resize, crop_resize_batch


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "problem", "there is none, the test says")


@needs_13
@given(cases())
@example(whole(1, 1, 224))
@example(whole(3, 3, 224))
@example(whole(2000, 2000, 8))
@example(whole(5, 2000, 8))
@example(whole(2000, 5, 8))
@example(whole(256, 256, 256))
@example(Case(60, 50, (10, 5, 34, 29), (24, 24), (0, 0), 24))  # only cropped
@example(Case(300, 200, (0, 0, 200, 300), (256, 384), (16, 80), 224))  # an evaluation
def test_a_view_has_pillows_bits(case: Case) -> None:
    np.testing.assert_array_equal(ours(case), pillow(case))


@needs_13
@needs_library
@pytest.mark.parametrize("shape", [(12, 9000), (9000, 12), (2, 40000)], ids=str)
def test_thousands_of_taps_have_pillows_bits(shape: tuple[int, int]) -> None:
    case = whole(*shape, 2)
    np.testing.assert_array_equal(ours(case), pillow(case))


@needs_13
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_the_order_of_the_passes_changes_where_pillow_changes_it(more: int) -> None:
    width = 30
    case = Case(20 + 2 * (width - 25) + more, width, (0, 0, width, 20 + 2 * (width - 25) + more), (25, 20), (2, 0), 20)
    np.testing.assert_array_equal(ours(case), pillow(case))


@needs_library
@pytest.mark.parametrize("level", RUNNABLE)
def test_every_simd_level_has_pillows_bits(level: str) -> None:
    command = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "pillows_bits and not level", __file__]
    environment = os.environ | {"UDSKD_SIMD": level}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@given(cases(largest=60, window=40))
def test_without_the_library_the_bits_are_the_same(case: Case) -> None:
    expected = ours(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "problem", "there is none, the test says")
        np.testing.assert_array_equal(ours(case), expected)


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_batch_has_the_bits_of_its_images_on_any_number_of_threads(count: int) -> None:
    some = some_cases()
    arguments = batch_of(some)
    with threads(count):
        crop_resize_batch(*arguments)
    for row, case in enumerate(some):
        np.testing.assert_array_equal(arguments[-1][row].numpy(), ours(case))


def test_a_batch_without_the_library_has_the_same_bits(no_library: None) -> None:
    some = some_cases()
    arguments = batch_of(some)
    crop_resize_batch(*arguments)
    for row, case in enumerate(some):
        np.testing.assert_array_equal(arguments[-1][row].numpy(), ours(case))


def test_a_batch_of_no_images_is_nothing() -> None:
    crop_resize_batch(*(x[:0] for x in batch_of(some_cases())))


def test_read_only_views_are_taken_without_a_warning() -> None:
    pixels, offsets, shapes, views, out = batch_of(some_cases())
    views.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crop_resize_batch(pixels, offsets, shapes, views, out)


def test_threads_of_python_run_side_by_side() -> None:
    some = some_cases(48)
    results: dict[int, list[np.ndarray]] = {}

    def work(which: int) -> None:
        results[which] = [ours(case) for _ in range(10) for case in some]

    running = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    expected = [ours(case) for case in some] * 10
    for result in results.values():
        np.testing.assert_array_equal(result, expected)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_row_of_a_batch_is_written_and_nothing_beside_it() -> None:
    case = whole(50, 60, 17)
    batch = np.full((3, 17, 17, 3), 7, np.uint8)
    crop_resize(image(case), case.view, batch[1])
    np.testing.assert_array_equal(batch[1], ours(case))
    assert (batch[[0, 2]] == 7).all()


def test_read_only_pixels_are_taken_without_a_warning() -> None:
    case = whole(20, 20, 10)
    pixels, out = image(case), np.zeros((10, 10, 3), np.uint8)
    pixels.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crop_resize(pixels, case.view, out)
    np.testing.assert_array_equal(out, ours(case))


class Fenced:
    """Memory that ends where none may be read or written any more."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        pages = -(-size // page)
        self.memory = mmap.mmap(-1, (pages + 1) * page)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        library = ctypes.CDLL(None, use_errno=True)
        fence = ctypes.c_void_p(self.address + pages * page)
        assert library.mprotect(fence, ctypes.c_size_t(page), 0) == 0
        self.begin, self.size = pages * page - size, size

    def array(self, *shape: int) -> np.ndarray:
        return np.frombuffer(self.memory, np.uint8, self.size, self.begin).reshape(shape)


FENCED = """
import sys
import numpy as np
from tests.data.test_resize import Case, Fenced, image, pillow, whole
from udskd.data.resize import crop_resize

for height, width in [(1, 1), (1, 2), (2, 1), (1, 5), (3, 4), (5, 6), (1, 17), (9, 33), (40, 64), (200, 21)]:
    for size in (1, 2, 5, 8, 16, 33, 64):
        case = whole(height, width, size)
        pixels, out = Fenced(height * width * 3).array(height, width, 3), Fenced(size * size * 3).array(size, size, 3)
        pixels[:] = image(case)
        crop_resize(pixels, case.view, out)
        assert (out == pillow(case)).all(), case
print("whole")
"""


@needs_13
@needs_library
@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
@pytest.mark.parametrize("level", RUNNABLE)
def test_nothing_beyond_the_image_is_touched(level: str) -> None:
    environment = os.environ | {"UDSKD_SIMD": level, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", FENCED], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "whole", (done.returncode, done.stderr[-2000:])
