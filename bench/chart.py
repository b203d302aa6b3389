"""Figures from the rows of `python -m bench.loss`: speed-up over eager, and bandwidth beside that of a copy.

python -m bench.chart FILE.json DIR draws them again from what --json wrote.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import curves, style
from bench.table import Row
from udskd.results.plots import INK, STYLE

MANY = 8  # shapes above which bars would say nothing
SIDE_BY_SIDE = 32  # bars of a panel above which the panels stand below each other
Value = Callable[[Row], float]


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Writes speedup.png, if eager was measured, and bandwidth.png; of many shapes a figure for each pass and dtype."""
    if len({(row["rows"], row["classes"]) for row in rows}) > MANY:
        curves.draw(rows, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        faster = [row for row in rows if row["provider"] != "eager" and row["speedup_vs_eager"]]
        if faster:
            speedup(faster, folder / "speedup.png")
        bandwidth(rows, folder / "bandwidth.png")


def speedup(rows: Sequence[Row], path: Path) -> None:
    """Times as fast as eager, on a scale on which twice as fast is as far up as half as fast is down."""
    figure, axes = panels(rows, "times as fast as eager", lambda row: row["speedup_vs_eager"], base=1.0)
    low, high = (pick(row["speedup_vs_eager"] for row in rows) for pick in (min, max))
    for axis in axes:
        axis.set_yscale("log", base=2)
        axis.set_ylim(min(0.9, low / 1.4), max(2.0, high) * 1.5)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        axis.spines["bottom"].set_visible(False)
        axis.axhline(1, color=style.COLOURS["eager"], linewidth=1.5, label="eager")
    style.finish(figure, axes, rows, path)


def bandwidth(rows: Sequence[Row], path: Path) -> None:
    """Bytes per second, of those that no implementation can avoid."""
    size, unit = (1000, "TB/s") if rows[0]["copy_gb_per_s"] > 1000 else (1, "GB/s")
    figure, axes = panels(rows, f"{unit} of unavoidable bytes", lambda row: row["gb_per_s"] / size)
    copy = rows[0]["copy_gb_per_s"] / size
    for axis in axes:
        axis.set_ylim(0, max(copy, *(row["gb_per_s"] / size for row in rows)) * 1.12)
        axis.axhline(copy, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label=f"a copy ({copy:.3g} {unit})")
    style.finish(figure, axes, rows, path)


def panels(rows: Sequence[Row], label: str, value: Value, base: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A panel for each pass and dtype, in it a group for each shape and a bar, upon the base, for each provider."""
    kinds = list(dict.fromkeys(style.kind_of(row) for row in rows))
    shapes = list(dict.fromkeys((row["rows"], row["classes"]) for row in rows))
    bars = len(shapes) * (len(style.providers(rows)) + 1)
    columns = 2 if bars <= SIDE_BY_SIDE and len(kinds) > 1 else 1
    lines = -(-len(kinds) // columns)
    size = columns * max(4.5, 0.28 * bars), 1.2 + 2.7 * lines
    figure, grid = plt.subplots(lines, columns, figsize=size, sharey=True, squeeze=False)
    width = 0.86 / len(style.providers(rows))
    for axis in grid[:, 0]:
        axis.set_ylabel(label)
    for axis in grid.flat[len(kinds) :]:
        axis.set_visible(False)
    for axis, kind in zip(grid.flat, kinds, strict=False):
        axis.set_title(", ".join(kind))
        axis.set_xticks(range(len(shapes)), [f"{rows} × {classes}" for rows, classes in shapes])
        axis.set_xlim(-0.55, len(shapes) - 0.45)
        axis.tick_params(length=0)
        axis.grid(visible=False, axis="x")
        for x, shape in enumerate(shapes):
            mine = [row for row in rows if (*style.kind_of(row), row["rows"], row["classes"]) == (*kind, *shape)]
            group(axis, x, width, {row["provider"]: value(row) for row in mine}, base)
    return figure, list(grid.flat[: len(kinds)])


def group(axis: Axes, x: float, width: float, values: dict[str, float], base: float) -> None:
    """The bars of one shape, in the order of COLOURS."""
    names = [name for name in style.COLOURS if name in values]
    for place, name in enumerate(names):
        middle, value = x + (place - (len(names) - 1) / 2) * width, values[name]
        axis.bar(middle, value - base, width * 0.92, base, color=style.COLOURS[name], label=name, zorder=2)
        text = f"{value:.{0 if value >= 9.95 else 1 if value >= 0.95 else 2}f}"
        up = value >= base
        # On a white ground, for lines that cross it.
        axis.annotate(
            text,
            (middle, value),
            (0, 2 if up else -2),
            textcoords="offset points",
            ha="center",
            va="bottom" if up else "top",
            fontsize=7,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
            zorder=4,
        )


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
