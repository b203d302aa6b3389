"""Figures of many shapes, one for each pass and dtype: a panel for each batch size, time over the number of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench import loss_style
from bench.loss_table import Row
from udskd.results.plots import INK, STYLE

COLUMNS = 3


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Writes PASS-DTYPE.png for each pass and dtype, PASS-cold-DTYPE.png for cold caches."""
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for key in dict.fromkeys(loss_style.panel_key(row) for row in rows):
            path = folder / f"{'-'.join(key).replace(', ', '-')}.png"
            figure_of([row for row in rows if loss_style.panel_key(row) == key], path)


def figure_of(rows: Sequence[Row], path: Path) -> None:
    batches = sorted({row["rows"] for row in rows})
    columns = min(COLUMNS, len(batches))
    lines = -(-len(batches) // columns)
    size = 1 + 3.6 * columns, 1.4 + 2.8 * lines
    figure, grid = plt.subplots(lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for axis in grid.flat[len(batches) :]:
        axis.set_visible(False)
    axes = list(grid.flat[: len(batches)])
    for axis, batch in zip(axes, batches, strict=True):
        axis.set_title(f"{batch} rows")
        panel(axis, [row for row in rows if row["rows"] == batch])
    for axis in grid[:, 0]:
        axis.set_ylabel("µs a call")
    for axis in axes[-columns:]:
        axis.set_xlabel("classes")
    loss_style.finish(figure, axes, rows, path, loss_style.panel_key(rows[0]))


def panel(axis: Axes, rows: Sequence[Row]) -> None:
    """Draws the times of one batch size on logarithmic axes, and dashed the time of a plain copy of the minimal bytes.
    Only logits that stay in the caches can be faster than that."""
    axis.set_xscale("log")
    axis.set_yscale("log")
    for name in loss_style.providers(rows):
        points = sorted((row["classes"], row["median_us"]) for row in rows if row["provider"] == name)
        axis.plot(*zip(*points, strict=True), color=loss_style.COLOURS[name], marker="o", markersize=3, label=name)
    floor = sorted({(row["classes"], row["minimal_bytes"] / row["copy_gb_per_s"] / 1e3) for row in rows})
    axis.plot(*zip(*floor, strict=True), color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label="a copy of the bytes")
