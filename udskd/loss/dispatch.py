"""Which implementation runs, and the step from checked arguments to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from udskd import _native
from udskd.loss import autograd, checks, forms, ops, reference

if _native.problem is None:
    ops.register()


def choose(backend: str, device: torch.device) -> str:
    """The backend that runs for tensors on a device; ValueError if the one asked for cannot."""
    checks.choice("backend", backend, ("auto", *ops.OPERATORS, "reference"))
    if backend == "auto":
        return device.type if _native.has_kernels(device.type) else "reference"
    if backend == "reference":
        return backend
    reason = _native.unavailable(backend)
    if reason is not None:
        raise ValueError(f"backend {backend!r} is unavailable: {reason}")
    needed = ops.OPERATORS[backend].device
    if device.type != needed:
        raise ValueError(f"backend {backend!r} needs tensors on {needed!r}, got student_a on {device}")
    return backend


def run(backend: str, *inputs: Tensor | None, **options: Any) -> reference.Terms:
    """(loss, components, weight, entropy) of teacher, student_a, student_b and target with any leading dimensions."""
    teacher, student_a, student_b, target = inputs
    assert student_a is not None
    if student_a.dim() != 2:
        teacher, student_a, student_b, target = (None if x is None else _rows(x) for x in inputs)
        assert student_a is not None
        for name in ("ce_weight", "kd_weight", "peer_weight", "uncertainty"):
            if isinstance(options[name], Tensor) and options[name].dim() > 1:
                options[name] = options[name].flatten()
    if target is not None and target.requires_grad:
        target = target.detach()
    if backend == "reference":
        return _reference(teacher, student_a, student_b, target, **options)
    return _compiled(ops.OPERATORS[backend], teacher, student_a, student_b, target, **options)


def _rows(x: Tensor) -> Tensor:
    return x.flatten(0, -2) if x.is_floating_point() else x.flatten()


def _reference(
    teacher: Tensor | None, a: Tensor, b: Tensor | None, target: Tensor | None, **options: Any
) -> reference.Terms:
    if target is not None and checks.readable(target):
        checks.labels(target, a.shape[-1], options["ignore_index"])
    return reference.dual_student_loss(teacher, a, b, target, **options)


def _compiled(
    operators: ops.Operators,
    teacher: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    target: Tensor | None,
    **options: Any,
) -> reference.Terms:
    dtype = ops.arithmetic(teacher, a, b)
    if operators.gpu and teacher is not None and a.dtype is torch.float32 and not teacher.requires_grad:
        teacher = teacher.to(torch.promote_types(teacher.dtype, a.dtype))  # exact; the fast kernels want one dtype
    ce, ce_weights = _coefficient(options["ce_weight"], dtype)
    kd, kd_weights = _coefficient(options["kd_weight"], dtype)
    peer, peer_weights = _coefficient(options["peer_weight"], dtype)
    kind = options["uncertainty"]
    certainty = kind.detach().to(dtype) if isinstance(kind, Tensor) else None
    arguments = [
        *(teacher, a, b, target, ce_weights, kd_weights, peer_weights, certainty, ce, kd, peer),
        *(options["temperature"], options["peer_temperature"], options["uncertainty_temperature"]),
        *(
            options["label_smoothing"],
            ops.UNCERTAINTIES.index(kind if certainty is None else "none"),
            options["trust"] == "uncertain",
        ),
        *(options["normalize_weights"], options["detach_peer"], options["ignore_index"]),
        ops.REDUCTIONS.index(options["reduction"]),
    ]
    form, places = forms.choose(operators, arguments, options["reduction"], options["normalize_weights"])
    return _call(operators, form, places, arguments)


def _coefficient(x: float | Tensor, dtype: torch.dtype) -> tuple[float, Tensor | None]:
    """A coefficient as the operator takes it: a number, and a tensor instead of it."""
    return (1.0, x.to(dtype)) if isinstance(x, Tensor) else (float(x), None)


def _call(operators: ops.Operators, form: str, places: tuple[int, ...], arguments: list[Any]) -> reference.Terms:
    """(loss, components, weight, entropy) of the operator in the form that was chosen."""
    if form == "traced":
        loss, components, weight, entropy, _ = operators.namespace.dual_student_loss.default(*arguments)
        return loss, components, weight, entropy
    if form == "loss":
        loss, components, weight, entropy, *_ = autograd.call(operators, arguments, (False, False, False))
        return loss, components, weight, entropy
    loss = autograd.apply((operators, form == "fused", places), arguments, *[arguments[k] for k in places])
    components, weight, entropy = arguments  # where the Function left them
    return loss, components, weight, entropy
