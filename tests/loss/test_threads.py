"""Neither the number of threads nor the other rows of a batch change a bit, whether the threads share the rows or, with
fewer rows than threads, the classes of each row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import udskd
from tests.helpers.threads import threads
from tests.loss.helpers import forms
from tests.loss.helpers.inputs import LossInputs, backends, make

MANY_ROWS = [(300, 100), (2000, 10), (65, 1000), (7, 8191)]
FEW_ROWS = [(1, 70000), (2, 40000), (2, 40001), (1, 32768), (2, 32767)]  # shared from 32 chunks of 1024 classes
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "every sweep": {"detach_peer": False, "peer_temperature": 1.7, "uncertainty": "margin", "label_smoothing": 0.1},
    "other temperatures": {"temperature": 2.3, "uncertainty_temperature": 1.5, "normalize_weights": True},
}
pytestmark = [mark for parameter in backends("cpu") for mark in parameter.marks]


def results(form: Any, problem: LossInputs, **options: Any) -> list[Tensor]:
    """All outputs and gradients."""
    with forms.only(form):
        out = udskd.dual_student_loss(*problem.inputs, backend="cpu", **options)
    return [*out, *torch.autograd.grad(out.loss.sum(), problem.logits)]


def assert_same_bits(some: list[Tensor], others: list[Tensor]) -> None:
    for k, (x, y) in enumerate(zip(some, others, strict=True)):
        assert torch.equal(x, y), k


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shape", MANY_ROWS + FEW_ROWS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["fused", "recompute"])
def test_bits_do_not_depend_on_the_number_of_threads(
    form: Any, dtype: torch.dtype, shape: tuple[int, int], options: dict[str, Any]
) -> None:
    made = make(*shape, dtype=dtype)
    with threads(1):
        expected = results(form, made, **options)
    assert all(x.isfinite().all() for x in expected)
    for count in (2, 3):
        with threads(count):
            assert_same_bits(results(form, made, **options), expected)


@pytest.mark.parametrize("shape", [(300, 100), (1, 40000)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_nor_do_those_of_other_dtypes(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    made = make(*shape, dtype=dtype, target="soft")
    with threads(1):
        expected = results("auto", made)
    for count in (2, 3):
        with threads(count):
            assert_same_bits(results("auto", made), expected)


# From 512 classes on, sums begin where the row is aligned in memory, so that only rows that are all aligned alike have
# the same bits wherever they stand.
@pytest.mark.parametrize("classes", [10, 100, 511, 512, 2048, 32768])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_row_has_the_same_bits_in_any_batch(count: int, dtype: torch.dtype, classes: int) -> None:
    rows = 5 if classes > 10000 else 90
    made = make(rows, classes, dtype=dtype)
    with threads(count):
        whole = results("auto", made, reduction="none", detach_peer=False)
        for begin, end in [(0, 1), (1, 3), (rows - 2, rows)]:
            part = LossInputs(*(x.detach()[begin:end].requires_grad_() for x in made.logits), made.target[begin:end])  # type: ignore[index]
            assert_same_bits(results("auto", part, reduction="none", detach_peer=False), [x[begin:end] for x in whole])


@pytest.mark.parametrize("count", [1, 3])
def test_the_fused_gradient_of_a_sum_is_that_of_its_rows(count: int) -> None:
    made = make(90, 100, dtype=torch.float32)
    with threads(count):
        rows, fused = results("recompute", made, reduction="none"), results("fused", made, reduction="sum")
    assert_same_bits(fused[-3:], rows[-3:])


@pytest.mark.parametrize("shape", [(200, 100), (1, 40000)], ids=str)
def test_a_poisoned_row_is_the_same_on_any_number_of_threads(shape: tuple[int, int]) -> None:
    made = make(*shape, dtype=torch.float32)
    with torch.no_grad():
        made.logits[1][0, 5], made.logits[2][-1, -1] = torch.nan, -torch.inf
    outcomes = []
    for count in (1, 2, 3):
        with threads(count):
            outcomes.append([x.nan_to_num(123.0) for x in results("auto", made, detach_peer=False)])
    assert_same_bits(outcomes[1], outcomes[0])
    assert_same_bits(outcomes[2], outcomes[0])


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("rows", [200, 0])
def test_an_ignored_or_wrong_label_is_found_on_any_number_of_threads(rows: int, count: int) -> None:
    made = make(rows + 1, 100, dtype=torch.float32)
    assert made.target is not None
    made.target[rows] = 100
    with threads(count), pytest.raises(IndexError, match=f"row {rows} has label 100"):
        udskd.dual_student_loss(*made.inputs, backend="cpu")
