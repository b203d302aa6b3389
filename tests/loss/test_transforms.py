"""The loss refuses the derivatives that it does not have, eager and compiled; it never returns 0 for them silently."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import udskd
from tests.loss.helpers.inputs import backends
from udskd.loss import ops
from udskd.loss.options import Modes, Scalars

T, A, B = (torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
Y = torch.arange(4)
NATIVE = backends("cpu", "emulated")
COMPILERS = ("eager", "aot_eager")


class Subclass(torch.Tensor):
    pass


def loss(a: Tensor, **options: Any) -> Tensor:
    return udskd.dual_student_loss(T, a, B, Y, **options).loss


def compiled(function: Any, compiler: str) -> Any:
    torch._dynamo.reset()
    return torch.compile(function, backend=compiler)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("where", ["around", "within"])
def test_jvp_of_a_compiled_function_is_refused(where: str, compiler: str) -> None:
    if where == "around":
        function = compiled(loss, compiler)
        transformed = lambda: torch.func.jvp(function, (A,), (B,))  # noqa: E731
    else:
        transformed = compiled(lambda: torch.func.jvp(loss, (A,), (B,)), compiler)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        transformed()


@pytest.mark.parametrize("compiler", COMPILERS)
def test_grad_within_a_compiled_function_is_refused(compiler: str) -> None:
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        compiled(lambda: torch.func.grad(loss)(A), compiler)()


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_dual_tensor_in_a_compiled_function_is_refused(compiler: str) -> None:
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        compiled(loss, compiler)(forward_ad.make_dual(A, B))


@pytest.mark.parametrize("backend", NATIVE)
def test_a_subclass_of_tensor_changes_nothing(backend: str) -> None:
    student = A.as_subclass(Subclass)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        torch.func.jvp(
            lambda weight: loss(student, kd_weight=weight, backend=backend), (torch.tensor(0.5),), (torch.tensor(1.0),)
        )


@pytest.mark.parametrize("backend", NATIVE)
def test_the_raw_operator_is_refused_too(backend: str) -> None:
    operator = ops.OPERATORS[backend].namespace.dual_student_loss.default
    rest = (None, None, None, None, [*Scalars()], [*Modes()])
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        torch.func.jvp(lambda a: operator(T, a, B, Y, *rest)[0], (A,), (B,))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", NATIVE)
def test_a_derivative_of_the_gradient_by_grad_output_is_refused(backend: str, reduction: Any) -> None:
    a = A.clone().requires_grad_()
    value = loss(a, reduction=reduction, backend=backend)

    def gradient(grad_output: Tensor) -> Tensor:
        return torch.autograd.grad(value, a, grad_output, retain_graph=True)[0]

    ones = torch.ones_like(value).detach()
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        torch.func.jvp(gradient, (ones,), (ones,))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        gradient(forward_ad.make_dual(ones, ones))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", NATIVE)
def test_a_batch_of_grad_outputs_has_a_gradient_for_each(backend: str, reduction: Any) -> None:
    a = A.clone().requires_grad_()
    value = loss(a, reduction=reduction, backend=backend)
    grads = torch.randn(3, *value.shape)
    (found,) = torch.autograd.grad(value, a, grads, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(loss(a, reduction=reduction, backend=backend), a, grad)[0] for grad in grads]
    torch.testing.assert_close(found, torch.stack(each))


@pytest.mark.parametrize("backend", NATIVE)
def test_functionalize_transforms_nothing_that_is_differentiated(backend: str) -> None:
    found = torch.func.functionalize(lambda a: loss(a, backend=backend))(A)
    torch.testing.assert_close(found, loss(A, backend=backend))
