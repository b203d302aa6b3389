"""Where the compiled operator computes its gradients: with the loss, in one visit of each row ("fused"), or in the
backward pass from the logits ("recompute")."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from udskd.loss.ops import Operators
from udskd.loss.transforms import no_transforms

Form = Literal["auto", "fused", "recompute"]
_only: Form = "auto"
_DIFFERENTIABLE = (0, 1, 2, 4, 5, 6)  # places of the logits and the coefficients' tensors among the arguments


def choose(operators: Operators, arguments: list[Any], reduction: str, normalized: bool) -> tuple[str, tuple[int, ...]]:
    """What runs for the operator's arguments: "traced", "loss" (no gradients), "fused" or "recompute"; and the places
    of those that need gradients.

    Fused is faster wherever the gradient can be known before grad_output is: for a reduced loss, which grad_output only
    scales. Not in float16, in which small gradients would underflow before a loss scale reaches them; not for learned
    coefficients, whose gradients are formed with the others; and on a GPU not with normalized weights, whose mean is
    known only when all rows have been seen.
    """
    student = arguments[1]
    if torch.compiler.is_compiling():  # udskd/loss/ops.py refuses there what no_transforms does here
        return "traced", ()
    no_transforms(*[arguments[k] for k in _DIFFERENTIABLE])
    if type(student) not in (Tensor, nn.Parameter):
        return "traced", ()
    if not torch.is_grad_enabled():
        return "loss", ()
    places = tuple([k for k in _DIFFERENTIABLE if arguments[k] is not None and arguments[k].requires_grad])
    if not places:
        return "loss", ()
    fusable = reduction != "none" and not (normalized and operators.gpu)
    for k in places:
        fusable = fusable and k < 3 and arguments[k].dtype is not torch.float16
    if _only == "fused" and not fusable:
        gpu = ", and on a GPU no normalized weights" if operators.gpu else ""
        raise ValueError(f"the fused form needs a reduced loss, float coefficients and no float16{gpu}")
    return "fused" if fusable and _only != "recompute" else "recompute", places


@contextmanager
def only(form: Form) -> Iterator[None]:
    """One form for all calls inside, as benchmarks and tests need it; a call that cannot take it raises ValueError."""
    global _only
    before, _only = _only, form
    try:
        yield
    finally:
        _only = before
