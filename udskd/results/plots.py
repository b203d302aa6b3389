"""The figures of `udskd compare`. The colours are Okabe and Ito's, which colour-blind readers can tell apart."""

from __future__ import annotations

import io
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from udskd.config.schema import STUDENTS
from udskd.files import write_atomic
from udskd.results.runs import Group
from udskd.results.statistics import Floats

COLOURS = {
    **{"ce": "#7a7a7a", "kd": "#e69f00", "dml": "#009e73", "udskd": "#0072b2"},
    **{"cud": "#a6761d", "variance": "#66a61e", "sdkd": "#7b3294", "akd": "#e7298a", "dkd": "#1b4f72"},
    **{"er_kd": "#b22222", "wsl": "#20b2aa"},
}
VARIANTS = ["#cc79a7", "#56b4e9", "#d55e00", "#8c6bb1", "#f0c800"]
INK, FAINT = "#222222", "#d9d9d9"
STYLE: Any = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 160,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.parse_math": False,  # labels hold options of runs, in which $ begins no formula
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def draw_accuracy(groups: Sequence[Group], path: Path) -> None:
    """Draw the top-1 accuracy of every group, a panel for each student."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10, 1.6 + 0.42 * len(groups)), sharey=True)
        for axis, role in zip(axes, STUDENTS, strict=True):
            draw_dots(axis, groups, role, "top1")
            axis.set_title(panel_title(groups, role))
            axis.set_xlabel("top-1 accuracy (%)")
        save(figure, path)


def draw_calibration(groups: Sequence[Group], path: Path) -> None:
    """Draw expected calibration error, negative log-likelihood and Brier score, a row for each student."""
    names = {"ece": "ECE, 15 bins", "nll": "negative log-likelihood", "brier": "Brier score"}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(12, 2.6 + 0.84 * len(groups)), sharey=True, squeeze=False)
        for row, role in zip(axes, STUDENTS, strict=True):
            row[0].set_title(panel_title(groups, role))
            for axis, (metric, name) in zip(row, names.items(), strict=True):
                draw_dots(axis, groups, role, metric)
                axis.set_xlabel(f"{name} (lower is better)")
        save(figure, path)


def draw_curves(groups: Sequence[Group], path: Path) -> None:
    """Draw top-1 and negative log-likelihood over the epochs, with a band of one standard deviation over the seeds."""
    names = {"top1": "top-1 accuracy (%)", "nll": "negative log-likelihood"}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex=True, squeeze=False)
        for row, (metric, name) in zip(axes, names.items(), strict=True):
            row[0].set_ylabel(name)
            for axis, role in zip(row, STUDENTS, strict=True):
                for group, colour in zip(groups, group_colours(groups), strict=True):
                    draw_curve(axis, group, role, metric, colour)
        for role, top, bottom in zip(STUDENTS, axes[0], axes[1], strict=True):
            top.set_title(panel_title(groups, role))
            bottom.set_xlabel("epoch")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(groups), 4))
        save(figure, path)


def draw_dots(axis: Axes, groups: Sequence[Group], role: str, metric: str) -> None:
    """Draw a row for each group: mean and standard deviation, and below them every seed as a faint dot."""
    for row, (group, colour) in enumerate(zip(groups, group_colours(groups), strict=True)):
        values = group.values(role, metric)
        if not values:
            continue
        mean, spread = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
        axis.errorbar(mean, row, xerr=spread, fmt="o", color=colour, markersize=8, capsize=4, elinewidth=2)
        if len(values) > 1:
            axis.plot(values, [row + 0.26] * len(values), "o", color=colour, alpha=0.5, markersize=4, markeredgewidth=0)
    axis.set_yticks(range(len(groups)), [group.label for group in groups])
    axis.set_ylim(len(groups) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    axis.margins(x=0.12)


def draw_curve(axis: Axes, group: Group, role: str, metric: str, colour: str) -> None:
    """Draw a group's curve over the epochs that all its seeds evaluated."""
    series = [{event["epoch"]: event[role][metric] for event in run.epochs if role in event} for run in group.runs]
    epochs = sorted(set.intersection(*(set(values) for values in series)))
    if not epochs:
        return
    values = np.array([[one[epoch] for epoch in epochs] for one in series])
    draw_band(axis, epochs, values, colour, linewidth=2, label=group.label)


def draw_band(axis: Axes, x: Sequence[float], values: Floats, colour: str, **line: Any) -> None:
    """Draw the mean over seeds of values [seeds, len(x)], in a band of one standard deviation."""
    mean = values.mean(axis=0)
    axis.plot(x, mean, color=colour, **line)
    if len(values) > 1:
        spread = values.std(axis=0, ddof=1)
        axis.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)


def group_colours(groups: Sequence[Group]) -> list[str]:
    """A colour for each group: the method's own for its plain form, one of VARIANTS for other options."""
    spare = itertools.cycle(VARIANTS)
    return [COLOURS[group.label] if group.label in COLOURS else next(spare) for group in groups]


def panel_title(groups: Sequence[Group], role: str) -> str:
    """The title of a student's panel: its networks and its role."""
    models = dict.fromkeys(group.model(role) for group in groups)
    return f"{' / '.join(models)} ({role})"


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format of the path's suffix, and free its memory. CheckpointError if that fails."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:])
    plt.close(figure)
    write_atomic(path, content.getbuffer())
