"""What the study measures, in float64: predictions p [N, C] against the true posterior [N, C] of the same images.

Nothing here knows of runs or networks. No label's noise enters where the truth stands in for the labels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from udskd.results.statistics import Floats, kl_divergence
from udskd.training.evaluation.metrics import BINS, bin_of

Indices = npt.NDArray[np.intp]

LEAST = 2.0**-25
"""Half of float16's smallest number: everything below it was rounded to 0."""


def restored(stored: npt.NDArray[np.float16]) -> Floats:
    """Probabilities [N, C] out of float16 [N, C]; each row adds up to 1 again.

    What float16 rounded to 0 counts as LEAST, since a divergence from the truth would be infinite there. It comes out
    too small by true p·log(LEAST / p) of such a class, with p what the network said.
    """
    p = np.maximum(stored.astype(np.float64), LEAST)
    rows: Floats = p / p.sum(-1, keepdims=True)
    return rows


def divergence(true: Floats, p: Floats) -> Floats:
    """KL(true ‖ p) in nats, [..., C] -> [...]; +inf where the truth has mass in a class that p excludes."""
    with np.errstate(divide="ignore"):
        return kl_divergence(true, np.log(p))


def total_variation(true: Floats, p: Floats) -> Floats:
    """Σ_c |p_c - true_c| / 2 of each row, [..., C] -> [...] in [0, 1]."""
    result: Floats = np.abs(p - true).sum(-1) / 2
    return result


def expected_hits(true: Floats, p: Floats) -> Floats:
    """The true probability of the class that p takes for the most probable, [N]: how often a label would agree."""
    result: Floats = np.take_along_axis(true, p.argmax(-1)[:, None], -1)[:, 0]
    return result


def hits(labels: npt.NDArray[np.int64], p: Floats) -> Floats:
    """1 where the most probable class is the label, else 0, [N]; of equally probable classes the first counts."""
    result: Floats = (p.argmax(-1) == labels).astype(np.float64)
    return result


def calibration(true: Floats, p: Floats) -> dict[str, float]:
    """How far predictions are from the truth, in five numbers that are 0 for the true posterior; means over images.

    "kl": KL(true ‖ p), nats. "confidence_gap": |confidence - t|, with confidence = max_c p_c and t the true
    probability of that same class. "over_confidence": confidence - t, positive where p claims too much. "ece":
    Σ_b (n_b / n)·|mean of t - mean of confidence| over the bins of the usual ECE
    (udskd.training.evaluation.metrics), with t in place of whether the label agrees. "total_variation":
    Σ_c |p_c - true_c| / 2.
    """
    confidence = p.max(-1)
    excess = confidence - expected_hits(true, p)
    return {
        "kl": float(divergence(true, p).mean()),
        "confidence_gap": float(np.abs(excess).mean()),
        "over_confidence": float(excess.mean()),
        "ece": float(np.abs(np.bincount(bin_of(confidence), excess, BINS)).sum() / len(p)),
        "total_variation": float(total_variation(true, p).mean()),
    }


def by_rank(values: Floats, groups: int = 10) -> list[Indices]:
    """Indices of N values in groups from the smallest values to the largest; of equal values the first index is first.

    The groups' sizes are equal where N can be divided so, else the first ones have one more.
    """
    return np.array_split(np.argsort(values, kind="stable"), groups)


def group_means(values: Floats, groups: list[Indices]) -> dict[str, float]:
    """The mean of values [N] in each group, by the group's number from "1" on, and of "all"."""
    means = {str(number): float(values[group].mean()) for number, group in enumerate(groups, 1)}
    return {**means, "all": float(values.mean())}
