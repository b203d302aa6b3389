"""PyTorch's function transforms. The compiled loss refuses those for which it has no derivative; PyTorch would
otherwise take the derivative as 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_Kinds = torch._C._functorch.TransformType


def transforms() -> set[Any]:
    """The kinds of torch.func's active transforms, without functionalize, which differentiates nothing."""
    if torch._C._functorch.peek_interpreter_stack() is None:  # first, because it is cheap
        return set()
    return {level.key() for level in torch._C._functorch.get_interpreter_stack() or ()} - {_Kinds.Functionalize}


def no_transforms(*tensors: Tensor | None, vmap: bool = False) -> None:
    """NotImplementedError within a transform of torch.func (except vmap, if vmap=True) and for tensors with a
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
    """Whether a tensor represents a batch of tensors: within vmap, or as grad_outputs with is_grads_batched."""
    return bool(transforms()) or torch._C._functorch.is_legacy_batchedtensor(x)
