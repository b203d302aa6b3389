"""The derivative of the compiled operator outside of torch.compile, in either of its forms (udskd/loss/forms.py).

A torch.autograd.Function around operators that have no derivative of their own: several times cheaper a call than
torch.library.register_autograd (python -m bench.call), which udskd/loss/ops.py keeps for what traces: torch.compile
and torch.export.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from udskd.loss import checks
from udskd.loss.ops import Operators, gradients_of
from udskd.loss.transforms import is_batched, no_transforms


def call(operators: Operators, arguments: list[Any], wanted: tuple[bool, bool, bool]) -> tuple[Tensor, ...]:
    """The operator's outputs, and after them the gradients of teacher, student_a and student_b, each empty if unwanted.

    By the operator that has no derivative registered, whatever is wanted: PyTorch looks a registered one up in Python,
    even where there is nothing to differentiate.
    """
    outputs: tuple[Tensor, ...] = operators.namespace.dual_student_loss_fused.default(*arguments, *wanted)
    return outputs


class Loss(torch.autograd.Function):
    """The loss. Takes how it is to be computed, the operator's arguments as one list, in which it leaves the operator's
    other outputs, and again those of them that need gradients: whatever autograd sees costs time."""

    @staticmethod
    def forward(
        ctx: Any, how: tuple[Operators, bool, tuple[int, ...]], arguments: list[Any], *learning: Tensor
    ) -> Tensor:
        operators, fused, places = how
        numbers, tensors = arguments[8:], arguments[:7]
        wanted = (0 in places, 1 in places, 2 in places) if fused else (False, False, False)
        loss, components, weight, entropy, *kept = call(operators, arguments, wanted)
        arguments[:] = components, weight, entropy
        ctx.operators, ctx.places, ctx.numbers = operators, places, numbers
        ctx.fused, ctx.kept = fused, kept if fused else None
        # A teacher's logits may come from inference_mode, whose tensors autograd does not take.
        untracked = [x is not None and x.is_inference() for x in tensors]
        ctx.save_for_backward(kept[0], *[None if alone else x for x, alone in zip(tensors, untracked, strict=True)])
        ctx.untracked = [x if alone else None for x, alone in zip(tensors, untracked, strict=True)]
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        no_transforms(grad_loss, vmap=True)
        # A graph of the gradient (create_graph) is the operator's own, which refuses a second derivative. Gradients of
        # a batch of grad_outputs (is_grads_batched) are computed for each of them.
        if not ctx.fused or torch.is_grad_enabled() or is_batched(grad_loss):
            return None, None, *recomputed(ctx, grad_loss)
        scaled = scaled_on_its_device if ctx.operators.gpu else scaled_by_its_value
        return None, None, *scaled(ctx, grad_loss)


def scaled_by_its_value(ctx: Any, grad_loss: Tensor) -> list[Tensor]:
    """The gradients that came with the loss, times a number that is looked at."""
    scale = grad_loss.item()
    if not abs(scale) <= checks.FLOAT32_MAX:  # as infinity, it would make NaN of the zeros of ignored rows
        return recomputed(ctx, grad_loss)
    # Handed out once, so that nobody else holds what is scaled here: later passes compute them again.
    kept, ctx.kept = ctx.kept, None
    ready = recomputed(ctx, torch.ones_like(grad_loss)) if kept is None else [kept[1 + k] for k in ctx.places]
    if scale != 1:
        for x in ready:
            x.mul_(scale)
    return ready


def scaled_on_its_device(ctx: Any, grad_loss: Tensor) -> list[Tensor]:
    """The same by an operator: to look at the number would be to wait for the GPU."""
    kept, ctx.kept = ctx.kept, None
    if kept is None:
        return recomputed(ctx, grad_loss)
    ctx.operators.namespace.dual_student_loss_scale.default(grad_loss.to(kept[0].dtype), *kept)
    return [kept[1 + k] for k in ctx.places]


def recomputed(ctx: Any, grad_loss: Tensor) -> list[Tensor]:
    """The gradients of the inputs that need one, from the logits."""
    wanted = tuple(place in ctx.places for place in range(7))
    rows, *tracked = ctx.saved_tensors
    tensors = [x if x is not None else alone for x, alone in zip(tracked, ctx.untracked, strict=True)]
    gradients = gradients_of(ctx.operators.namespace, grad_loss, (rows, *tensors), ctx.numbers, wanted)
    return [gradient for place in ctx.places if (gradient := gradients[place]) is not None]


apply: Any = Loss.apply
