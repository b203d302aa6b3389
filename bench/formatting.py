"""Numbers as texts, and Markdown tables without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def time(us: float | None) -> str:
    """Microseconds below 10 ms, milliseconds above."""
    if us is None:
        return ""
    if us < 10_000:
        return f"{us:.{1 if us < 100 else 0}f} µs"
    return f"{us / 1000:.1f} ms"


def spread(row: Mapping[str, Any]) -> str:
    """The 10th and 90th percentile of a row's times."""
    return f"{time(row['p10_us'])} - {time(row['p90_us'])}"


def speedup(row: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> str:
    """The baseline's median time divided by the row's."""
    if baseline is None:
        return ""
    ratio = baseline["median_us"] / row["median_us"]
    return f"{ratio:.{2 if ratio < 10 else 1}f}x"


def percent(share: float) -> str:
    return f"{share:.{1 if share < 0.1 else 0}%}"


def megabytes(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e6:.{3 if count < 1e6 else 2 if count < 1e7 else 0}f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table whose first `text_columns` columns are left-aligned, the others right-aligned.

    Wide tables that are committed are not padded: one longer cell would change every line of the file.
    """
    rule = ["---" if column < text_columns else "--:" for column in range(len(header))]
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *rows))
