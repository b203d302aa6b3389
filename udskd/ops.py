"""The compiled operator as PyTorch sees it: fake kernels for compile and export, and the derivative.

The schemas are in csrc/ops.cpp. The forward operator returns, after the loss and what is logged, the statistics of each
row from which the backward operator computes the gradients; nothing of the logits' size is kept. Only the loss is
differentiable.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_COLUMNS = 20  # of the row statistics: csrc/distill/distill.h, enum Column
_TENSORS = ("teacher", "student_a", "student_b", "target", "ce_weights", "kd_weights", "peer_weights", "certainty")
_NUMBERS = ("ce_weight", "kd_weight", "peer_weight", "temperature", "peer_temperature", "label_smoothing")
_NAMES = (  # the forward operator's arguments, in the order of its schema
    *_TENSORS,
    *("ce_weight", "kd_weight", "peer_weight", "temperature", "peer_temperature", "uncertainty_temperature"),
    *("label_smoothing", "uncertainty", "trust_uncertain", "normalize_weights", "detach_peer", "ignore_index"),
    "reduction",
)
REDUCTIONS = ("mean", "sum", "none")
UNCERTAINTIES = ("entropy", "max_prob", "margin", "none")


def arithmetic(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any of the logits are, else float32."""
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32


def _forward_fake(
    teacher: Tensor | None, student_a: Tensor, student_b: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    rows, dtype = student_a.shape[0], arithmetic(teacher, student_a, student_b)
    each = REDUCTIONS[rest[-1]] == "none"
    shapes = ((rows,), (6, rows)) if each else ((), (6,))
    return tuple(student_a.new_empty(shape, dtype=dtype) for shape in (*shapes, (rows,), (rows,), (rows, _COLUMNS)))


def _backward_fake(
    grad_loss: Tensor, rows: Tensor, teacher: Tensor | None, student_a: Tensor, student_b: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    wanted = zip((teacher, student_a, student_b), rest[-4:-1], strict=True)
    gradients = [x.new_empty(x.shape) if x is not None and needed else rows.new_empty(0) for x, needed in wanted]
    return (*gradients, rows.new_empty((rows.shape[0], 3)) if rest[-1] else rows.new_empty(0))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    named = dict(zip(_NAMES, inputs, strict=True))
    ctx.save_for_backward(output[4], *(named[name] for name in _TENSORS[:-1]))
    ctx.numbers = tuple(named[name] for name in (*_NUMBERS, "detach_peer"))
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad_loss: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    rows, *tensors = ctx.saved_tensors
    needs = dict(zip(_NAMES, ctx.needs_input_grad, strict=True))
    coefficients = ("ce_weights", "kd_weights", "peer_weights")
    wanted = (needs["teacher"], needs["student_a"], needs["student_b"], any(needs[name] for name in coefficients))
    *gradients, per_row = torch.ops.udskd.dual_student_loss_backward.default(
        grad_loss.to(rows.dtype), rows, *tensors, *ctx.numbers, *wanted
    )
    out = dict.fromkeys(_NAMES)
    for name, gradient in zip(("teacher", "student_a", "student_b"), gradients, strict=True):
        out[name] = gradient if needs[name] else None
    for k, name in enumerate(coefficients):
        if needs[name]:
            out[name] = per_row[:, k].sum() if tensors[4 + k].dim() == 0 else per_row[:, k]
    return tuple(out.values())


def _no_second_derivative(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError(
        "udskd.dual_student_loss has first derivatives only; for second derivatives use backend='reference', "
        "which PyTorch differentiates as often as needed"
    )


def register() -> None:
    """Attaches everything above to the operators of the compiled library; called once, when it is loaded."""
    torch.library.register_fake("udskd::dual_student_loss", _forward_fake)
    torch.library.register_fake("udskd::dual_student_loss_backward", _backward_fake)
    torch.library.register_autograd("udskd::dual_student_loss", _backward, setup_context=_setup_context)
    torch.library.register_autograd("udskd::dual_student_loss_backward", _no_second_derivative)
