"""The operator behind normalize_batch on the CPU: PyTorch's bits at every SIMD level, on any number of threads and
without the library; it reads nothing outside of its arguments."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from tests.data.helpers.resizing import OTHER_LEVELS, ROOT, RUNNABLE
from tests.helpers.threads import threads
from udskd import _native
from udskd.config.schema import DataConfig
from udskd.data import Batch, normalize_batch

CONFIG = DataConfig()
FORMATS = [torch.channels_last, torch.contiguous_format]
needs_operator = pytest.mark.skipif(
    _native.problem is not None or not hasattr(torch.ops.udskd, "normalize_views"),
    reason="there is no compiled library with it",
)


class Case(NamedTuple):
    images: int
    size: int
    mixed: bool
    flip: bool = True
    memory_format: torch.memory_format = torch.channels_last
    seed: int = 0

    @property
    def rows(self) -> int:
        return self.images + (self.mixed and self.images > 0)


def batch_of(case: Case) -> Batch:
    """Noise; 0, 1 and 0.5 are frequent among the mixing weights."""
    generator = torch.Generator().manual_seed(case.seed)
    shape = (case.rows, case.size, case.size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    flips = torch.rand(case.rows, generator=generator) < 0.5
    mix = torch.rand(case.images, generator=generator)
    special = torch.tensor([0.0, 1.0, 0.5])[torch.randint(0, 3, (case.images,), generator=generator)]
    mix = torch.where(torch.rand(case.images, generator=generator) < 0.3, special, mix)
    labels, indices = torch.arange(case.rows) % 3, torch.arange(case.images)
    return Batch(pixels.permute(0, 3, 1, 2), labels, indices, flips, mix if case.mixed else None)


def normalized(case: Case) -> Tensor:
    config = replace(CONFIG, flip=0.5 if case.flip else 0.0)
    return normalize_batch(batch_of(case), config, "cpu", 3, case.memory_format)[0]


def expected(case: Case) -> np.ndarray:
    """The same steps by NumPy, each rounded to float32."""
    batch = batch_of(case)
    x = batch.images.permute(0, 2, 3, 1).numpy().astype(np.float32)
    if case.flip:
        x = np.where(batch.flips.numpy()[:, None, None, None], x[:, :, ::-1], x)
    if batch.mix is not None:
        x = (x[:-1] - x[1:]) * batch.mix.numpy()[:, None, None, None] + x[1:]
    mean, std = np.array(CONFIG.mean), np.array(CONFIG.std)
    return x * (1 / (255 * std)).astype(np.float32) + (-mean / std).astype(np.float32)


def assert_exact(case: Case) -> None:
    images = normalized(case)
    assert case.images == 0 or images.is_contiguous(memory_format=case.memory_format)
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), expected(case))


cases = st.builds(
    Case,
    st.integers(0, 4),
    st.integers(1, 70),
    st.booleans(),
    st.booleans(),
    st.sampled_from(FORMATS),
    st.integers(0, 1000),
)


@given(cases)
@example(Case(1, 1, True))
@example(Case(2, 224, True))
@example(Case(2, 224, False, memory_format=torch.contiguous_format))
def test_images_are_exact(case: Case) -> None:
    assert_exact(case)


@given(cases)
def test_images_are_exact_without_the_library(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "problem", "disabled by the test")
        assert_exact(case)


@pytest.mark.parametrize("level", OTHER_LEVELS)
def test_every_simd_level_is_exact(level: str) -> None:
    command = [
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        "images_are_exact and not without",
        __file__,
    ]
    environment = os.environ | {"UDSKD_SIMD": level}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("mixed", [False, True])
def test_any_number_of_threads_is_exact(count: int, memory_format: torch.memory_format, mixed: bool) -> None:
    with threads(count):  # the case has enough rows for three
        assert_exact(Case(15, 67, mixed, memory_format=memory_format))


@pytest.mark.parametrize("memory_format", FORMATS)
def test_no_rows_give_no_images(memory_format: torch.memory_format) -> None:
    for mixed in (False, True):
        images = normalized(Case(0, 9, mixed, memory_format=memory_format))
        assert images.shape == (0, 3, 9, 9)
        assert images.dtype == torch.float32


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_mixing_weight_of_0_or_1_gives_the_image_itself(weight: float) -> None:
    batch = batch_of(Case(4, 20, True))
    rows = normalize_batch(replace(batch, mix=None), CONFIG, "cpu", 3)[0]
    mixed = normalize_batch(replace(batch, mix=torch.full((4,), weight)), CONFIG, "cpu", 3)[0]
    assert torch.equal(mixed, rows[:-1] if weight else rows[1:])


def test_pixels_may_have_other_strides() -> None:
    batch = batch_of(Case(3, 20, False))
    found = normalize_batch(replace(batch, images=batch.images.contiguous()), CONFIG, "cpu", 3)[0]
    assert torch.equal(found, normalize_batch(batch, CONFIG, "cpu", 3)[0])


def test_pixels_need_not_be_square() -> None:
    batch = batch_of(Case(3, 20, True))
    batch = replace(batch, images=batch.images[:, :, 3:16])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "problem", "disabled by the test")
        slow = normalize_batch(batch, CONFIG, "cpu", 3)[0]
    assert torch.equal(normalize_batch(batch, CONFIG, "cpu", 3)[0], slow)


# --- the operator itself ----------------------------------------------------------------------------------------------


def arguments(mixed: bool = True) -> dict[str, Any]:
    return {
        "pixels": torch.zeros(3, 8, 9, 3, dtype=torch.uint8),
        "flips": torch.zeros(3, dtype=torch.bool),
        "mix": torch.zeros(2) if mixed else None,
        "factor": torch.ones(3),
        "offset": torch.zeros(3),
        "out": torch.zeros(2 if mixed else 3, 3, 8, 9),
    }


@needs_operator
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pixels": torch.zeros(3, 8, 9, 3)}, "pixels must be contiguous uint8 [rows, height, width, 3] on the CPU"),
        ({"pixels": torch.zeros(3, 8, 9, 4, dtype=torch.uint8)}, "pixels must be"),
        ({"pixels": torch.zeros(3, 3, 8, 9, dtype=torch.uint8).permute(0, 2, 3, 1)}, "pixels must be"),
        ({"pixels": torch.zeros(8, 9, 3, dtype=torch.uint8)}, "pixels must be"),
        ({"out": torch.zeros(2, 3, 8, 8)}, "out must be float32 [images, 3, 8, 9] on the CPU"),
        ({"out": torch.zeros(2, 3, 8, 9, dtype=torch.float64)}, "out must be float32"),
        ({"out": torch.zeros(3)}, "out must be float32"),
        ({"out": torch.zeros(3, 3, 8, 9)}, "3 mixed images are made of 4 rows of pixels, but there are 3"),
        ({"mix": None}, "2 images are made of 2 rows of pixels, but there are 3"),
        ({"out": torch.zeros(2, 3, 9, 8).transpose(2, 3)}, "out must be contiguous or channels_last"),
        ({"flips": torch.zeros(2, dtype=torch.bool)}, "flips must be contiguous bool [3]"),
        ({"flips": torch.zeros(3)}, "flips must be contiguous bool [3]"),
        ({"mix": torch.zeros(3)}, "mix must be contiguous float32 [2]"),
        ({"mix": torch.zeros(4)[::2]}, "mix must be contiguous float32 [2]"),
        ({"factor": torch.ones(1)}, "factor must be contiguous float32 [3]"),
        ({"offset": torch.ones(3, dtype=torch.float64)}, "offset must be contiguous float32 [3]"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_wrong_argument_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RuntimeError, match="normalize_views: ") as caught:
        torch.ops.udskd.normalize_views.default(*(arguments() | changes).values())
    assert words in str(caught.value)


GUARDED = """
import numpy as np, torch
from tests.data.test_normalize import Case, batch_of
from tests.data.helpers.guard_page import GuardedBuffer

