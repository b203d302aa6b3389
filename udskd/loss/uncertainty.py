"""How sure a network is of each image: entropy, and the weights in [0, 1] made from it."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Uncertainty = Literal["entropy", "max_prob", "margin", "none"]
Trust = Literal["confident", "uncertain"]


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of softmax(logits / temperature) in nats, [..., C] -> [...]; a class at -inf contributes nothing."""
    log_p = torch.log_softmax(logits / temperature, -1)
    p = log_p.exp()
    return -torch.where(p == 0, 0.0, p * log_p).sum(-1)


def certainty(
    logits: Tensor, kind: Uncertainty = "entropy", temperature: float = 1.0, trust: Trust = "confident"
) -> Tensor:
    """How sure softmax(logits / temperature) is, [..., C] -> [...] in [0, 1]; with trust "uncertain", how unsure.

    "entropy": 1 - H / log C [paper: UDSKD]. "max_prob": the largest probability. "margin": the largest less the second.
    "none": 1, whatever is trusted. How unsure is 1 - how sure; H / log C as it is, which keeps its digits where it is
    small.
    """
    if kind == "none":
        return torch.ones_like(logits[..., 0])
    if kind == "entropy":
        unsure = (entropy(logits, temperature) / math.log(logits.shape[-1])).clamp(0, 1)
        return unsure if trust == "uncertain" else 1 - unsure
    top = torch.softmax(logits / temperature, -1).topk(2, -1).values
    sure = (top[..., 0] if kind == "max_prob" else top[..., 0] - top[..., 1]).clamp(0, 1)
    return 1 - sure if trust == "uncertain" else sure


def normalize(weight: Tensor, live: Tensor) -> Tensor:
    """Divides weights [B] by their mean over the live rows; rows that are NaN stay so and do not spoil the others.

    Where every weight is 0 there is nothing to divide by, and they stay 0.
    """
    counted = live & ~weight.isnan()
    mean = torch.where(counted, weight, 0.0).sum() / counted.sum()
    return torch.where(mean > 0, weight / mean, weight)
