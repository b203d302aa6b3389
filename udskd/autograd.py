"""The derivative of the compiled operator outside of torch.compile, in either of its forms (udskd/forms.py).

A torch.autograd.Function around operators that have no derivative of their own: several times cheaper a call than
torch.library.register_autograd (python -m bench.call), which udskd/ops.py keeps for what traces: torch.compile, export.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from udskd.ops import gradients_of


def call(arguments: tuple[Any, ...], wanted: tuple[bool, bool, bool]) -> tuple[Tensor, ...]:
    """The operator's outputs, and after them the gradients that are wanted of teacher, student_a and student_b."""
    outputs: tuple[Tensor, ...]
    if arguments[1].device.type == "cpu":
        outputs = torch.ops.udskd.dual_student_loss_fused.default(*arguments, *wanted)
    else:
        outputs = torch.ops.udskd.dual_student_loss.default(*arguments)
    return outputs


class Loss(torch.autograd.Function):
    """The loss. Takes the operator's arguments as one list, which it leaves the operator's other outputs in, and again
    those tensors that may need gradients: every argument and output that autograd sees costs time."""

    @staticmethod
    def forward(ctx: Any, fused: bool, everything: list[Any], *logits_and_coefficients: Tensor | None) -> Tensor:  # type: ignore[override]
        arguments = tuple(everything)
        wanted = ctx.needs_input_grad[2:5] if fused else (False, False, False)
        loss, components, weight, entropy, rows, *gradients = call(arguments, wanted)
        everything[:] = components, weight, entropy
        ctx.fused, ctx.gradients, ctx.numbers = fused, gradients if fused else None, arguments[8:]
        ctx.save_for_backward(rows, *arguments[:7])
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        teacher, a, b, *coefficients = ctx.needs_input_grad[2:]
        wanted = (teacher, a, b, False, *coefficients)
        # A graph of the gradient (create_graph) is the operator's own, which refuses a second derivative.
        if not ctx.fused or torch.is_grad_enabled():
            gradients = gradients_of(grad_loss, ctx.saved_tensors, ctx.numbers, wanted)
            return None, None, *gradients[:3], *gradients[4:]
        # Handed out once, so that nobody else holds what is scaled here: later passes compute them again.
        ready, ctx.gradients = ctx.gradients, None
        if ready is None:
            ready = gradients_of(torch.ones_like(grad_loss), ctx.saved_tensors, ctx.numbers, wanted)
        ready = [x if needed else None for x, needed in zip(ready[:3], wanted[:3], strict=True)]
        scale = grad_loss.item()
        if scale != 1:
            for x in ready:
                if x is not None:
                    x.mul_(scale)
        return None, None, *ready, None, None, None
