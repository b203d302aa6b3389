"""Measures of predictions p [N, C] against the true posterior [N, C] of the same images, in float64.

Measures against the true posterior contain no noise of the labels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from udskd.results.statistics import Floats, kl_divergence
from udskd.training.evaluation.metrics import BINS, bin_of

Indices = npt.NDArray[np.intp]

LEAST = 2.0**-25
"""Half of the smallest positive float16: float16 rounds everything up to it to 0."""


def restored(stored: npt.NDArray[np.float16]) -> Floats:
    """Probabilities [N, C] from float16 [N, C], normalised so that each row adds up to 1.

    Zeros become LEAST, since KL(true ‖ 0) is infinite. For a class whose probability p float16 rounded to 0, the KL
    divergence comes out too small by true p·log(LEAST / p).
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
    """The true probability of the predicted class, [N]: the expected frequency with which it is the label."""
    result: Floats = np.take_along_axis(true, p.argmax(-1)[:, None], -1)[:, 0]
    return result


def hits(labels: npt.NDArray[np.int64], p: Floats) -> Floats:
    """1 where the predicted class is the label, else 0, [N]; of equally probable classes the first is predicted."""
    result: Floats = (p.argmax(-1) == labels).astype(np.float64)
    return result


def calibration(true: Floats, p: Floats) -> dict[str, float]:
    """The distance of predictions from the true posterior: five means over images, which are 0 for the true posterior.

    "kl": KL(true ‖ p), nats. "confidence_gap": |confidence - t|, with confidence = max_c p_c and t the true
    probability of that class. "over_confidence": confidence - t, positive where p is over-confident. "ece":
    Σ_b (n_b / n)·|mean of t - mean of confidence| over the bins of the ECE (udskd.training.evaluation.metrics), with t
    in place of the accuracy. "total_variation": Σ_c |p_c - true_c| / 2.
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
    """Indices of N values in groups from the smallest values to the largest; equal values are ordered by index.

    If N is not a multiple of the number of groups, the first groups have one element more.
    """
    return np.array_split(np.argsort(values, kind="stable"), groups)


def group_means(values: Floats, groups: list[Indices]) -> dict[str, float]:
    """The mean of values [N] in each group, by the group's number ("1" is the first), and the mean of "all"."""
    means = {str(number): float(values[group].mean()) for number, group in enumerate(groups, 1)}
    return {**means, "all": float(values.mean())}
