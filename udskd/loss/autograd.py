"""The derivative of the compiled operators in eager calls: gradients computed with the loss, in one pass over each row
("fused"), or in the backward pass from the logits ("recompute").

A torch.autograd.Function around operators without a registered derivative is several times cheaper a call than
torch.library.register_autograd (python -m bench.call), which udskd/loss/ops.py uses for torch.compile and torch.export.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from udskd.loss import checks
from udskd.loss.ops import NO_LOGITS, Arguments, NeededGradients, Operators, backward
from udskd.loss.transforms import is_batched, no_transforms


class EagerLoss(torch.autograd.Function):
    """(loss, (components, weight, entropy)): autograd does not see the inner tuple, which saves time.

    Takes the operators, whether the gradients are computed with the loss, which are needed, the operators' arguments,
    and again those of them that need gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, operators: Operators, fused: bool, needs: NeededGradients, arguments: Arguments, *learning: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        loss, components, weight, entropy, rows, *gradients = operators.namespace.dual_student_loss_fused.default(
            *arguments, needs.logits if fused else NO_LOGITS
        )
        ctx.operators, ctx.needs, ctx.fused = operators, needs, fused
        # with rows, because ctx.saved_tensors refuses logits that have changed, which these gradients do not need
        ctx.ready = (rows, gradients) if fused else None
        ctx.scalars, ctx.modes, tensors = arguments.scalars, arguments.modes, arguments.saved
        # autograd does not save tensors of inference_mode, such as a teacher's logits
        ctx.unsaved = [x if x is not None and x.is_inference() else None for x in tensors]
        ctx.save_for_backward(
            rows, *[x if alone is None else None for x, alone in zip(tensors, ctx.unsaved, strict=True)]
        )
        return loss, (components, weight, entropy)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: None) -> tuple[Tensor | None, ...]:
        no_transforms(grad_loss, vmap=True)
        # With create_graph, the backward operator itself refuses a second derivative. For a batch of grad_outputs
        # (is_grads_batched), it computes the gradients of each.
        if not ctx.fused or torch.is_grad_enabled() or is_batched(grad_loss):
            return None, None, None, None, *recomputed(ctx, grad_loss)
        scaled = scaled_on_device if ctx.operators.gpu else scaled_by_value
        return None, None, None, None, *scaled(ctx, grad_loss)


def scaled_by_value(ctx: Any, grad_loss: Tensor) -> list[Tensor]:
    """The gradients that were computed with the loss, times the value of grad_loss."""
    scale = grad_loss.item()
    if not abs(scale) <= checks.FLOAT32_MAX:  # as infinity, it would make the zeros of ignored rows NaN
        return recomputed(ctx, grad_loss)
    ready, ctx.ready = ctx.ready, None  # taken once: the caller owns them, and a later pass computes them again
    gradients = recomputed(ctx, torch.ones_like(grad_loss)) if ready is None else ctx.needs.select(ready[1])
    if scale != 1:
        for x in gradients:
            x.mul_(scale)
    return gradients


def scaled_on_device(ctx: Any, grad_loss: Tensor) -> list[Tensor]:
    """The same by an operator: to read the value of grad_loss, the host would have to wait for the GPU."""
    ready, ctx.ready = ctx.ready, None
    if ready is None:
        return recomputed(ctx, grad_loss)
    rows, gradients = ready
    ctx.operators.namespace.dual_student_loss_scale.default(grad_loss.to(rows.dtype), rows, *gradients)
    needs: NeededGradients = ctx.needs
    return needs.select(gradients)


def recomputed(ctx: Any, grad_loss: Tensor) -> list[Tensor]:
    """The gradients from the logits."""
    rows, *saved = ctx.saved_tensors
    tensors = [x if x is not None else alone for x, alone in zip(saved, ctx.unsaved, strict=True)]
    arguments = Arguments.from_saved(tensors, ctx.scalars, ctx.modes)
    needs: NeededGradients = ctx.needs
    return needs.select(backward(ctx.operators.namespace, grad_loss, rows, arguments, needs))


apply: Any = EagerLoss.apply
