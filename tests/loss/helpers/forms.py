"""One form of the gradients (udskd/loss/autograd.py) for all calls, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from udskd.loss import dispatch
from udskd.loss.dispatch import Form as Form


@contextmanager
def only(form: Form) -> Iterator[None]:
    """Within the block, a call that cannot take the fused form raises ValueError if that is the one."""
    before, dispatch._forced_form = dispatch._forced_form, form
    try:
        yield
    finally:
        dispatch._forced_form = before
