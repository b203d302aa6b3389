"""The loss in plain PyTorch: any device, any dtype, derivatives of any order by autograd. The compiled backends are
tested against it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from udskd.loss.options import LossOptions
from udskd.loss.uncertainty import certainty, entropy, kl_divergence, normalize


class Outputs(NamedTuple):
    """What every backend returns."""

    loss: Tensor
    """A scalar, or [B] if it is not reduced."""
    components: Tensor
    """ce_a, ce_b, kd_a, kd_b, peer_a, peer_b: [6] or [6, B]."""
    weight: Tensor
    """[B]."""
    entropy: Tensor
    """[B], in nats."""


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
    options: LossOptions,
) -> Outputs:
    """The loss of checked logits [B, C]; see udskd.dual_student_loss."""
    dtype = torch.float64 if torch.float64 in _dtypes(teacher, student_a, student_b) else torch.float32
    live = _live(student_a, target, options.ignore_index)
    t, b = _logits(teacher, live, dtype), _logits(student_b, live, dtype)
    a = torch.where(live.unsqueeze(-1), student_a.to(dtype), 0.0)
    if target is not None and not target.is_floating_point():
        target = torch.where(live, target, 0)
    weight, spread = _weights(t, a, live, options)
    zero = torch.zeros_like(a[:, 0])
    coefficients = [x.to(dtype) if isinstance(x, Tensor) else x for x in options.coefficients]
    pairs = _terms(t, a, b, target, weight, options)
    components = torch.where(live, torch.stack([zero if x is None else x for pair in pairs for x in pair]), 0.0)
    # zeros that depend on every input, so that each has a gradient
    rows = sum((x[:, :0].sum(-1) for x in (t, a, b) if x is not None), zero)
    for coefficient, pair, of_a, of_b in zip(coefficients, pairs, components[::2], components[1::2], strict=True):
        if pair[0] is not None:
            rows = rows + torch.where(live, coefficient * (of_a + of_b), 0.0)
    if options.reduction != "none":
        count = live.sum() if options.reduction == "mean" else 1
        rows, components = rows.sum() / count, components.sum(-1) / count
    return Outputs(rows, components.detach(), weight.detach(), spread.detach())


def _dtypes(*tensors: Tensor | None) -> set[torch.dtype]:
    return {x.dtype for x in tensors if x is not None}


def _live(student_a: Tensor, target: Tensor | None, ignore_index: int) -> Tensor:
    """bool [B]: the rows that are not ignored."""
    if target is None or target.is_floating_point():
        return student_a.new_ones(len(student_a), dtype=torch.bool)
    return target != ignore_index


def _logits(x: Tensor | None, live: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Logits in the dtype of the arithmetic, 0 in ignored rows, whatever these hold."""
    return None if x is None else torch.where(live.unsqueeze(-1), x.to(dtype), 0.0)


Pair = tuple[Tensor | None, Tensor | None]
"""A term of student_a and of student_b, [B]; None for what is not computed."""


def _terms(
    t: Tensor | None, a: Tensor, b: Tensor | None, target: Tensor | None, weight: Tensor, options: LossOptions
) -> tuple[Pair, Pair, Pair]:
    """The terms without their coefficients: cross-entropy, distillation, peers.

    A term whose coefficient is the float 0 is not computed: an infinite term times 0 is 0, not NaN.
    """
    ce: Pair = (None, None)
    kd: Pair = (None, None)
    peer: Pair = (None, None)
    if target is not None and _on(options.ce_weight):
        ce_a, ce_b = (None if x is None else cross_entropy(x, target, options.label_smoothing) for x in (a, b))
        ce = ce_a, ce_b
    if t is not None and _on(options.kd_weight):
        log_t, scale = torch.log_softmax(t / options.temperature, -1), options.temperature**2 * weight
        kd_a, kd_b = (None if x is None else scale * _kl_to(log_t, x, options.temperature) for x in (a, b))
        kd = kd_a, kd_b
    if b is not None and _on(options.peer_weight):
        log_a, log_b = (torch.log_softmax(x / options.tau, -1) for x in (a, b))
        from_a, from_b = (log_a.detach(), log_b.detach()) if options.detach_peer else (log_a, log_b)
        peer_a, peer_b = (options.tau**2 * k for k in (kl_divergence(from_b, log_a), kl_divergence(from_a, log_b)))
        peer = peer_a, peer_b
    return ce, kd, peer


def _on(coefficient: float | Tensor) -> bool:
    return isinstance(coefficient, Tensor) or coefficient != 0


def _kl_to(log_t: Tensor, student: Tensor, temperature: float) -> Tensor:
    return kl_divergence(log_t, torch.log_softmax(student / temperature, -1))


@torch.no_grad()
def _weights(teacher: Tensor | None, like: Tensor, live: Tensor, options: LossOptions) -> tuple[Tensor, Tensor]:
    """The weight and the teacher's entropy of each row, [B]; both 0 in ignored rows."""
    if teacher is None:
        return torch.where(live, torch.ones_like(like[:, 0]), 0.0), torch.zeros_like(like[:, 0])
    kind, temperature = options.uncertainty, options.uncertainty_temperature
    given = isinstance(kind, Tensor)
    weight = kind.to(like.dtype) if given else certainty(teacher, kind, temperature, options.trust)  # type: ignore[union-attr, arg-type]
    if options.normalize_weights:
        weight = normalize(weight, live)
    return torch.where(live, weight, 0.0), torch.where(live, entropy(teacher, temperature), 0.0)
