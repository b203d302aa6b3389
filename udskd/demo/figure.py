"""The figure of `udskd demo`: accuracy by method, and the teacher's weights against the images' true entropies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from udskd.config.schema import STUDENTS
from udskd.data import EmbeddedSet
from udskd.results.plots import COLOURS, INK, STYLE, save
from udskd.results.runs import Group

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TeacherUncertainty:
    """The true entropy of each of N images, in nats, and the weight that a teacher's certainty gives it: [N] each."""

    images: EmbeddedSet
    true_entropy: Floats
    weight: Floats


def draw(groups: Sequence[Group], teacher: TeacherUncertainty, best: float, path: Path) -> None:
    """Draw example images, the accuracy of each method, and the teacher's weights against the true entropies."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(11, 5.6))
        top, bottom = figure.subfigures(2, 1, height_ratios=[1, 2.5], squeeze=False)[:, 0]
        images(top, teacher)
        left, right = bottom.subplots(1, 2)
        accuracies(left, groups, best)
        weights(right, teacher)
        save(figure, path)


def images(figure: SubFigure, teacher: TeacherUncertainty, count: int = 10) -> None:
    """Draw images from the clearest to the most ambiguous, with their true entropy and the teacher's weight."""
    order = np.argsort(teacher.true_entropy)
    picked = order[np.linspace(0, len(order) - 1, count).round().astype(int)]
    figure.suptitle(
        "from clear to ambiguous: true entropy H, and the weight w that the teacher's certainty gives", size=10
    )
    for axis, index in zip(figure.subplots(1, count, squeeze=False)[0], picked, strict=True):
        axis.imshow(teacher.images.pixels(int(index)), interpolation="nearest")
        axis.set_xlabel(f"H {teacher.true_entropy[index]:.2f}\nw {teacher.weight[index]:.2f}", size=9)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.grid(visible=False)


def accuracies(axis: Axes, groups: Sequence[Group], best: float) -> None:
    """Draw the top-1 accuracy of both students for each method, with the teacher's and the best possible one."""
    for role, marker, shift in zip(STUDENTS, "os", (-0.12, 0.12), strict=True):
        for row, group in enumerate(groups):
            value = group.values(role, "top1")[0]
            axis.plot(value, row + shift, marker, color=COLOURS[group.method], markersize=9)
            box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
            axis.annotate(
                f"{value:.1f}", (value, row + shift), (9, 0), textcoords="offset points", va="center", size=9, bbox=box
            )
        axis.plot([], [], marker, color=INK, markersize=7, label=groups[0].model(role))
    teachers = [run.summary["teacher"] for group in groups for run in group.runs]
    teacher_top1 = next(metrics["top1"] for metrics in teachers if metrics)
    axis.axvline(teacher_top1, color=INK, linestyle="--", linewidth=1.2, label=f"teacher {teacher_top1:.1f}")
    axis.axvline(best, color=INK, linestyle=":", linewidth=1.2, label=f"best possible {best:.1f}")
    axis.set_yticks(range(len(groups)), [group.label for group in groups])
    axis.set_ylim(len(groups) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")
    axis.margins(x=0.12)
    axis.set_title("the ladder")
    axis.set_xlabel("top-1 accuracy (%)")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=9)


def weights(axis: Axes, teacher: TeacherUncertainty) -> None:
    """Draw the teacher's weight of each image against its true entropy; the line is that of a perfect teacher."""
    classes, limit = len(teacher.images.classes), float(teacher.true_entropy.max())
    axis.plot(
        teacher.true_entropy, teacher.weight, "o", color=COLOURS["udskd"], alpha=0.25, markersize=4, markeredgewidth=0
    )
    axis.plot(
        [0, limit],
        [1, 1 - limit / np.log(classes)],
        color=INK,
        linewidth=1.5,
        label="a teacher that knows p(class | image)",
    )
    axis.set_title("is the teacher's certainty right?")
    axis.set_xlabel("true entropy of the image (nats)")
    axis.set_ylabel("weight w = 1 - H / log C")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=9)
