"""Statistics of predictions, in NumPy and float64, so that reading finished runs needs no torch.

udskd.loss.uncertainty has the entropy of logits and the KL divergence in torch. EmbeddedSet.entropy repeats one
formula, since udskd.data is a layer below.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def log_probabilities(p: Floats) -> Floats:
    """log p, and 0 instead of -inf where p is 0, so that p·log p is 0 there."""
    log_p: Floats = np.log(np.where(p > 0, p, 1.0))
    return log_p


def entropy(p: Floats, log_p: Floats | None = None) -> Floats:
    """Entropy in nats, [..., C] -> [...]; a class without mass contributes nothing.

    log_p: log p where it is known more exactly than p, finite.
    """
    result: Floats = -(p * (log_probabilities(p) if log_p is None else log_p)).sum(-1)
    return result


def kl_divergence(p: Floats, log_q: Floats) -> Floats:
    """KL(p ‖ q) in nats, [..., C] -> [...]; +inf where p has mass in a class that q excludes."""
    result: Floats = (p * (log_probabilities(p) - np.where(p > 0, log_q, 0.0))).sum(-1)
    return result


def spearman(x: Floats, y: Floats) -> float:
    """Spearman's rank correlation of two samples [N]; ties share their mean rank; 0 if a sample is constant."""
    a, b = _ranks(x), _ranks(y)
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(x: Floats) -> Floats:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts).astype(np.float64)
    mean_rank: Floats = (last - (counts - 1) / 2)[inverse]
    return mean_rank


def disagreement(predictions: Sequence[Floats]) -> float:
    """How much independently trained students differ: the variance over students of p(class | image), averaged over
    images and classes, from [N, C] of each of two or more students.

    This is the inter-student uncertainty of "How Is Uncertainty Propagated in Knowledge Distillation?"
    (arXiv:2601.18909). The variance is the unbiased one (n - 1) [reconstructed: the published code divides by n, which
    makes a few students look more alike than they are].
    """
    if len(predictions) < 2:
        raise ValueError(f"predictions must be of at least 2 students, got {len(predictions)}")
    return float(np.var(np.stack(predictions), axis=0, ddof=1).mean())
