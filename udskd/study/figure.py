"""The study's figure: weights against the true entropy, accuracy from clear to ambiguous images, and calibration."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from udskd.config.schema import STUDENTS
from udskd.data import EmbeddedSet
from udskd.results.plots import COLOURS, INK, STYLE, draw_band, save
from udskd.results.statistics import Floats
from udskd.study.measurements import BAYES, TEACHER
from udskd.study.measures import by_rank
from udskd.study.tables import Numbers

CURVES = {
    "ce": COLOURS["ce"],
    "kd": COLOURS["kd"],
    "udskd-entropy-confident": COLOURS["udskd"],
    "cud": COLOURS["cud"],
    "variance": COLOURS["variance"],
}
"""The runs whose accuracy is drawn by decile, with their colours. Other weightings than the first differ too little."""
HEADING: Any = {"size": 11, "weight": "bold"}
MEASURES = {"entropy": "1 - H / log C", "max_prob": "largest p", "margin": "largest p minus the second"}
Weights = Mapping[str, Floats]


def draw_study(
    measured: Numbers,
    truth: Numbers,
    weights: tuple[Weights, Weights],
    models: Mapping[str, str],
    images: EmbeddedSet,
    path: Path,
) -> None:
    """Write the figure. weights: by weighting, those of the first seed's teacher and those of the true posterior."""
    heights = [3.4, 6.4, 1.8 + 0.28 * len(measured[f"calibration of {STUDENTS[0]}"])]
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12, sum(heights)))
        top, middle, bottom = figure.subfigures(3, 1, height_ratios=heights, squeeze=False)[:, 0]
        draw_weights(top, *weights, images)
        draw_accuracy(middle, measured, truth, models, images)
        draw_divergence(bottom, measured, models)
        save(figure, path)


def draw_weights(figure: SubFigure, teacher: Weights, truth: Weights, images: EmbeddedSet) -> None:
    """Draw a panel for each measure: weight against true entropy, for the teacher and for the true posterior."""
    figure.suptitle("does the teacher's certainty follow the true uncertainty?", **HEADING)
    panels = {kind: name for kind in MEASURES if (name := f"{kind}, confident") in teacher}
    axes = figure.subplots(1, max(1, len(panels)), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (kind, name) in zip(axes, panels.items(), strict=False):
        for weights, colour, label in ((truth, INK, "true posterior"), (teacher, COLOURS["udskd"], "teacher, seed 0")):
            axis.plot(images.entropy, weights[name], "o", color=colour, alpha=0.35, markersize=3, markeredgewidth=0)
            axis.plot([], [], "o", color=colour, markersize=5, label=label)
        axis.set_title(f"{kind}: {MEASURES[kind]}")
        axis.set_xlabel("true entropy of the image (nats)")
        axis.legend(loc="lower left", fontsize=9, frameon=True, edgecolor="none")
    axes[0].set_ylabel("weight, trust in the confident")


def draw_accuracy(
    figure: SubFigure, measured: Numbers, truth: Numbers, models: Mapping[str, str], images: EmbeddedSet
) -> None:
    """Draw for each student the expected accuracy by decile of the true entropy, and below it the distance to the
    Bayes-optimal accuracy."""
    figure.suptitle("how accurate are the networks on clear and on ambiguous images?", **HEADING)
    groups = by_rank(images.entropy)
    x = [float(images.entropy[group].mean()) for group in groups]
    numbers = [str(number) for number in range(1, len(groups) + 1)]
    best = np.array([truth[f"expected top-1 of {BAYES}"][BAYES][number][0] for number in numbers])
    axes = figure.subplots(2, len(STUDENTS), sharex=True, sharey="row")
    for (above, below), role in zip(axes.T, STUDENTS, strict=True):
        for axis, baseline in ((above, np.zeros_like(best)), (below, best)):
            axis.plot(x, best - baseline, ":", color=INK, linewidth=1.5, label=BAYES)
            for name, colour in CURVES.items():
                if row := measured[f"expected top-1 of {role}"].get(name):
                    values = np.array([row[number] for number in numbers]).T - baseline
                    draw_band(axis, x, values, colour, marker="o", markersize=4, linewidth=1.5, label=name)
        above.set_title(f"{role}: {models[role]}")
        below.set_xlabel("mean true entropy of the decile (nats)")
    axes[0][0].set_ylabel("true probability of the\npredicted class (%)")
    axes[1][0].set_ylabel("the same, minus\nBayes-optimal")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=1 + len(CURVES))


def draw_divergence(figure: SubFigure, measured: Numbers, models: Mapping[str, str]) -> None:
    """Draw a panel for each student: the mean KL divergence of every run from the truth, and that of the teachers."""
    figure.suptitle("how far from the true posterior?", **HEADING)
    axes = figure.subplots(1, len(STUDENTS), sharey=True)
    for axis, role in zip(axes, STUDENTS, strict=True):
        rows = measured[f"calibration of {role}"]
        for place, (name, row) in enumerate(rows.items()):
            colour = CURVES.get(name, COLOURS[name.partition("-")[0]])  # variants have the colour of their method
            spread = statistics.stdev(row["kl"]) if len(row["kl"]) > 1 else None
            mean = statistics.fmean(row["kl"])
            axis.errorbar(mean, place, xerr=spread, fmt="o", color=colour, markersize=6, capsize=3)
        draw_teachers(axis, measured[f"calibration of {TEACHER}"])
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.margins(x=0.08)
        axis.set_title(f"{role}: {models[role]}")
        axis.set_xlabel("mean KL(true p ‖ predicted p) in nats (lower is better)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def draw_teachers(axis: Axes, rows: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw a line at the mean KL divergence of each teacher."""
    for (name, row), style in zip(rows.items(), itertools.cycle(("--", ":", "-."))):
        mean = statistics.fmean(row["kl"])
        axis.axvline(mean, color=INK, linestyle=style, linewidth=1.2, label=f"{name} {mean:.3f}")
