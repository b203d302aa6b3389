"""The exponential of the CPU kernels, 2^x of float32 x <= 1, at the SIMD level in use, compared with float64."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

import udskd

_C = pytest.importorskip("udskd._C")

Floats = npt.NDArray[np.float32]
# Units in the last place. Every level but x86's baseline rounds a product and a sum at once, unless it was compiled
# with little optimisation, as under sanitizers.
HAS_FMA = udskd.build_info()["simd"] != "baseline" or platform.machine() != "x86_64"
FUSES = HAS_FMA and "ASAN_OPTIONS" not in os.environ
LIMIT = 0.9 if FUSES else 1.1


def bits(x: float) -> int:
    return int(np.float32(x).view(np.int32))


def from_bits(first: int, last: int, stride: int = 1) -> Floats:
    """The floats whose bits are first, first + stride, ... up to last."""
    return np.arange(first, last + 1, stride, dtype=np.int64).astype(np.int32).view(np.float32)


def worst(x: Floats) -> float:
    """The largest error in units in the last place of the exact result."""
    exact = np.exp2(x.astype(np.float64))
    unit = np.spacing(exact.astype(np.float32)).astype(np.float64)
    return float((np.abs(_C.exponential(x) - exact) / unit).max())


def everywhere() -> Iterator[Floats]:
    """Every 199th float from -126 to 1, ten million, in parts."""
    for begin, end in ((bits(-0.0), bits(-126)), (bits(0.0), bits(1))):
        for first in range(begin, end + 1, 199 << 20):
            yield from_bits(first, min(first + (199 << 20) - 1, end), 199)


def around(points: Floats) -> Floats:
    """The thousand floats on either side of each point."""
    near = points.view(np.int32)[:, None] + np.arange(-1000, 1001, dtype=np.int32)
    x = near.astype(np.int32).view(np.float32).ravel()
    return x[(x <= 1) & (x >= -126)]


def test_error_is_within_the_limit_everywhere() -> None:
    assert max(worst(x) for x in everywhere()) <= LIMIT


def test_error_is_within_the_limit_around_integers_and_halves() -> None:
    halves = np.arange(-252, 3, dtype=np.float32) / 2
    assert worst(around(halves[halves != 0])) <= LIMIT


def test_error_is_within_the_limit_from_a_quarter_to_a_half_where_it_is_largest() -> None:
    for sign in (1, -1):  # every float
        assert worst(from_bits(bits(sign * 0.25), bits(sign * 0.5))) <= LIMIT


def test_tiny_arguments_give_one_or_its_neighbour() -> None:
    x = from_bits(bits(1e-45), bits(1e-4), 997)
    assert worst(np.concatenate([x, -x])) <= LIMIT


def test_zero_and_integers_are_exact() -> None:
    x = np.arange(-126, 2, dtype=np.float32)
    assert np.array_equal(_C.exponential(x), np.ldexp(np.float32(1), x.astype(np.int32)))
    assert np.array_equal(_C.exponential(np.array([0.0, -0.0], np.float32)), np.ones(2, np.float32))


def test_results_below_the_normal_numbers_end_at_two_to_the_minus_126_and_a_half() -> None:
    x = from_bits(bits(-126), bits(-126.5))[:-1]
    assert worst(x) <= 1  # of the units there, 2^-149
    assert (_C.exponential(from_bits(bits(-126.5), bits(-127), 7)) == 0).all()


@pytest.mark.parametrize("x", [-126.5, -127.0, -127.5, -128.0, -1e4, -1e30, -3.4e38, -np.inf])
def test_far_below_is_zero(x: float) -> None:
    result = _C.exponential(np.array([x], np.float32))
    assert result == 0
    assert not np.signbit(result)


@pytest.mark.parametrize(
    "payload", [0x7FC00000, 0x7FC00001, 0x7F800001, 0x7FFFFFFF, 0xFFC00000, 0xFF800001, 0xFFFFFFFF]
)
def test_nan_stays_nan_whatever_its_payload(payload: int) -> None:
    for place in range(17):  # whole vectors and none
        x = np.zeros(17, np.float32)
        x.view(np.uint32)[place] = payload
        assert np.isnan(_C.exponential(x)).tolist() == [k == place for k in range(17)]


def test_larger_arguments_give_no_smaller_results_but_for_a_unit() -> None:
    for x in everywhere():
        results = _C.exponential(np.sort(x))
        assert (np.diff(results) >= -np.spacing(results[1:])).all()


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 100])
def test_any_number_of_arguments(count: int) -> None:
    x = -np.arange(count, dtype=np.float32)
    assert np.array_equal(_C.exponential(x), np.exp2(x.astype(np.float64)).astype(np.float32))
