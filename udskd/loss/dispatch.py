"""Which backend computes the loss, and in which form: the step from checked arguments to an implementation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from udskd import _native
from udskd.loss import autograd, checks, ops, options, reference
from udskd.loss.options import LossOptions
from udskd.loss.reference import Outputs
from udskd.loss.transforms import no_transforms

Form = Literal["auto", "fused", "recompute"]
_forced_form: Form = "auto"
"""The form of the gradients (udskd/loss/autograd.py) in all calls, for tests and benchmarks, which set it. A call that
cannot take the fused form raises ValueError."""


def choose(backend: str, device: torch.device) -> str:
    """The backend that runs for tensors on a device; ValueError if the requested one cannot."""
    if isinstance(backend, str) and backend == "auto":  # an array would be compared element by element
        return device.type if _native.has_kernels(device.type) else "reference"
    options.check_choice("backend", backend, ("auto", *ops.OPERATORS, "reference"))
    if backend == "reference":
        return backend
    reason = _native.unavailable(backend)
    if reason is not None:
        raise ValueError(f"backend {backend!r} is unavailable: {reason}")
    needed = ops.OPERATORS[backend].device
    if device.type != needed:
        raise ValueError(f"backend {backend!r} needs tensors on {needed!r}, got student_a on {device}")
    return backend


def run(
    backend: str,
    teacher: Tensor | None,
    student_a: Tensor,
    student_b: Tensor | None,
    target: Tensor | None,
    given: LossOptions,
) -> Outputs:
    """The loss of logits [B, C] with a target [B] or [B, C], by a backend that choose() has returned."""
    if target is not None and target.requires_grad:
        target = target.detach()
    if backend != "reference":
        return _compiled(ops.OPERATORS[backend], teacher, student_a, student_b, target, given)
    if target is not None and checks.readable(target):
        checks.labels(target, student_a.shape[-1], given.ignore_index)
    return reference.dual_student_loss(teacher, student_a, student_b, target, given)


def _compiled(
    operators: ops.Operators,
    teacher: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    target: Tensor | None,
    given: LossOptions,
) -> Outputs:
    dtype = ops.arithmetic(teacher, a, b)
    if operators.gpu and teacher is not None and a.dtype is torch.float32 and not teacher.requires_grad:
        teacher = teacher.to(torch.promote_types(teacher.dtype, a.dtype))  # exact; the fast kernels need one dtype
    ce, kd, peer = [x.to(dtype) if isinstance(x, Tensor) else None for x in given.coefficients]
    certainty = given.uncertainty.detach().to(dtype) if isinstance(given.uncertainty, Tensor) else None
    arguments = ops.Arguments(teacher, a, b, target, ce, kd, peer, certainty, given.scalars, given.modes)
    return _call(operators, arguments, given)


def _call(operators: ops.Operators, arguments: ops.Arguments, given: LossOptions) -> Outputs:
    tracing = torch.compiler.is_compiling()  # udskd/loss/ops.py then makes the checks that no_transforms makes here
    differentiable = arguments.differentiable
    if not tracing:
        no_transforms(*differentiable)
    if tracing or type(arguments.student_a) not in (Tensor, nn.Parameter):
        loss, components, weight, entropy, _ = operators.namespace.dual_student_loss.default(*arguments)
        return Outputs(loss, components, weight, entropy)
    needs = ops.NeededGradients(*[x is not None and x.requires_grad for x in differentiable])
    if not any(needs) or not torch.is_grad_enabled():
        # not by the operator with a registered derivative, which PyTorch would look up in Python even here
        loss, components, weight, entropy, *_ = operators.namespace.dual_student_loss_fused.default(
            *arguments, ops.NO_LOGITS
        )
        return Outputs(loss, components, weight, entropy)
    fused = _fuses(operators, arguments, needs, given)
    loss, rest = autograd.apply(operators, fused, needs, arguments, *needs.select(differentiable))
    return Outputs(loss, *rest)


def _fuses(operators: ops.Operators, arguments: ops.Arguments, needs: ops.NeededGradients, given: LossOptions) -> bool:
    """Whether the gradients are computed with the loss.

    That is faster, and possible for a reduced loss, whose grad_output only scales them. But not in float16, where small
    gradients underflow before a loss scale reaches them; not for coefficients that learn, whose gradients the backward
    operator computes; and on a GPU not with normalized weights, whose mean is known only after all rows.
    """
    possible = given.reduction != "none" and not (given.normalize_weights and operators.gpu) and not needs.coefficients
    if needs.student_a or needs.student_b:
        possible = possible and arguments.student_a.dtype is not torch.float16
    if needs.teacher and arguments.teacher is not None:
        possible = possible and arguments.teacher.dtype is not torch.float16
    if _forced_form == "fused" and not possible:
        gpu = ", and on a GPU no normalized weights" if operators.gpu else ""
        raise ValueError(f"the fused form needs a reduced loss, float coefficients and no float16{gpu}")
    return possible and _forced_form != "recompute"
