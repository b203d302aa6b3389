"""Where the compiled operator computes its gradients: with the loss, in one visit of each row ("fused"), or in the
backward pass from the logits ("recompute")."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

Form = Literal["auto", "fused", "recompute"]
_only: Form = "auto"


def choose(logits: tuple[Tensor | None, ...], coefficients: tuple[Tensor | None, ...], reduction: str) -> str:
    """What runs: "traced", "loss" (no gradients), "fused" or "recompute".

    Fused is faster wherever the gradient can be known before grad_output is: for a reduced loss, which grad_output only
    scales. Not in float16, in which small gradients would underflow before a loss scale reaches them; not for learned
    coefficients, whose gradients are formed with the others; and not on CUDA yet.
    """
    student = logits[1]
    if torch.compiler.is_compiling() or type(student) not in (Tensor, nn.Parameter):
        return "traced"
    learned = [x for x in coefficients if x is not None and x.requires_grad]
    learning = [x for x in logits if x is not None and x.requires_grad]
    if not torch.is_grad_enabled() or not (learned or learning):
        return "loss"
    fusable = (
        not learned
        and reduction != "none"
        and all(x.dtype is not torch.float16 and x.device.type == "cpu" for x in learning)
    )
    if _only == "fused" and not fusable:
        raise ValueError("the fused form needs a reduced loss, float coefficients, no float16, and the CPU")
    return "fused" if fusable and _only != "recompute" else "recompute"


@contextmanager
def only(form: Form) -> Iterator[None]:
    """One form for all calls inside, as benchmarks and tests need it; a call that cannot take it raises ValueError."""
    global _only
    before, _only = _only, form
    try:
        yield
    finally:
        _only = before
