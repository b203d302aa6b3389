"""Accuracy and calibration of one network over a set of images: kept on the device, read back once.

What is summed is summed at the end, over all images in their order, so that the result does not depend on how they
were batched or shared between processes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
BINS = 15
COLUMNS = ("top1", "top5", "nll", "brier", "confidence", "entropy", "answer")


class Metrics:
    """What evaluation needs of every image. table() is the only host synchronisation."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits [B, C] with labels int64 [B]."""
        log_p = torch.log_softmax(logits.double(), -1)
        p, own = log_p.exp(), labels.unsqueeze(-1)
        best = log_p.topk(min(5, log_p.shape[-1]), -1).indices
        hits = best == own
        brier = p.square().sum(-1) - 2 * p.gather(-1, own).squeeze(-1) + 1
        nll, entropy = -log_p.gather(-1, own).squeeze(-1), torch.special.entr(p).sum(-1)
        columns = [hits[:, 0].double(), hits.any(-1).double(), nll, brier, p.amax(-1), entropy]
        columns.append(best[:, 0].double())
        self._parts.append(torch.stack(columns, -1))

    def table(self) -> Floats:
        """COLUMNS of every image so far, [N, 7]; "answer" is the number of the most probable class."""
        table: Floats = torch.cat(self._parts).cpu().numpy() if self._parts else np.empty((0, len(COLUMNS)))
        return table


def summarise(table: Floats) -> dict[str, float]:
    """top1 and top5 in percent, nll in nats, ece, brier, entropy in nats of images [N, COLUMNS]; NaN where there are
    none.

    ece is Σ_b (n_b/n)·|accuracy_b - confidence_b| over 15 equal bins of the largest probability (Guo et al. 2017), a
    fraction in [0, 1]. brier is Σ_c (p_c - y_c)², meaned over images, in [0, 2] (Brier 1950). entropy is that of the
    predictions, the uncertainty within one student of arXiv:2601.18909; entropy_right and entropy_wrong that of the
    images which the network has right and wrong, where there are such.
    """
    n = len(table)
    if n == 0:
        return dict.fromkeys(("top1", "top5", "nll", "ece", "brier", "entropy"), float("nan"))
    top1, top5, nll, brier, confidence, entropy, _ = np.ascontiguousarray(table.T)
    means = {"top1": 100 * top1.mean(), "top5": 100 * top5.mean(), "nll": nll.mean()}
    gaps = np.bincount(bin_of(confidence), top1 - confidence, BINS)
    rest = {"ece": np.abs(gaps).sum() / n, "brier": brier.mean(), "entropy": entropy.mean()}
    parts = {"entropy_right": entropy[top1 == 1], "entropy_wrong": entropy[top1 == 0]}
    rest |= {name: values.mean() for name, values in parts.items() if values.size}
    return {name: float(value) for name, value in {**means, **rest}.items()}


def bin_of(confidence: Floats) -> npt.NDArray[np.int64]:
    """The bin [k/15, (k+1)/15) that each confidence falls into; 1.0 belongs to the last."""
    with np.errstate(invalid="ignore"):  # of a network that has diverged
        index = np.nan_to_num(confidence * BINS).astype(np.int64)
    return np.clip(index, 0, BINS - 1)
