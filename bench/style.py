"""What the figures of `python -m bench.loss` have in common: colours, the order of providers, legends and titles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import table
from bench.table import Row
from udskd.results.plots import save

COLOURS = {  # Okabe and Ito's
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


def kind_of(row: Row) -> tuple[str, str]:
    return table.key(row).circumstances, row["dtype"]


def providers(rows: Sequence[Row]) -> list[str]:
    seen = {row["provider"] for row in rows}
    return [name for name in COLOURS if name in seen]


def finish(
    figure: Figure, axes: Sequence[Axes], rows: Sequence[Row], path: Path, what: Sequence[str] = ("rows × classes",)
) -> None:
    """One legend for all panels, and under what circumstances this was measured."""
    entries: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    order = sorted(entries, key=lambda name: [*COLOURS, name].index(name))
    figure.legend(
        [entries[name] for name in order], order, loc="outside lower center", ncols=len(order) if len(order) < 7 else 5
    )
    machine, threads = rows[0]["machine"], rows[0]["threads"]
    where = machine.get("gpu") or f"{machine['processor']}, {threads} thread{'s' * (threads > 1)}"
    versions = rows[0]["versions"]
    figure.suptitle(f"{', '.join(what)}; {where}, PyTorch {versions['torch']}", fontsize=9, color="#666666")
    save(figure, path)
