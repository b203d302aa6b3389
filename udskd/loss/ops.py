"""The compiled operators: the table of those that a backend runs, and how PyTorch sees them when it traces: fake
kernels, and the derivative.

The schemas are in csrc/ops.cpp. The forward operator returns, after the loss and what is logged, a few numbers of each
row that the backward operator needs beside the logits; nothing of the logits' size is kept. Only the loss is
differentiable. Outside of tracing, udskd/loss/autograd.py does the same at less cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from udskd.loss.transforms import no_transforms


@dataclass(frozen=True)
class Operators:
    """What a backend runs. A name in OPERATORS is one that backend= of the loss takes."""

    namespace: Any  # of torch.ops
    device: str  # the type of its tensors' device
    columns: int  # kept of each row for the backward pass: csrc/loss, enum SavedColumn and Column
    gpu: bool  # one launch computes a pass, and nothing waits for it


OPERATORS = {
    "cuda": Operators(torch.ops.udskd, "cuda", columns=20, gpu=True),
    "cpu": Operators(torch.ops.udskd, "cpu", columns=2, gpu=False),
}
COEFFICIENTS = ("ce_weights", "kd_weights", "peer_weights")
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


def _columns(namespace: Any, device: str) -> int:
    kept = (x.columns for x in OPERATORS.values() if x.namespace is namespace and x.device == device)
    return next(kept, 0)


def _forward_fake(
    namespace: Any, teacher: Tensor | None, student_a: Tensor, student_b: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    _one_device(student_a, teacher, student_b, *rest)
    rows, dtype = student_a.shape[0], arithmetic(teacher, student_a, student_b)
    each = REDUCTIONS[rest[len(_TENSORS) - 3 + _NUMBERS.index("reduction")]] == "none"
    shapes = ((rows,), (6, rows)) if each else ((), (6,))
    kept = (rows, _columns(namespace, student_a.device.type))
    return tuple(student_a.new_empty(shape, dtype=dtype) for shape in (*shapes, (rows,), (rows,), kept))


def _fused_fake(
    namespace: Any, teacher: Tensor | None, student_a: Tensor, student_b: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    outputs = _forward_fake(namespace, teacher, student_a, student_b, *rest)
    return (*outputs, *_wanted((teacher, student_a, student_b), rest[-3:], outputs[-1]))


def _one_device(student_a: Tensor, *others: Any) -> None:
    """As the kernels check it: an operator of tensors on several devices may come to be seen as a fake one's."""
    for x in others:
        if isinstance(x, Tensor) and x.device != student_a.device:
            raise RuntimeError(f"tensors must be on one device, got {x.device} beside student_a on {student_a.device}")


def _wanted(logits: tuple[Tensor | None, ...], wanted: tuple[bool, ...], like: Tensor) -> list[Tensor]:
    """Empty tensors for the gradients of logits that are wanted, and of no size for the others."""
    pairs = zip(logits, wanted, strict=True)
    return [x.new_empty(x.shape) if x is not None and needed else like.new_empty(0) for x, needed in pairs]


def _backward_fake(
    grad_loss: Tensor, rows: Tensor, teacher: Tensor | None, student_a: Tensor, student_b: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    _one_device(student_a, grad_loss, rows, teacher, student_b, *rest)
    gradients = _wanted((teacher, student_a, student_b), rest[-4:-1], rows)
    return (*gradients, rows.new_empty((rows.shape[0], 3)) if rest[-1] else rows.new_empty(0))


def _scale_fake(grad_loss: Tensor, rows: Tensor, *gradients: Tensor) -> None:
    """Nothing is returned: the gradients are scaled where they are."""


def gradients_of(
    namespace: Any, grad_loss: Tensor, saved: tuple[Any, ...], numbers: tuple[Any, ...], wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients of the forward operator's first seven arguments, from what it returned as `rows` and themselves."""
    rows, *tensors = saved
    flags = (*wanted[:3], any(wanted[4:7]))
    *gradients, per_row = namespace.dual_student_loss_backward.default(
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


def _backward(namespace: Any, ctx: Any, grad_loss: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    gradients = gradients_of(namespace, grad_loss, ctx.saved_tensors, ctx.numbers, ctx.needs_input_grad)
    return gradients + (None,) * (len(ctx.needs_input_grad) - len(gradients))


def _no_second_derivative(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError(
        "udskd.dual_student_loss has first derivatives only; for second derivatives use backend='reference', "
        "which PyTorch differentiates as often as needed"
    )


class _Guarded(torch.library.Library):
    """A library whose operators refuse, where PyTorch would drop them, derivatives that they do not have."""

    def impl(self, op_name: Any, fn: Callable[..., Any], *rest: Any, **options: Any) -> None:
        """Registers fn(keyset, *arguments) after a look at the arguments."""

        def guarded(keyset: Any, *arguments: Any) -> Any:
            no_transforms(*[x for x in arguments if isinstance(x, Tensor)])
            return fn(keyset, *arguments)

        super().impl(op_name, guarded, *rest, **options)  # type: ignore[no-untyped-call]


_LIBRARIES: list[torch.library.Library] = []
"""Kept alive: what they register lives as long as they do."""


def register(name: str = "udskd") -> None:
    """Attaches everything above to the operators of a namespace; called once, when their library is loaded."""
    namespace = getattr(torch.ops, name)
    fakes: dict[str, Callable[..., Any]] = {
        "": partial(_forward_fake, namespace),
        "_fused": partial(_fused_fake, namespace),
        "_backward": _backward_fake,
    }
    if hasattr(namespace, "dual_student_loss_scale"):  # not in a library that was compiled before there was one
        fakes["_scale"] = _scale_fake
    for suffix, fake in fakes.items():
        torch.library.register_fake(f"{name}::dual_student_loss{suffix}", fake)
    derivative = partial(_backward, namespace)
    library = _Guarded(name, "FRAGMENT")  # type: ignore[no-untyped-call]
    _LIBRARIES.append(library)
    torch.library.register_autograd(f"{name}::dual_student_loss", derivative, setup_context=_setup_context, lib=library)
    torch.library.register_autograd(f"{name}::dual_student_loss_backward", _no_second_derivative)
