"""Gradients against finite differences in float64, for every input that can have one.

Finite differences see no stop-gradient, so each check holds still what the loss detaches: peers are either not detached
or absent, and the
teacher is varied only where its weight does not depend on it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import udskd
from tests.loss.helpers.inputs import backends, device_of, make, on_gpu

BACKENDS = backends()


def check(backend: str, inputs: dict[str, Tensor], fixed: dict[str, Any]) -> None:
    def loss(*values: Tensor) -> Tensor:
        given = {**fixed, **dict(zip(inputs, values, strict=True))}
        logits = [given.pop(name, None) for name in ("teacher", "student_a", "student_b", "target")]
        return udskd.dual_student_loss(*logits, backend=backend, **given).loss

    # The first backward pass may hand out what came with the loss, and the next compute it, on a GPU in another order.
    apart = 1e-12 if on_gpu(backend) else 0.0
    assert torch.autograd.gradcheck(loss, tuple(inputs.values()), eps=1e-6, atol=1e-7, rtol=1e-5, nondet_tol=apart)


def problem(backend: str, **options: Any) -> dict[str, Any]:
    made = make(4, 6, **options).like(device=device_of(backend))
    return dict(zip(("teacher", "student_a", "student_b", "target"), made.inputs, strict=True))


def split(given: dict[str, Any], *names: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    fixed = {name: x.detach() if isinstance(x, Tensor) else x for name, x in given.items() if name not in names}
    return {name: given[name] for name in names}, fixed


@pytest.mark.slow_for(cases=lambda backend, uncertainty: backend == "emulated" and uncertainty != "entropy")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("uncertainty", ["entropy", "max_prob", "margin", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_both_students(backend: str, uncertainty: str, reduction: str) -> None:
    inputs, fixed = split(problem(backend, ignored=1), "student_a", "student_b")
    check(
        backend,
        inputs,
        fixed | {"uncertainty": uncertainty, "reduction": reduction, "detach_peer": False, "temperature": 3.0},
    )


@pytest.mark.parametrize("target", ["hard", "soft", None])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_student(backend: str, target: str | None) -> None:
    inputs, fixed = split(problem(backend, two=False, target=target), "student_a")
    check(backend, inputs, fixed | {"label_smoothing": 0.1})


@pytest.mark.parametrize("peer_temperature", [1.0, 2.5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_mutual_learning_at_its_own_temperature(backend: str, peer_temperature: float) -> None:
    inputs, fixed = split(problem(backend, teacher=False), "student_a", "student_b")
    check(backend, inputs, fixed | {"peer_temperature": peer_temperature, "detach_peer": False})


@pytest.mark.parametrize("two", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_teacher(backend: str, two: bool) -> None:
    inputs, fixed = split(problem(backend, two=two), "teacher")
    check(backend, inputs, fixed | {"uncertainty": "none"})


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_teacher_under_given_weights(backend: str) -> None:
    weight = torch.rand(
        4, dtype=torch.float64, device=device_of(backend), generator=torch.Generator(device_of(backend)).manual_seed(0)
    )
    inputs, fixed = split(problem(backend), "teacher")
    check(backend, inputs, fixed | {"uncertainty": weight})


@pytest.mark.parametrize("shape", [(), (4,)], ids=["one number", "one a row"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_tensor_coefficients(backend: str, shape: tuple[int, ...], reduction: str) -> None:
    names = ("ce_weight", "kd_weight", "peer_weight")
    coefficients = {
        name: torch.full(shape, 0.3 + k, dtype=torch.float64, device=device_of(backend), requires_grad=True)
        for k, name in enumerate(names)
    }
    _, fixed = split(problem(backend, ignored=1))
    check(backend, coefficients, fixed | {"reduction": reduction})


@pytest.mark.parametrize("backend", BACKENDS)
def test_coefficients_and_students_together(backend: str) -> None:
    weight = torch.tensor(0.7, dtype=torch.float64, device=device_of(backend), requires_grad=True)
    inputs, fixed = split(problem(backend), "student_a", "student_b")
    check(backend, inputs | {"kd_weight": weight}, fixed | {"detach_peer": False})


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_coefficient_of_another_dtype_gets_its_gradient_in_that_dtype(backend: str) -> None:
    weight = torch.tensor(0.5, dtype=torch.bfloat16, device=device_of(backend), requires_grad=True)
    out = udskd.dual_student_loss(*make(4, 6).like(device=device_of(backend)).inputs, kd_weight=weight, backend=backend)
    (gradient,) = torch.autograd.grad(out.loss, weight)
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient.double(), out.kd_a + out.kd_b, rtol=1e-2, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_weight_carries_no_gradient(backend: str) -> None:
    given = torch.rand(4, dtype=torch.float64, device=device_of(backend)).requires_grad_()
    made = make(4, 6).like(device=device_of(backend))
    out = udskd.dual_student_loss(*made.inputs, uncertainty=given, backend=backend)
    assert torch.autograd.grad(out.loss, given, allow_unused=True) == (None,)
    assert not out.weight.requires_grad