factor, offset = torch.tensor([0.5, 0.25, 0.1]), torch.tensor([1.0, 2.0, 3.0])

def normalize(batch, pixels, out):
    torch.ops.udskd.normalize_views.default(pixels, batch.flips, batch.mix, factor, offset, out)
    return out

def guarded(array):
    memory = GuardedBuffer(array.nbytes).array(array.nbytes).view(array.dtype).reshape(array.shape)
    memory[:] = array
    return torch.from_numpy(memory)

for size in (*range(1, 36), 48, 63, 64, 65):
    for mixed in (False, True):
        batch = batch_of(Case(2, size, mixed))
        pixels = batch.images.permute(0, 2, 3, 1)
        for shape, order in (((2, size, size, 3), (0, 3, 1, 2)), ((2, 3, size, size), (0, 1, 2, 3))):
            out = guarded(np.full(shape, np.nan, np.float32)).permute(order)
            normalize(batch, guarded(pixels.numpy()), out)
            assert torch.equal(out, normalize(batch, pixels, torch.empty(2, 3, size, size))), (size, mixed, shape)
print("passed")
"""


@pytest.mark.slow_for(cases=lambda level: level in OTHER_LEVELS)
@needs_operator
@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
@pytest.mark.parametrize("level", RUNNABLE)
def test_memory_beyond_the_arguments_is_not_accessed(level: str) -> None:
    environment = os.environ | {"UDSKD_SIMD": level, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", GUARDED], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "passed", (done.returncode, done.stderr[-2000:])
