"""Common parts of the figures of `python -m bench.loss`: colours, the order of providers, legend and title."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.loss_table import Row
from bench.workload import Case
from udskd.results.plots import save

COLOURS = {  # by Okabe and Ito
    "eager": "#7a7a7a",
    "compile": "#e69f00",
    "compile-reduce-overhead": "#d55e00",
    "compile-max-autotune-no-cudagraphs": "#f0c800",
    "liger": "#009e73",
    "quack": "#cc79a7",
    "udskd": "#0072b2",
    "udskd-fused": "#56b4e9",
    "udskd-recompute": "#a6d8f5",
    "udskd-graph": "#004166",
    "reference": "#bdbdbd",
}


def panel_key(row: Row) -> tuple[str, str]:
    """What one panel shows: pass with the state of the caches, and dtype."""
    return Case.from_row(row).conditions, row["dtype"]


def providers(rows: Sequence[Row]) -> list[str]:
    measured = {row["provider"] for row in rows}
    return [name for name in COLOURS if name in measured]


def finish(
    figure: Figure, axes: Sequence[Axes], rows: Sequence[Row], path: Path, title: Sequence[str] = ("rows × classes",)
) -> None:
    """Adds one legend for all panels and a title with the machine, and saves the figure."""
    entries: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    order = sorted(entries, key=lambda name: [*COLOURS, name].index(name))
    columns = len(order) if len(order) < 7 else 5
    figure.legend([entries[name] for name in order], order, loc="outside lower center", ncols=columns)
    text = f"{', '.join(title)}; {_machine(rows[0])}, PyTorch {rows[0]['versions']['torch']}"
    figure.suptitle(text, fontsize=9, color="#666666")
    save(figure, path)


def _machine(row: Row) -> str:
    machine, threads = row["machine"], row["threads"]
    return machine.get("gpu") or f"{machine['processor']}, {threads} thread{'s' * (threads > 1)}"
