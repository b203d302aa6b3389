"""Accuracy and calibration of one network over a set of images, summed on the device and read back once."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 15


class Metrics:
    """Sums over batches; result() is the only host synchronisation.

    top1 and top5 are in percent. nll is in nats. ece is Σ_b (n_b/n)·|accuracy_b - confidence_b| over 15 equal bins of
    the largest probability (Guo et al. 2017), a fraction in [0, 1]. brier is Σ_c (p_c - y_c)², meaned over images, in
    [0, 2] (Brier 1950).
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(5, dtype=torch.float64, device=device)  # images, top1, top5, nll, brier
        self._bins = torch.zeros(2, BINS, dtype=torch.float64, device=device)  # confidence, correct

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits [B, C] with labels int64 [B]."""
        log_p = torch.log_softmax(logits.double(), -1)
        p = log_p.exp()
        hits = log_p.topk(min(5, log_p.shape[-1]), -1).indices == labels.unsqueeze(-1)
        own = labels.unsqueeze(-1)
        brier = p.square().sum(-1) - 2 * p.gather(-1, own).squeeze(-1) + 1
        ones = torch.ones_like(brier)
        rows = torch.stack(
            [ones, hits[:, 0].double(), hits.any(-1).double(), -log_p.gather(-1, own).squeeze(-1), brier]
        )
        self._sums += rows.sum(-1)
        self._bins += torch.stack([p.amax(-1), rows[1]]) @ bin_members(p.amax(-1))

    def result(self) -> dict[str, float]:
        """top1, top5 (percent), nll, ece, brier; NaN where there were no images."""
        count, top1, top5, nll, brier, *bins = torch.cat([self._sums, self._bins.flatten()]).tolist()
        n = count or float("nan")
        ece = sum(abs(correct - confidence) for confidence, correct in zip(bins[:BINS], bins[BINS:], strict=True)) / n
        return {"top1": 100 * top1 / n, "top5": 100 * top5 / n, "nll": nll / n, "ece": ece, "brier": brier / n}


def bin_members(confidence: Tensor) -> Tensor:
    """One-hot [B, BINS] of the bin [k/15, (k+1)/15) that each confidence falls into; 1.0 belongs to the last."""
    index = (confidence * BINS).long().clamp(max=BINS - 1)
    return (index.unsqueeze(-1) == torch.arange(BINS, device=confidence.device)).double()
