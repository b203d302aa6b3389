"""The loss in plain PyTorch: any device, any dtype, differentiable by autograd as often as you like. The compiled
backends are tested against it."""

from __future__ import annotations

import torch
from torch import Tensor

from udskd.loss.uncertainty import certainty, entropy, normalize

Terms = tuple[Tensor, Tensor, Tensor, Tensor]


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities [B, C] -> [B]; classes without mass in p contribute 0, +inf where only q has
    none."""
    p = log_p.exp()
    return (p * torch.where(p == 0, 0.0, log_p - log_q)).sum(-1)


def cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy [B] of logits [B, C] with labels [B] or distributions [B, C]; a label outside [0, C) makes its row
    NaN."""
    log_p = torch.log_softmax(logits, -1)
    classes = logits.shape[-1]
    if target.is_floating_point():
        y = target.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / classes
        return -(y * torch.where(y == 0, 0.0, log_p)).sum(-1)
    known = (target >= 0) & (target < classes)
    nll = -log_p.gather(-1, target.clamp(0, classes - 1).unsqueeze(-1)).squeeze(-1)
    if label_smoothing:
        nll = (1 - label_smoothing) * nll - label_smoothing / classes * log_p.sum(-1)
    return torch.where(known, nll, torch.nan)


def dual_student_loss(
    teacher: Tensor | None,
    student_a: Tensor,
    student_b: Tensor | None,
    target: Tensor | None,
    *,
    temperature: float,
    peer_temperature: float,
    ce_weight: float | Tensor,
    kd_weight: float | Tensor,
    peer_weight: float | Tensor,
    uncertainty: str | Tensor,
    trust: str,
    normalize_weights: bool,
    uncertainty_temperature: float,
    detach_peer: bool,
    label_smoothing: float,
    ignore_index: int,
    reduction: str,
) -> Terms:
    """The loss of checked, flattened arguments: (loss, components [6] or [6, B], weight [B], entropy [B]), see
    udskd.dual_student_loss."""
    dtype = torch.float64 if torch.float64 in _dtypes(teacher, student_a, student_b) else torch.float32
    hard = target is not None and not target.is_floating_point()
    live = (
        (target != ignore_index)
        if hard and target is not None
        else student_a.new_ones(len(student_a), dtype=torch.bool)
    )
    t, a, b = (
        None if x is None else torch.where(live.unsqueeze(-1), x.to(dtype), 0.0)
        for x in (teacher, student_a, student_b)
    )
    assert a is not None
    if hard and target is not None:
        target = torch.where(live, target, 0)
    ce_weight, kd_weight, peer_weight = (_coefficient(x, dtype) for x in (ce_weight, kd_weight, peer_weight))
    weight, spread = _weights(t, a, live, uncertainty, trust, normalize_weights, uncertainty_temperature)

    zero = torch.zeros_like(a[:, 0])
    ce_a = ce_b = kd_a = kd_b = peer_a = peer_b = zero
    if target is not None and _on(ce_weight):
        ce_a = cross_entropy(a, target, label_smoothing)
        ce_b = zero if b is None else cross_entropy(b, target, label_smoothing)
    if t is not None and _on(kd_weight):
        log_t = torch.log_softmax(t / temperature, -1)
        kd_a, kd_b = (zero if x is None else temperature**2 * weight * _kl_to(log_t, x, temperature) for x in (a, b))
    if b is not None and _on(peer_weight):
        log_a, log_b = (torch.log_softmax(x / peer_temperature, -1) for x in (a, b))
        from_a, from_b = (log_a.detach(), log_b.detach()) if detach_peer else (log_a, log_b)
        peer_a, peer_b = (peer_temperature**2 * k for k in (kl_divergence(from_b, log_a), kl_divergence(from_a, log_b)))

    components = torch.where(live, torch.stack([ce_a, ce_b, kd_a, kd_b, peer_a, peer_b]), 0.0)
    rows = sum(
        (x[:, :0].sum(-1) for x in (t, a, b) if x is not None), zero
    )  # zeros that reach every input, so that each has a gradient
    terms = ((ce_weight, target, 0), (kd_weight, t, 2), (peer_weight, b, 4))
    for coefficient, needed, first in terms:
        if needed is not None and _on(coefficient):
            rows = rows + torch.where(live, coefficient * (components[first] + components[first + 1]), 0.0)
    if reduction != "none":
        count = live.sum() if reduction == "mean" else 1
        rows, components = rows.sum() / count, components.sum(-1) / count
    return rows, components.detach(), weight.detach(), spread.detach()


def _dtypes(*tensors: Tensor | None) -> set[torch.dtype]:
    return {x.dtype for x in tensors if x is not None}


def _on(coefficient: float | Tensor) -> bool:
    """A term whose weight is the float 0 is not computed at all, so that an infinite term times 0 is 0 and not NaN."""
    return isinstance(coefficient, Tensor) or coefficient != 0


def _coefficient(x: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """A coefficient in the arithmetic's dtype."""
    return x.to(dtype) if isinstance(x, Tensor) else x


def _kl_to(log_t: Tensor, student: Tensor, temperature: float) -> Tensor:
    return kl_divergence(log_t, torch.log_softmax(student / temperature, -1))


@torch.no_grad()
def _weights(
    teacher: Tensor | None,
    like: Tensor,
    live: Tensor,
    kind: str | Tensor,
    trust: str,
    normalized: bool,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Each row's weight and teacher entropy [B]; both 0 in ignored rows."""
    if teacher is None:
        return torch.where(live, torch.ones_like(like[:, 0]), 0.0), torch.zeros_like(like[:, 0])
    given = isinstance(kind, Tensor)
    weight = kind.to(like.dtype) if given else certainty(teacher, kind, temperature, trust)  # type: ignore[union-attr, arg-type]
    if normalized:
        weight = normalize(weight, live)
    return torch.where(live, weight, 0.0), torch.where(live, entropy(teacher, temperature), 0.0)
