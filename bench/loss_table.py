"""Tables of the results of `python -m bench.loss`: one for each case with every number, and a summary for each pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.formatting import megabytes, percent, speedup, spread, time
from bench.workload import Case
from udskd.results.table import Section

Row = dict[str, Any]
BASELINES = ("eager", "compile")
HEADER = ["provider", "median", "p10-p90", "vs eager", "vs compile", "GB/s", "of copy", "peak MB", "error"]
GPU_HEADER = ["wall", "kernels"]  # by the host's clock; the sum of the kernels' times
SUMMARY_HEADER = ["case", "eager", "compile", "udskd", "vs eager", "vs compile", "of copy", "peak MB of the three"]


def by_case(rows: Iterable[Row]) -> dict[Case, dict[str, Row]]:
    """The rows of each case by provider."""
    found: dict[Case, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(Case.from_row(row), {})[row["provider"]] = row
    return found


def sections(rows: Iterable[Row]) -> list[Section]:
    """One table for each case with a line for each provider."""
    out = []
    for case, found in by_case(rows).items():
        gpu = any(row.get("kernels_us") for row in found.values())
        lines = [_line(row, [found.get(name) for name in BASELINES]) for row in found.values()]
        if gpu:
            times = [[time(row["wall_us"]), time(row["kernels_us"])] for row in found.values()]
            lines = [[*line, *more] for line, more in zip(lines, times, strict=True)]
        out.append(Section(str(case), [*HEADER, *GPU_HEADER[: 2 * gpu]], lines))
    return out


def summary(rows: Sequence[Row]) -> list[Section]:
    """One table for each pass and state of the caches with a line for each case, short enough for a README."""
    by_conditions: dict[str, list[list[str]]] = {}
    for case, found in by_case(rows).items():
        if "udskd" in found:
            by_conditions.setdefault(case.conditions, []).append([case.size, *_summary_cells(found)])
    return [Section(title, SUMMARY_HEADER, lines) for title, lines in by_conditions.items()]


def _line(row: Row, baselines: Sequence[Row | None]) -> list[str]:
    return [
        row["provider"],
        time(row["median_us"]),
        spread(row),
        *(speedup(row, baseline) for baseline in baselines),
        f"{row['gb_per_s']:.2f}",
        percent(row["share_of_copy"]),
        megabytes(row["peak_bytes"]),
        f"{row['max_error']:.0e}",
    ]


def _summary_cells(found: dict[str, Row]) -> list[str]:
    ours, baselines = found["udskd"], [found.get(name) for name in BASELINES]
    peaks = [row["peak_bytes"] if row else None for row in (*baselines, ours)]
    return [
        *(time(row["median_us"]) if row else "" for row in (*baselines, ours)),
        *(speedup(ours, row) for row in baselines),
        percent(ours["share_of_copy"]),
        " / ".join(megabytes(peak) or "-" for peak in peaks),
    ]
