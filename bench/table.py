"""The rows of `python -m bench.loss` as tables: one for each case with every number, and one for each pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from udskd.results.table import Section

Row = dict[str, Any]
BASELINES = ("eager", "compile")
HEADER = ["provider", "median", "p10-p90", "vs eager", "vs compile", "GB/s", "of copy", "peak MB", "error"]
ON_A_GPU = ["wall", "kernels"]  # the host's clock, and the kernels' own time
SUMMARY_HEADER = ["case", "eager", "compile", "udskd", "vs eager", "vs compile", "of copy", "peak MB of the three"]


class Key(NamedTuple):
    """What a row was measured on."""

    rows: int
    classes: int
    dtype: str
    kind: str
    cache: str

    @property
    def size(self) -> str:
        return f"{self.rows} x {self.classes}, {self.dtype}"

    @property
    def circumstances(self) -> str:
        return self.kind if self.cache == "warm" else f"{self.kind}, {self.cache}"


def key(row: Row) -> Key:
    return Key(row["rows"], row["classes"], row["dtype"], row["pass"], row.get("cache", "warm"))


def cases(rows: Iterable[Row]) -> dict[Key, dict[str, Row]]:
    """The rows of each case by provider."""
    found: dict[Key, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(key(row), {})[row["provider"]] = row
    return found


def sections(rows: Iterable[Row]) -> list[Section]:
    """One table for each case, a line for each provider."""
    out = []
    for case, found in cases(rows).items():
        gpu = any(row.get("kernels_us") for row in found.values())
        lines = [_line(row, [found.get(name) for name in BASELINES]) for row in found.values()]
        if gpu:
            times = [[time(row["wall_us"]), time(row["kernels_us"])] for row in found.values()]
            lines = [[*line, *more] for line, more in zip(lines, times, strict=True)]
        out.append(Section(f"{case.size}, {case.circumstances}", [*HEADER, *ON_A_GPU[: 2 * gpu]], lines))
    return out


def summary(rows: Sequence[Row]) -> list[Section]:
    """One table for each pass, warm or cold, a line for each case: what a README has room for."""
    by_circumstances: dict[str, list[list[str]]] = {}
    for case, found in cases(rows).items():
        if "udskd" in found:
            by_circumstances.setdefault(case.circumstances, []).append([case.size, *_summary_cells(found)])
    return [Section(title, SUMMARY_HEADER, lines) for title, lines in by_circumstances.items()]


def _line(row: Row, others: Sequence[Row | None]) -> list[str]:
    return [
        row["provider"],
        time(row["median_us"]),
        f"{time(row['p10_us'])} - {time(row['p90_us'])}",
        *(faster(row, other) for other in others),
        f"{row['gb_per_s']:.2f}",
        percent(row["share_of_copy"]),
        megabytes(row["peak_bytes"]),
        f"{row['max_error']:.0e}",
    ]


def _summary_cells(found: dict[str, Row]) -> list[str]:
    ours, others = found["udskd"], [found.get(name) for name in BASELINES]
    peaks = [row["peak_bytes"] if row else None for row in (*others, ours)]
    return [
        *(time(row["median_us"]) if row else "" for row in (*others, ours)),
        *(faster(ours, row) for row in others),
        percent(ours["share_of_copy"]),
        " / ".join(megabytes(peak) or "-" for peak in peaks),
    ]


def time(us: float | None) -> str:
    """Microseconds below 10 ms, milliseconds above."""
    if us is None:
        return ""
    if us < 10_000:
        return f"{us:.{1 if us < 100 else 0}f} µs"
    return f"{us / 1000:.1f} ms"


def faster(row: Row, other: Row | None) -> str:
    """How many times as fast as the other."""
    if other is None:
        return ""
    ratio = other["median_us"] / row["median_us"]
    return f"{ratio:.{2 if ratio < 10 else 1}f}x"


def percent(share: float) -> str:
    return f"{share:.{1 if share < 0.1 else 0}%}"


def megabytes(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e6:.{3 if count < 1e6 else 2 if count < 1e7 else 0}f}"
