"""The compiled operators as PyTorch sees them when it traces: fake kernels, and the derivative.

The schemas are in csrc/ops.cpp. The forward operator returns, after the loss and what is logged, a few numbers of each
row that the backward operator needs beside the logits; nothing of the logits' size is kept. Only the loss is
differentiable. Outside of tracing, udskd/autograd.py does the same at less cost.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = ("ce_weights", "kd_weights", "peer_weights")
_COLUMNS = {"cpu": 2, "cuda": 20}  # kept of each row: csrc/distill, enum SavedColumn and Column
_TENSORS = ("teacher", "student_a", "student_b", "target", *COEFFICIENTS, "certainty")
_NUMBERS = (  # the forward operator's arguments after the tensors, in the order of its schema
    *("ce_weight", "kd_weight", "peer_weight", "temperature", "peer_temperature", "uncertainty_temperature"),
    *("label_smoothing", "uncertainty", "trust_uncertain", "normalize_weights", "detach_peer", "ignore_index"),
    "reduction",
)
_BACKWARD_NUMBERS = [  # those that the backward operator takes
    _NUMBERS.index(name)
    for name in (
        *("ce_weight", "kd_weight", "peer_weight", "temperature", "peer_temperature", "label_smoothing"),
        "detach_peer",
    )
]
REDUCTIONS = ("mean", "sum", "none")
UNCERTAINTIES = ("entropy", "max_prob", "margin", "none")


def arithmetic(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any of the logits are, else float32."""
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32


def _forward_fake(
    teacher: Tensor | None, student_a: Tensor, student_b: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    rows, dtype = student_a.shape[0], arithmetic(teacher, student_a, student_b)
    each = REDUCTIONS[rest[len(_TENSORS) - 3 + _NUMBERS.index("reduction")]] == "none"
    shapes = ((rows,), (6, rows)) if each else ((), (6,))
    kept = (rows, _COLUMNS.get(student_a.device.type, 0))
    return tuple(student_a.new_empty(shape, dtype=dtype) for shape in (*shapes, (rows,), (rows,), kept))


def _fused_fake(teacher: Tensor | None, student_a: Tensor, student_b: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    outputs = _forward_fake(teacher, student_a, student_b, *rest)
    return (*outputs, *_wanted((teacher, student_a, student_b), rest[-3:], outputs[-1]))


def _wanted(logits: tuple[Tensor | None, ...], wanted: tuple[bool, ...], like: Tensor) -> list[Tensor]:
    """Empty tensors for the gradients of logits that are wanted, and of no size for the others."""
    pairs = zip(logits, wanted, strict=True)
    return [x.new_empty(x.shape) if x is not None and needed else like.new_empty(0) for x, needed in pairs]


def _backward_fake(
    grad_loss: Tensor, rows: Tensor, teacher: Tensor | None, student_a: Tensor, student_b: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    gradients = _wanted((teacher, student_a, student_b), rest[-4:-1], rows)
    return (*gradients, rows.new_empty((rows.shape[0], 3)) if rest[-1] else rows.new_empty(0))


def gradients_of(
    grad_loss: Tensor, saved: tuple[Any, ...], numbers: tuple[Any, ...], wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients of the forward operator's first seven arguments, from what it returned as `rows` and themselves."""
    rows, *tensors = saved
    flags = (*wanted[:3], any(wanted[4:7]))
    *gradients, per_row = torch.ops.udskd.dual_student_loss_backward.default(
        grad_loss.to(rows.dtype), rows, *tensors, *(numbers[k] for k in _BACKWARD_NUMBERS), *flags
    )
    logits = (x if needed else None for x, needed in zip(gradients, wanted[:3], strict=True))
    coefficients = (
        None if not wanted[4 + k] else per_row[:, k].sum() if tensors[4 + k].dim() == 0 else per_row[:, k]
        for k in range(len(COEFFICIENTS))
    )
    return *logits, None, *coefficients


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[4], *inputs[: len(_TENSORS) - 1])
    ctx.numbers = inputs[len(_TENSORS) :]
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad_loss: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    gradients = gradients_of(grad_loss, ctx.saved_tensors, ctx.numbers, ctx.needs_input_grad)
    return gradients + (None,) * (len(ctx.needs_input_grad) - len(gradients))


def _no_second_derivative(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError(
        "udskd.dual_student_loss has first derivatives only; for second derivatives use backend='reference', "
        "which PyTorch differentiates as often as needed"
    )


def register() -> None:
    """Attaches everything above to the operators of the compiled library; called once, when it is loaded."""
    torch.library.register_fake("udskd::dual_student_loss", _forward_fake)
    torch.library.register_fake("udskd::dual_student_loss_fused", _fused_fake)
    torch.library.register_fake("udskd::dual_student_loss_backward", _backward_fake)
    torch.library.register_autograd("udskd::dual_student_loss", _backward, setup_context=_setup_context)
    torch.library.register_autograd("udskd::dual_student_loss_backward", _no_second_derivative)
