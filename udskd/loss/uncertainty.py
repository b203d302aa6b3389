"""Entropy, divergence, and the weights in [0, 1] that measure a network's certainty of each image."""

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


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats of log-probabilities, [..., C] -> [...]; a class without mass in p contributes 0, a class
    without mass in q alone +inf."""
    p = log_p.exp()
    return (p * torch.where(p == 0, 0.0, log_p - log_q)).sum(-1)


def certainty(
    logits: Tensor, kind: Uncertainty = "entropy", temperature: float = 1.0, trust: Trust = "confident"
) -> Tensor:
    """The certainty of softmax(logits / temperature), [..., C] -> [...] in [0, 1], or 1 - that for trust "uncertain".

    "entropy": 1 - H / log C [paper: UDSKD]. "max_prob": the largest probability. "margin": the largest probability less
    the second. "none": 1 for either trust. With trust "uncertain", H / log C is not computed as 1 - certainty, which
    would lose the digits of a small entropy.
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
    """Divides weights [B] by their mean over the live rows. NaN stays NaN and does not enter the mean; weights that are
    all 0 stay 0."""
    counted = live & ~weight.isnan()
    mean = torch.where(counted, weight, 0.0).sum() / counted.sum()
    return torch.where(mean > 0, weight / mean, weight)
