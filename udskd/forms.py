"""Where the compiled operator computes its gradients: with the loss in one visit of each row ("fused"), or in the
backward pass from saved statistics ("recompute")."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Form = Literal["auto", "fused", "recompute"]
_only: Form = "auto"


@contextmanager
def only(form: Form) -> Iterator[None]:
    """One form for all calls inside, as benchmarks and tests need it; a call that cannot take it raises ValueError."""
    global _only
    before, _only = _only, form
    try:
        yield
    finally:
        _only = before
