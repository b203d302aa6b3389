"""Suggestions for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' (did you mean "..."?)' for the closest known name, '' if none is close."""
    known = list(known)
    close = [k for k in reversed(known) if k.rpartition(".")[2] == name.rpartition(".")[2]]  # epochs: training.epochs
    close = close or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f' (did you mean "{close[0]}"?)' if close else ""
