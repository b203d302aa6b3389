"""The derivative of the compiled operator outside of torch.compile, in either of its forms (udskd/forms.py).

A torch.autograd.Function around operators that have no derivative of their own: several times cheaper a call than
torch.library.register_autograd (python -m bench.call), which udskd/ops.py keeps for what traces: torch.compile, export.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from udskd.ops import gradients_of


class Loss(torch.autograd.Function):
    """(loss, components, weight, entropy) of the operator's arguments; only the loss is differentiable."""

    @staticmethod
    def forward(ctx: Any, fused: bool, *arguments: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        wanted = ctx.needs_input_grad[1:4] if fused else (False, False, False)
        if arguments[1].device.type == "cpu":
            outputs = torch.ops.udskd.dual_student_loss_fused.default(*arguments, *wanted)
        else:
            outputs = torch.ops.udskd.dual_student_loss.default(*arguments)
        loss, components, weight, entropy, rows = outputs[:5]
        ctx.fused, ctx.gradients = fused, outputs[5:] if fused else None
        ctx.save_for_backward(rows, *arguments[:7])
        ctx.numbers = arguments[8:]
        ctx.mark_non_differentiable(components, weight, entropy)
        ctx.set_materialize_grads(False)
        return loss, components, weight, entropy

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        nothing = (None,) * len(ctx.needs_input_grad)
        if grad_loss is None:
            return nothing
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # create_graph: the operator refuses a second derivative, this Function could not
            return None, *gradients_of(grad_loss, ctx.saved_tensors, ctx.numbers, wanted), *nothing[8:]
        # Handed out once, so that nobody else holds what is scaled here: later passes compute them again.
        ready, ctx.gradients = ctx.gradients, None
        if not ctx.fused:
            return None, *gradients_of(grad_loss, ctx.saved_tensors, ctx.numbers, wanted), *nothing[8:]
        if ready is None:
            ready = gradients_of(torch.ones_like(grad_loss), ctx.saved_tensors, ctx.numbers, wanted)
        scale = grad_loss.item()
        gradients = [x if needed else None for x, needed in zip(ready[:3], wanted[:3], strict=True)]
        for x in gradients:
            if x is not None and scale != 1:
                x.mul_(scale)
        return None, *gradients, *nothing[4:]
