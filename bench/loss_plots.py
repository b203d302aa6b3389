"""Figures of the results of `python -m bench.loss`: speedup over eager, and bandwidth beside that of a copy.

python -m bench.loss_plots FILE.json DIR draws them from a file that --json wrote.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import loss_curves, loss_style
from bench.loss_table import Row
from udskd.files import read_text
from udskd.results.plots import INK, STYLE

MAX_SHAPES = 8  # in bar charts; more shapes are drawn as curves
MAX_BARS = 32  # in a panel, if the figure has two columns of panels
Value = Callable[[Row], float]


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Writes speedup.png (if eager was measured) and bandwidth.png; of many shapes, curves for each pass and dtype."""
    if len({(row["rows"], row["classes"]) for row in rows}) > MAX_SHAPES:
        loss_curves.draw(rows, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        compared = [row for row in rows if row["provider"] != "eager" and row["speedup_vs_eager"]]
        if compared:
            speedup(compared, folder / "speedup.png")
        bandwidth(rows, folder / "bandwidth.png")


def speedup(rows: Sequence[Row], path: Path) -> None:
    """Speedup over eager on a logarithmic scale, so that factors of 2 and 1/2 are equally far from 1."""
    figure, axes = panels(rows, "times as fast as eager", lambda row: row["speedup_vs_eager"], base=1.0)
    low, high = (pick(row["speedup_vs_eager"] for row in rows) for pick in (min, max))
    for axis in axes:
        axis.set_yscale("log", base=2)
        axis.set_ylim(min(0.9, low / 1.4), max(2.0, high) * 1.5)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        axis.spines["bottom"].set_visible(False)
        axis.axhline(1, color=loss_style.COLOURS["eager"], linewidth=1.5, label="eager")
    loss_style.finish(figure, axes, rows, path)


def bandwidth(rows: Sequence[Row], path: Path) -> None:
    """Minimal bytes (Case.minimal_bytes) per second."""
    size, unit = (1000, "TB/s") if rows[0]["copy_gb_per_s"] > 1000 else (1, "GB/s")
    figure, axes = panels(rows, f"{unit} of unavoidable bytes", lambda row: row["gb_per_s"] / size)
    copy = rows[0]["copy_gb_per_s"] / size
    for axis in axes:
        axis.set_ylim(0, max(copy, *(row["gb_per_s"] / size for row in rows)) * 1.12)
        axis.axhline(copy, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label=f"a copy ({copy:.3g} {unit})")
    loss_style.finish(figure, axes, rows, path)


def panels(rows: Sequence[Row], label: str, value: Value, base: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A panel for each pass and dtype, in it a group for each shape, in it a bar from `base` for each provider."""
    keys = list(dict.fromkeys(loss_style.panel_key(row) for row in rows))
    shapes = list(dict.fromkeys((row["rows"], row["classes"]) for row in rows))
    figure, axes = _grid(len(keys), len(shapes) * (len(loss_style.providers(rows)) + 1), label)
    width = 0.86 / len(loss_style.providers(rows))
    for axis, key in zip(axes, keys, strict=True):
        _label_shapes(axis, shapes)
        axis.set_title(", ".join(key))
        for x, shape in enumerate(shapes):
            group = [row for row in rows if (*loss_style.panel_key(row), row["rows"], row["classes"]) == (*key, *shape)]
            bars(axis, x, width, {row["provider"]: value(row) for row in group}, base)
    return figure, axes


def _grid(count: int, bar_count: int, label: str) -> tuple[Figure, list[Axes]]:
    """`count` panels for `bar_count` bars each, in one or two columns."""
    columns = 2 if bar_count <= MAX_BARS and count > 1 else 1
    lines = -(-count // columns)
    size = columns * max(4.5, 0.28 * bar_count), 1.2 + 2.7 * lines
    figure, grid = plt.subplots(lines, columns, figsize=size, sharey=True, squeeze=False)
    for axis in grid[:, 0]:
        axis.set_ylabel(label)
    for axis in grid.flat[count:]:
        axis.set_visible(False)
    return figure, list(grid.flat[:count])


def _label_shapes(axis: Axes, shapes: Sequence[tuple[int, int]]) -> None:
    axis.set_xticks(range(len(shapes)), [f"{rows} × {classes}" for rows, classes in shapes])
    axis.set_xlim(-0.55, len(shapes) - 0.45)
    axis.tick_params(length=0)
    axis.grid(visible=False, axis="x")


def bars(axis: Axes, x: float, width: float, values: dict[str, float], base: float) -> None:
    """The bars of one shape, in the order of COLOURS."""
    names = [name for name in loss_style.COLOURS if name in values]
    for number, name in enumerate(names):
        middle, value = x + (number - (len(names) - 1) / 2) * width, values[name]
        axis.bar(middle, value - base, width * 0.92, base, color=loss_style.COLOURS[name], label=name, zorder=2)
        _annotate(axis, middle, value, above=value >= base)


def _annotate(axis: Axes, x: float, value: float, above: bool) -> None:
    """Writes the value at the end of its bar, on a white background because lines may cross it."""
    axis.annotate(
        f"{value:.{0 if value >= 9.95 else 1 if value >= 0.95 else 2}f}",
        (x, value),
        (0, 2 if above else -2),
        textcoords="offset points",
        ha="center",
        va="bottom" if above else "top",
        fontsize=7,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
        zorder=4,
    )


if __name__ == "__main__":
    draw(json.loads(read_text(Path(sys.argv[1]))), Path(sys.argv[2]))
