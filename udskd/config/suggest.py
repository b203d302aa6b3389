"""Suggestions for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_ALIKE = 0.6
"""The least share of equal characters (difflib) of names that are spelled alike."""


def near(name: str, known: Iterable[str]) -> list[str]:
    """The known names that are spelled alike, best first. Of two names with sections, such as training.lr, both the
    sections and the rests must be; a name without a section may stand for one in any section."""
    section, _, rest = name.rpartition(".")
    found = []
    for candidate in known:
        its_section, _, its_rest = candidate.rpartition(".")
        alike = _likeness(rest, its_rest), _likeness(section, its_section) if section and its_section else 1.0
        if min(alike) >= _ALIKE:
            found.append((sum(alike), candidate))
    return [candidate for _, candidate in sorted(found, key=lambda one: -one[0])]


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' (did you mean "..."?)' for the closest known name, '' if none is close."""
    close = near(name, reversed(list(known)))  # epochs: training.epochs rather than teacher.epochs
    return f' (did you mean "{close[0]}"?)' if close else ""
