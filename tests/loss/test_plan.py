"""The choice of the CUDA kernel, csrc/loss/plan.h, without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.loss.helpers.inputs import backends

pytestmark = [mark for parameter in backends("cpu") for mark in parameter.marks]
H100 = {"sms": 132, "capability": 90, "shared": 232448, "l2": 50 << 20}
A100 = {"sms": 108, "capability": 80, "shared": 166912, "l2": 40 << 20}
T4 = {"sms": 40, "capability": 75, "shared": 65536, "l2": 4 << 20}
DEVICES = {"H100": H100, "A100": A100, "T4": T4}
CLASSES_OF = {"float32": 4, "bfloat16": 8, "float16": 8}  # in 16 bytes


def plan(rows: int, classes: int, dtype: str = "float32", **options: Any) -> dict[str, Any]:
    from udskd import _C  # type: ignore[attr-defined]

    found: dict[str, Any] = _C.plan(rows, classes, dtype, **options)
    return found


@pytest.mark.parametrize(
    ("rows", "classes", "regime"),
    [
        (256, 100, "warp"),
        (16384, 100, "lanes8"),
        (256, 1000, "block128"),
        (4096, 1000, "warp8"),
        (1024, 3000, "block256"),
        (1024, 8000, "shared"),
        (256, 21841, "cluster"),
        (512, 131072, "cluster"),
        (8, 1_000_000, "split"),
    ],
)
def test_the_usual_loss_in_float32_on_an_h100(rows: int, classes: int, regime: str) -> None:
    assert plan(rows, classes, **H100)["regime"] == regime


@pytest.mark.parametrize(("classes", "regime"), [(100, "warp"), (1000, "block128"), (4000, "split")])
@pytest.mark.parametrize("dtype", sorted(CLASSES_OF))
def test_an_unusual_loss_has_fewer_kernels(dtype: str, classes: int, regime: str) -> None:
    for rows in (16, 16384):
        found = plan(rows, classes, dtype, usual=False, **H100)
        assert (found["regime"], found["usual"]) == (regime, False)


@pytest.mark.parametrize("device", [A100, T4], ids=["A100", "T4"])
@pytest.mark.parametrize("classes", [2, 1000, 21841, 131072, 1_000_000])
def test_without_clusters_none_is_planned(device: dict[str, int], classes: int) -> None:
    for rows in (1, 64, 4096):
        assert plan(rows, classes, **device)["regime"] != "cluster"
        assert plan(rows, classes, force="cluster", **device)["regime"] != "cluster"


@given(
    rows=st.integers(0, 100_000),
    classes=st.integers(2, 2_000_000),
    dtype=st.sampled_from(sorted(CLASSES_OF)),
    usual=st.booleans(),
    device=st.sampled_from(sorted(DEVICES)),
    force=st.sampled_from(["", "lanes8", "warp", "warp8", "block128", "block256", "shared", "cluster", "split"]),
)
def test_whatever_is_planned_holds_the_row_wherever_it_begins(
    rows: int, classes: int, dtype: str, usual: bool, device: str, force: str
) -> None:
    found = plan(rows, classes, dtype, usual=usual, force=force, **DEVICES[device])
    if found["regime"] == "split":  # in global memory, for any size
        assert 1 <= found["blocks"] <= 256
        return
    room = found["packets"] * found["threads"] * found["blocks"] * CLASSES_OF[dtype]
    assert room >= classes + CLASSES_OF[dtype] - 1
    if found["regime"] in ("shared", "cluster"):
        wide = 2 if dtype == "float16" else 1
        assert 3 * 16 * wide * found["packets"] * found["threads"] + 6144 <= DEVICES[device]["shared"]


@pytest.mark.parametrize("regime", ["lanes8", "warp", "warp8", "block128", "block256", "shared", "cluster", "split"])
def test_a_regime_that_holds_the_row_can_be_forced(regime: str) -> None:
    assert plan(33, 29, force=regime, **H100)["regime"] == regime


def test_a_regime_that_does_not_hold_the_row_is_not_forced() -> None:
    assert plan(33, 1000, force="lanes8", **H100)["regime"] == "block128"


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(ValueError, match="dtype: float32, bfloat16 or float16, not int8"):
        plan(3, 3, "int8")


@pytest.mark.parametrize(("rows", "blocks"), [(1, 8), (16, 8), (256, 4)])
def test_few_long_rows_are_spread_over_more_blocks(rows: int, blocks: int) -> None:
    assert plan(rows, 21841, **H100)["blocks"] == blocks
