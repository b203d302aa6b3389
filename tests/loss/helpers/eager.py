"""The loss as a good PyTorch user would write it: the oracle in float64, the yardstick for errors, and the baseline of
the benchmarks.

Independent of udskd/ on purpose. It covers finite logits; what happens at -inf and NaN is tested case by case.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Output(NamedTuple):
    loss: Tensor
    ce_a: Tensor
    ce_b: Tensor
    kd_a: Tensor
    kd_b: Tensor
    peer_a: Tensor
    peer_b: Tensor
    weight: Tensor
    entropy: Tensor


def log_probs(logits: Tensor | None, temperature: float) -> Tensor | None:
    return None if logits is None else F.log_softmax(logits / temperature, -1)


def row_kl(log_q: Tensor, log_p: Tensor, temperature: float) -> Tensor:
    """T^2 KL(p || q) of each row."""
    return temperature**2 * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def teacher_weight(teacher: Tensor, kind: str | Tensor, trust: str, temperature: float) -> tuple[Tensor, Tensor]:
    log_p = F.log_softmax(teacher / temperature, -1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1)
    if isinstance(kind, Tensor):
        return kind.to(entropy), entropy
    if kind == "none":
        return torch.ones_like(entropy), entropy
    if kind == "entropy":
        unsure = entropy / math.log(p.shape[-1])  # 1 - (1 - unsure) would lose the digits of a small entropy
        return (1 - unsure if trust == "confident" else unsure), entropy
    if kind == "max_prob":
        sure = p.amax(-1)
    else:
        first, second = p.topk(2, -1).values.unbind(-1)
        sure = first - second
    return (sure if trust == "confident" else 1 - sure), entropy


def on(coefficient: float | Tensor) -> bool:
    return isinstance(coefficient, Tensor) or coefficient != 0


def dual_student_loss(
    teacher: Tensor | None,
    student_a: Tensor,
    student_b: Tensor | None = None,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
    peer_temperature: float | None = None,
    ce_weight: float | Tensor = 1.0,
    kd_weight: float | Tensor = 0.9,
    peer_weight: float | Tensor = 0.5,
    uncertainty: str | Tensor = "entropy",
    trust: str = "confident",
    normalize_weights: bool = False,
    uncertainty_temperature: float = 1.0,
    detach_peer: bool = True,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Output:
    peer_temperature = peer_temperature or temperature
    zero = student_a.new_zeros(student_a.shape[0])
    live = torch.ones_like(zero, dtype=torch.bool)
    if target is not None and not target.is_floating_point():
        live = target != ignore_index
    ce_a = ce_b = kd_a = kd_b = peer_a = peer_b = zero
    if target is not None and on(ce_weight):
        ce_a = F.cross_entropy(
            student_a, target, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
        )
        if student_b is not None:
            ce_b = F.cross_entropy(
                student_b, target, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
            )
    weight, entropy = torch.ones_like(zero), zero
    log_t, log_a, log_b = (log_probs(x, temperature) for x in (teacher, student_a, student_b))
    if teacher is not None:
        with torch.no_grad():
            weight, entropy = teacher_weight(teacher, uncertainty, trust, uncertainty_temperature)
            if normalize_weights:
                weight = weight / weight[live].mean()
    if log_t is not None and on(kd_weight):
        kd_a = weight * row_kl(log_a, log_t, temperature)
        kd_b = zero if log_b is None else weight * row_kl(log_b, log_t, temperature)
    if student_b is not None and on(peer_weight):
        if peer_temperature != temperature:
            log_a, log_b = log_probs(student_a, peer_temperature), log_probs(student_b, peer_temperature)
        from_a, from_b = (log_a.detach(), log_b.detach()) if detach_peer else (log_a, log_b)
        peer_a, peer_b = row_kl(log_a, from_b, peer_temperature), row_kl(log_b, from_a, peer_temperature)
    rows = ce_weight * (ce_a + ce_b) + kd_weight * (kd_a + kd_b) + peer_weight * (peer_a + peer_b)
    terms = [torch.where(live, x, 0.0) for x in (rows, ce_a, ce_b, kd_a, kd_b, peer_a, peer_b)]
    if reduction != "none":
        terms = [x.sum() / (live.sum() if reduction == "mean" else 1) for x in terms]
    return Output(*terms, torch.where(live, weight, 0.0), torch.where(live, entropy, 0.0))
