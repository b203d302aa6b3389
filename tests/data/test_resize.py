"""resize: views have Pillow's bits at every SIMD level, on any number of threads, and without the compiled library; no
call reads or writes outside of its arguments."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from hypothesis import example, given

from tests.data.helpers.resizing import (
    OTHER_LEVELS,
    ROOT,
    RUNNABLE,
    ViewCase,
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
    monkeypatch.setattr(_native, "problem", "disabled by the test")


@needs_13
@given(cases())
@example(whole(1, 1, 224))
@example(whole(3, 3, 224))
@example(whole(2000, 2000, 8))
@example(whole(5, 2000, 8))
@example(whole(2000, 5, 8))
@example(whole(256, 256, 256))
@example(ViewCase(60, 50, (10, 5, 34, 29), (24, 24), (0, 0), 24))  # only cropped
@example(ViewCase(300, 200, (0, 0, 200, 300), (256, 384), (16, 80), 224))  # an evaluation
def test_a_view_has_pillows_bits(case: ViewCase) -> None:
    np.testing.assert_array_equal(ours(case), pillow(case))


@needs_13
@needs_library
@pytest.mark.parametrize("shape", [(12, 9000), (9000, 12), (2, 40000)], ids=str)
def test_thousands_of_taps_have_pillows_bits(shape: tuple[int, int]) -> None:
    case = whole(*shape, 2)
    np.testing.assert_array_equal(ours(case), pillow(case))


@needs_13
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_the_order_of_the_passes_is_pillows(more: int) -> None:
    width = 30
    case = ViewCase(
        20 + 2 * (width - 25) + more, width, (0, 0, width, 20 + 2 * (width - 25) + more), (25, 20), (2, 0), 20
    )
    np.testing.assert_array_equal(ours(case), pillow(case))


@pytest.mark.subprocess
@needs_library
@pytest.mark.parametrize("level", OTHER_LEVELS)
def test_every_simd_level_has_pillows_bits(level: str) -> None:
    command = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "pillows_bits and not level", __file__]
    environment = os.environ | {"UDSKD_SIMD": level}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@given(cases(largest=60, window=40))
def test_without_the_library_the_bits_are_the_same(case: ViewCase) -> None:
    expected = ours(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "problem", "disabled by the test")
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


def test_an_empty_batch_is_accepted() -> None:
    crop_resize_batch(*(x[:0] for x in batch_of(some_cases())))


def test_read_only_views_cause_no_warning() -> None:
    pixels, offsets, shapes, views, out = batch_of(some_cases())
    views.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crop_resize_batch(pixels, offsets, shapes, views, out)


def test_concurrent_calls_from_python_threads_are_independent() -> None:
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


def test_only_the_given_row_of_a_batch_is_written() -> None:
    case = whole(50, 60, 17)
    batch = np.full((3, 17, 17, 3), 7, np.uint8)
    crop_resize(image(case), case.view, batch[1])
    np.testing.assert_array_equal(batch[1], ours(case))
    assert (batch[[0, 2]] == 7).all()


def test_read_only_pixels_cause_no_warning() -> None:
    case = whole(20, 20, 10)
    pixels, out = image(case), np.zeros((10, 10, 3), np.uint8)
    pixels.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crop_resize(pixels, case.view, out)
    np.testing.assert_array_equal(out, ours(case))


GUARDED = """
import sys
import numpy as np
from tests.data.helpers.guard_page import GuardedBuffer
from tests.data.helpers.resizing import image, pillow, whole
from udskd.data.resize import crop_resize

for height, width in [(1, 1), (1, 2), (2, 1), (1, 5), (3, 4), (5, 6), (1, 17), (9, 33), (40, 64), (200, 21)]:
    for size in (1, 2, 5, 8, 16, 33, 64):
        case = whole(height, width, size)
        pixels = GuardedBuffer(height * width * 3).array(height, width, 3)
        out = GuardedBuffer(size * size * 3).array(size, size, 3)
        pixels[:] = image(case)
        crop_resize(pixels, case.view, out)
        assert (out == pillow(case)).all(), case
print("passed")
"""


@pytest.mark.slow_for(cases=lambda level: level in OTHER_LEVELS)
@pytest.mark.subprocess
@needs_13
@needs_library
@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
@pytest.mark.parametrize("level", RUNNABLE)
def test_memory_beyond_the_image_is_not_accessed(level: str) -> None:
    environment = os.environ | {"UDSKD_SIMD": level, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", GUARDED], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "passed", (done.returncode, done.stderr[-2000:])
