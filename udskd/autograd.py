"""The derivative of the compiled operator outside of torch.compile, in either of its forms (udskd/forms.py).

A torch.autograd.Function around operators that have no derivative of their own: several times cheaper a call than
torch.library.register_autograd (python -m bench.call), which udskd/ops.py keeps for what traces: torch.compile, export.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from udskd.ops import gradients_of


def call(arguments: list[Any], wanted: tuple[bool, bool, bool]) -> tuple[Tensor, ...]:
    """The operator's outputs, and after them the gradients that are wanted of teacher, student_a and student_b."""
    outputs: tuple[Tensor, ...]
    if arguments[1].device.type == "cpu":
        outputs = torch.ops.udskd.dual_student_loss_fused.default(*arguments, *wanted)
    else:
        outputs = torch.ops.udskd.dual_student_loss.default(*arguments)
    return outputs


class Loss(torch.autograd.Function):
    """The loss. Takes the operator's arguments as one list, in which it leaves the operator's other outputs, and again
    those of them that need gradients, with their places in the list: whatever autograd sees costs time."""

    @staticmethod
    def forward(ctx: Any, fused: bool, places: tuple[int, ...], arguments: list[Any], *learning: Tensor) -> Tensor:
        numbers, tensors = arguments[8:], arguments[:7]
        wanted = (0 in places, 1 in places, 2 in places) if fused else (False, False, False)
        loss, components, weight, entropy, rows, *gradients = call(arguments, wanted)
        arguments[:] = components, weight, entropy
        ctx.fused, ctx.places, ctx.numbers = fused, places, numbers
        ctx.gradients = [gradients[place] for place in places] if fused else None
        # A teacher's logits may come from inference_mode, whose tensors autograd does not take.
        untracked = [x is not None and x.is_inference() for x in tensors]
        ctx.save_for_backward(rows, *[None if alone else x for x, alone in zip(tensors, untracked, strict=True)])
        ctx.untracked = [x if alone else None for x, alone in zip(tensors, untracked, strict=True)]
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        # A graph of the gradient (create_graph) is the operator's own, which refuses a second derivative.
        if not ctx.fused or torch.is_grad_enabled():
            return None, None, None, *recomputed(ctx, grad_loss)
        scale = grad_loss.item()
        if not math.isfinite(scale):  # the zeros of ignored rows are to stay zeros
            return None, None, None, *recomputed(ctx, grad_loss)
        # Handed out once, so that nobody else holds what is scaled here: later passes compute them again.
        ready, ctx.gradients = ctx.gradients, None
        if ready is None:
            ready = recomputed(ctx, torch.ones_like(grad_loss))
        if scale != 1:
            for x in ready:
                x.mul_(scale)
        return None, None, None, *ready


def recomputed(ctx: Any, grad_loss: Tensor) -> list[Tensor]:
    """The gradients of the inputs that need one, from the logits."""
    wanted = tuple(place in ctx.places for place in range(7))
    rows, *tracked = ctx.saved_tensors
    tensors = [x if x is not None else alone for x, alone in zip(tracked, ctx.untracked, strict=True)]
    gradients = gradients_of(grad_loss, (rows, *tensors), ctx.numbers, wanted)
    return [gradient for place in ctx.places if (gradient := gradients[place]) is not None]


apply: Any = Loss.apply
