"""Coefficients and certainties that are tensors: valid values, and invalid ones where values cannot be read."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import udskd
from tests.loss.helpers.inputs import backends, device_of, make
from udskd.loss.functional import training_loss

NAMES = ("ce_weight", "kd_weight", "peer_weight", "uncertainty")
BAD = (math.nan, math.inf, -math.inf, -0.5)
ROWS = 5


def weights(value: float, row: int = 3) -> Tensor:
    x = torch.rand(ROWS)
    x[row] = value
    return x


def call(loss: Any, name: str, x: Tensor, **options: Any) -> udskd.DualStudentLossOutput:
    made = make(ROWS, 10, dtype=torch.float32).like(device=x.device.type, learning=(1, 2))
    out: udskd.DualStudentLossOutput = loss(*made.inputs, **{name: x}, **options)
    return out


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", backends("reference", "cpu"))
def test_a_value_that_no_weight_can_have_is_named_with_its_row(backend: str, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be finite and not negative, got {value} in row 3$"):
        call(udskd.dual_student_loss, name, weights(value), backend=backend)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", NAMES[:3])
def test_one_number_for_all_rows_is_named_without_a_row(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be finite and not negative, got {value}$"):
        call(udskd.dual_student_loss, name, torch.tensor(value))


@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("backend", backends())
def test_a_learned_coefficient_may_be_negative(backend: str, name: str) -> None:
    x = torch.tensor(-0.5, device=device_of(backend), requires_grad=True)
    out = call(udskd.dual_student_loss, name, x, backend=backend)
    terms = {"ce_weight": out.ce_a + out.ce_b, "kd_weight": out.kd_a + out.kd_b, "peer_weight": out.peer_a + out.peer_b}
    (gradient,) = torch.autograd.grad(out.loss, x)
    torch.testing.assert_close(gradient, terms[name])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NAMES[:3])
def test_a_learned_coefficient_must_be_finite(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be finite, got {value}$"):
        call(udskd.dual_student_loss, name, torch.tensor(value, requires_grad=True))


def test_a_certainty_may_not_be_negative_even_if_it_requires_a_gradient() -> None:
    with pytest.raises(ValueError, match=r"^uncertainty must be finite and not negative, got -0\.5 in row 3$"):
        call(udskd.dual_student_loss, "uncertainty", weights(-0.5).requires_grad_())


def assert_nan_in_row_3(loss: Any, name: str, x: Tensor, **options: Any) -> None:
    out = call(loss, name, x, reduction="none", **options)
    assert out.loss.isnan().tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", backends("reference", "cpu", "cuda"))
def test_under_torch_compile_a_bad_weight_makes_its_row_nan(backend: str, name: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(udskd.dual_student_loss, fullgraph=True, backend="aot_eager")
    for value in BAD:
        assert_nan_in_row_3(compiled, name, weights(value).to(device_of(backend)), backend=backend)


@pytest.mark.gpu
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", backends("cuda"))
def test_on_a_gpu_a_bad_weight_makes_its_row_nan(backend: str, name: str, value: float) -> None:
    assert_nan_in_row_3(udskd.dual_student_loss, name, weights(value).to("cuda"), backend=backend)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", backends("reference", "cpu", "emulated"))
def test_in_the_training_loop_a_bad_weight_makes_its_row_nan(backend: str, name: str, value: float) -> None:
    assert_nan_in_row_3(training_loss, name, weights(value), backend=backend)


@pytest.mark.parametrize("name", NAMES)
def test_the_values_of_fake_tensors_are_not_looked_at(name: str) -> None:
    with FakeTensorMode():
        t, a, b, x = torch.randn(ROWS, 10), torch.randn(ROWS, 10), torch.randn(ROWS, 10), torch.rand(ROWS)
        labels = torch.zeros(ROWS, dtype=torch.long)
        options: Any = {name: x}
        assert udskd.dual_student_loss(t, a, b, labels, **options).loss.shape == ()


@pytest.mark.parametrize("value", [1e39, torch.tensor(1e39, dtype=torch.float64)], ids=["number", "tensor"])
@pytest.mark.parametrize("name", NAMES[:3])
def test_a_weight_that_float32_cannot_hold_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must fit into float32, at most 3\.4e\+38, got 1e\+39"):
        udskd.dual_student_loss(*make(ROWS, 10, dtype=torch.float32).inputs, **{name: value})


@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("backend", backends("reference", "cpu", "emulated"))
def test_a_weight_touches_no_row_that_is_ignored(backend: str, name: str) -> None:
    made = make(ROWS, 10, dtype=torch.float32)
    assert made.target is not None
    made.target[3] = -100
    expected = udskd.dual_student_loss(*made.inputs, **{name: weights(0.0)}, backend=backend)  # type: ignore[arg-type]
    found = training_loss(*made.inputs, **{name: weights(math.nan)}, backend=backend)
    assert found.loss.isfinite()
    assert expected.loss.isfinite()


@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("backend", backends("reference", "cpu", "emulated"))
def test_a_learned_coefficient_has_gradient_0_where_every_row_is_ignored(backend: str, name: str) -> None:
    made = make(ROWS, 10, dtype=torch.float32)
    for x in (torch.tensor(0.5), torch.rand(ROWS)):
        x.requires_grad_()
        ignored = torch.full((ROWS,), -100)
        options: Any = {name: x}
        out = udskd.dual_student_loss(*made.inputs[:3], ignored, backend=backend, **options)
        assert out.loss.isnan()
        assert torch.equal(torch.autograd.grad(out.loss, x)[0], torch.zeros_like(x))


@pytest.mark.parametrize("backend", backends("reference", "cpu", "emulated"))
def test_a_weight_of_a_term_that_is_not_there_is_not_looked_at(backend: str) -> None:
    _, a, b, labels = make(ROWS, 10, dtype=torch.float32).inputs
    assert training_loss(None, a, b, labels, kd_weight=weights(math.nan), backend=backend).loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("backend", backends("reference", "cpu", "emulated"))
def test_a_weight_does_not_change_the_dtype_of_the_loss(backend: str, dtype: torch.dtype) -> None:
    for name in NAMES:
        out = call(udskd.dual_student_loss, name, torch.rand(ROWS).to(dtype), backend=backend)
        assert {x.dtype for x in out} == {torch.float32}


@pytest.mark.parametrize("backend", backends("reference", "cpu"))
def test_the_default_dtype_does_not_change_the_dtype_of_the_loss(backend: str) -> None:
    made = make(ROWS, 10, dtype=torch.float32)
    torch.set_default_dtype(torch.float64)
    try:
        assert {x.dtype for x in udskd.dual_student_loss(*made.inputs, backend=backend)} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("backend", backends("reference", "cpu", "emulated"))
def test_weights_of_a_teacher_that_is_hardly_unsure_keep_their_digits(backend: str) -> None:
    teacher = torch.zeros(4, 10)
    teacher[:, 0] = torch.tensor([14.0, 16.0, 18.0, 20.0])
    student = torch.randn(4, 10)
    options: Any = {"trust": "uncertain", "normalize_weights": True}
    found = udskd.dual_student_loss(teacher, student, backend=backend, **options).weight
    exact = udskd.dual_student_loss(teacher.double(), student.double(), backend="reference", **options).weight
    torch.testing.assert_close(found.double(), exact, rtol=0.1, atol=0)


def test_gradients_of_a_large_grad_output_stay_0_in_rows_that_are_ignored() -> None:
    made = make(ROWS, 10, dtype=torch.float32)
    assert made.teacher is not None
    assert made.target is not None
    made.target[3] = -100
    out = udskd.dual_student_loss(made.teacher.double(), *made.inputs[1:])
    (gradient,) = torch.autograd.grad(out.loss, made.student_a, torch.tensor(1e39, dtype=torch.float64))
    assert torch.equal(gradient[3], torch.zeros(10))


def test_the_training_loop_has_the_defaults_of_the_loss() -> None:
    made = make(ROWS, 10, dtype=torch.float32)
    found, expected = training_loss(*made.inputs), udskd.dual_student_loss(*made.inputs)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
