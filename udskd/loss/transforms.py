"""PyTorch's transforms of functions, of which the compiled loss refuses those that it has no derivatives for: where it
did not, they would be 0 without a word."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_Kinds = torch._C._functorch.TransformType


def transforms() -> set[Any]:
    """The kinds of torch.func's transforms at work. functionalize is none: it differentiates nothing."""
    if torch._C._functorch.peek_interpreter_stack() is None:  # looked at first because it costs little
        return set()
    return {level.key() for level in torch._C._functorch.get_interpreter_stack() or ()} - {_Kinds.Functionalize}


def no_transforms(*tensors: Tensor | None, vmap: bool = False) -> None:
    """NotImplementedError within a transform of torch.func (but vmap, if that is allowed), and for tensors with a
    forward-mode derivative."""
    if transforms() - ({_Kinds.Vmap} if vmap else set()):
        raise NotImplementedError(
            "udskd.dual_student_loss cannot be transformed by torch.func (grad, vmap, jvp and others); use "
            "backend='reference'"
        )
    if getattr(forward_ad, "_current_level", -1) < 0:
        return
    unpack: Any = forward_ad.unpack_dual
    if any(x is not None and unpack(x).tangent is not None for x in tensors):
        raise NotImplementedError("udskd.dual_student_loss has no forward-mode derivative; use backend='reference'")


def is_batched(x: Tensor) -> bool:
    """Whether a tensor stands for several: within vmap, and for grad_outputs that come as a batch."""
    return bool(transforms()) or torch._C._functorch.is_legacy_batchedtensor(x)
