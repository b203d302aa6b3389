"""Accuracy and calibration of a network over a set of images: computed per image on the device, read back once.

Sums over images are taken at the end, in the images' order, so that the result depends neither on the batches nor on
the ranks that evaluated them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from udskd.results.statistics import Floats, entropy, kl_divergence, spearman

BINS = 15
"""The number of bins of the expected calibration error."""
COLUMNS = ("top1", "top5", "nll", "brier", "confidence", "entropy", "predicted")
"""The metrics of one image. "predicted" is the number of the most probable class."""


class Metrics:
    """Collects the metrics of every image on the device. Only table() synchronises with the host."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits [B, C] with labels int64 [B]."""
        log_p = torch.log_softmax(logits.double(), -1)
        p, own = log_p.exp(), labels.unsqueeze(-1)
        best = log_p.topk(min(5, log_p.shape[-1]), -1).indices
        hits = best == own
        brier = p.square().sum(-1) - 2 * p.gather(-1, own).squeeze(-1) + 1
        # PyTorch's entropy of probabilities; udskd.loss.uncertainty.entropy would compute log_softmax again.
        nll, entropies = -log_p.gather(-1, own).squeeze(-1), torch.special.entr(p).sum(-1)
        columns = [hits[:, 0].double(), hits.any(-1).double(), nll, brier, p.amax(-1), entropies]
        columns.append(best[:, 0].double())
        self._parts.append(torch.stack(columns, -1))

    def table(self) -> Floats:
        """COLUMNS of every image so far, [N, 7], float64."""
        table: Floats = torch.cat(self._parts).cpu().numpy() if self._parts else np.empty((0, len(COLUMNS)))
        return table


def summarise(table: Floats) -> dict[str, float]:
    """Means over images [N, COLUMNS]: top1, top5 (percent), nll, entropy (nats), ece, brier; NaN without images.

    ece is Σ_b (n_b/n)·|accuracy_b - confidence_b| over BINS equal bins of the largest probability (Guo et al. 2017), a
    fraction in [0, 1]. brier is the mean of Σ_c (p_c - y_c)², in [0, 2] (Brier 1950). entropy is the predictions', the
    intra-student uncertainty of arXiv:2601.18909; entropy_right and entropy_wrong are its means over the images that
    the network classifies correctly and wrongly, where there are any.
    """
    n = len(table)
    if n == 0:
        return dict.fromkeys(("top1", "top5", "nll", "ece", "brier", "entropy"), float("nan"))
    top1, top5, nll, brier, confidence, entropies, _ = np.ascontiguousarray(table.T)
    means = {"top1": 100 * top1.mean(), "top5": 100 * top5.mean(), "nll": nll.mean()}
    gaps = np.bincount(bin_of(confidence), top1 - confidence, BINS)
    rest = {"ece": np.abs(gaps).sum() / n, "brier": brier.mean(), "entropy": entropies.mean()}
    parts = {"entropy_right": entropies[top1 == 1], "entropy_wrong": entropies[top1 == 0]}
    rest |= {name: values.mean() for name, values in parts.items() if values.size}
    return {name: float(value) for name, value in {**means, **rest}.items()}


def bin_of(confidence: Floats) -> npt.NDArray[np.int64]:
    """The bin k, [k/BINS, (k+1)/BINS), of each confidence; 1.0 belongs to the last bin."""
    with np.errstate(invalid="ignore"):  # the confidences of a diverged network are NaN
        index = np.nan_to_num(confidence * BINS).astype(np.int64)
    return np.clip(index, 0, BINS - 1)


def against_posterior(log_p: Floats, posterior: Floats) -> dict[str, float]:
    """How well predictions log_p [N, C] match the true posterior [N, C].

    entropy_corr: Spearman's correlation of the predictions' entropies with the true ones. posterior_kl: the mean of
    KL(true ‖ prediction) in nats.
    """
    predicted = entropy(np.exp(log_p), log_p)
    kl = kl_divergence(posterior, log_p)
    return {"entropy_corr": spearman(predicted, entropy(posterior)), "posterior_kl": float(kl.mean())}
