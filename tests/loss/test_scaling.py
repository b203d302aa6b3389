"""The operator that scales computed gradients by a number in GPU memory, without a read by the host."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.loss.helpers.inputs import backends, device_of, make
from udskd.loss import ops
from udskd.loss.options import Modes, Scalars

GPUS = backends("emulated", "cuda")
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def ready(
    backend: str, *shape: int, dtype: torch.dtype, flags: tuple[bool, ...], teacher: torch.dtype | None = None
) -> list[Tensor]:
    """The saved rows and the gradients of a batch whose first row is ignored."""
    made = make(*shape, dtype=dtype).like(device=device_of(backend))
    inputs = [None if x is None else x.detach() for x in made.inputs]
    assert inputs[0] is not None
    assert inputs[3] is not None
    inputs[0], inputs[3][:1] = inputs[0].to(teacher or dtype), -100
    fused = ops.OPERATORS[backend].namespace.dual_student_loss_fused.default
    return list(fused(*inputs, None, None, None, None, [*Scalars()], [*Modes(reduction=1)], flags)[4:])


def scale(backend: str, by: Tensor, kept: list[Tensor]) -> None:
    assert ops.OPERATORS[backend].namespace.dual_student_loss_scale.default(by, *kept) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7, 10), (300, 33), (3, 2101), (1, 50257), (0, 10), (19, 2)], ids=str)
@pytest.mark.parametrize("backend", GPUS)
def test_gradients_are_multiplied_in_place(backend: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    rows, *gradients = ready(backend, *shape, dtype=dtype, flags=(True, True, True))
    for by in (1.0, 2.5, -0.3, 0.0, 65536.0, 1e-6):
        kept, given = [rows.clone(), *(x.clone() for x in gradients)], torch.tensor(by).to(rows)
        expected = [(x.to(rows.dtype) * given).to(dtype) for x in gradients]
        scale(backend, given, kept)
        assert torch.equal(kept[0], rows)
        assert all(torch.equal(x, y) for x, y in zip(kept[1:], expected, strict=True))


@pytest.mark.parametrize("by", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", GPUS)
def test_ignored_rows_stay_zero(backend: str, dtype: torch.dtype, by: float) -> None:
    kept = ready(backend, 5, 100, dtype=dtype, flags=(True, True, True))
    scale(backend, torch.tensor(by, dtype=kept[0].dtype, device=kept[0].device), kept)
    for x in kept[1:]:
        assert (x[0] == 0).all()
        assert not x[1:].isfinite().any()


@pytest.mark.parametrize(
    "flags", [(False, True, True), (False, True, False), (True, False, False), (False,) * 3], ids=str
)
@pytest.mark.parametrize("backend", GPUS)
def test_an_empty_tensor_stands_for_a_gradient_that_is_not_there(backend: str, flags: tuple[bool, ...]) -> None:
    kept = ready(backend, 7, 100, dtype=torch.float32, flags=flags)
    expected = [x * 3 for x in kept[1:]]
    scale(backend, torch.tensor(3.0, device=kept[0].device), kept)
    assert all(torch.equal(x, y) for x, y in zip(kept[1:], expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", GPUS)
def test_gradients_may_begin_anywhere_in_memory(backend: str, dtype: torch.dtype) -> None:
    rows, classes = 11, 13
    kept = ready(backend, rows, classes, dtype=dtype, flags=(True, True, True))
    kept[0][:, -1] = 1  # the first row counts, too: the kernel must not scale the memory before it
    by = torch.tensor(-2.5, dtype=kept[0].dtype, device=kept[0].device)
    for first in range(9):
        wide = [torch.cat([x.new_full((first,), 7.0), x.flatten(), x.new_full((5,), 7.0)]) for x in kept[1:]]
        scale(backend, by, [kept[0], *(x[first:-5].view(rows, classes) for x in wide)])
        for x, y in zip(wide, kept[1:], strict=True):
            assert torch.equal(x[first:-5], (y.to(by.dtype) * by).to(dtype).flatten())
            assert (x[:first] == 7).all()
            assert (x[-5:] == 7).all()


@pytest.mark.parametrize("backend", GPUS)
def test_every_other_row_may_be_ignored(backend: str) -> None:
    for classes in (1, 2, 3, 7, 8, 9, 50):
        kept = ready(backend, 64, max(2, classes), dtype=torch.bfloat16, flags=(True, True, True))
        kept[0][::2, -1] = 0
        kept = [kept[0], *(x[:, :classes].contiguous() for x in kept[1:])]
        expected = [x.clone() for x in kept[1:]]
        scale(backend, torch.tensor(float("nan"), device=kept[0].device), kept)
        for x, y in zip(kept[1:], expected, strict=True):
            assert torch.equal(x[::2], y[::2])
            assert x[1::2].isnan().all()


@pytest.mark.parametrize("backend", GPUS)
def test_the_number_may_be_part_of_a_larger_tensor(backend: str) -> None:
    for given in (torch.tensor([1.0, 2.0, 4.0])[2], torch.tensor([4.0]).expand(3)[1]):
        kept = ready(backend, 7, 10, dtype=torch.float32, flags=(False, True, True))
        expected = [x * 4 for x in kept[2:]]
        scale(backend, given.to(kept[0].device), kept)
        assert all(torch.equal(x, y) for x, y in zip(kept[2:], expected, strict=True))


@pytest.mark.parametrize("backend", GPUS)
def test_the_teacher_may_have_another_dtype(backend: str) -> None:
    kept = ready(backend, 7, 100, dtype=torch.bfloat16, flags=(True, True, True), teacher=torch.float32)
    assert [x.dtype for x in kept[1:]] == [torch.float32, torch.bfloat16, torch.bfloat16]
    expected = [(x.float() * 2.5).to(x.dtype) for x in kept[1:]]
    scale(backend, torch.tensor(2.5, device=kept[0].device), kept)
    assert all(torch.equal(x, y) for x, y in zip(kept[1:], expected, strict=True))
