"""Distributions with less probability on wrong classes: "Trust the uncertain teacher: distilling dark knowledge via
calibrated uncertainty", 2026 (arXiv:2602.12687). Pure functions on any device; none of them reads a value on a GPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def clip_wrong_mass(p: Tensor, label: Tensor, *, eta: float, margin: float) -> Tensor:
    """Moves probability from the most probable class to the label, where these are two:

        δ = min(eta·p_top, margin·(p_top - p_label)),  q_top = p_top - δ,  q_label = p_label + δ

    and every other class keeps its probability [paper: wrong-mass clipping]. A third class may come out as the most
    probable. With margin = 1 and eta near 1 the two exchange their probabilities.

    Args:
        p: probabilities [..., C] of any floating dtype.
        label: int64 [...].
        eta: largest share of p_top that moves, above 0 and below 1.
        margin: largest share of the gap between the two that moves, above 0 and at most 1.

    Returns:
        q [..., C] in p's dtype. Rows in which no class is more probable than the label, which hold NaN, or whose label
        is no class (an ignored one, say) are p's own, bit by bit.

    Raises:
        ValueError: eta or margin is out of range, or label has the wrong type or shape.
    """
    if not 0 < eta < 1:
        raise ValueError(f"eta must be above 0 and below 1, got {eta}")
    if not 0 < margin <= 1:
        raise ValueError(f"margin must be above 0 and at most 1, got {margin}")
    index, known = label_index(label, p)
    top = p.argmax(-1, keepdim=True)
    p_label, p_top = at_least_float32(p.gather(-1, index)), at_least_float32(p.gather(-1, top))
    # the same as p_top - δ and p_label + δ, but nothing cancels where eta is close to 1
    less = torch.maximum((1 - eta) * p_top, (1 - margin) * p_top + margin * p_label)
    more = torch.minimum(p_label + eta * p_top, (1 - margin) * p_label + margin * p_top)
    clipped = p.scatter(-1, top, less.to(p.dtype)).scatter(-1, index, more.to(p.dtype))
    return torch.where(known & (p_label < p_top), clipped, p)


def bound_masses(p: Tensor, near: Tensor, wrong: Tensor, *, least: float, most: float) -> Tensor:
    """The distribution closest to p with enough probability on some classes and little enough on others:

        argmin KL(q ‖ p)  subject to  q(near) >= least,  q(wrong) <= most

    [paper: the bounds and this divergence; reconstructed: the closed form]. Within near, wrong and the rest, q keeps
    p's ratios, so only three masses are sought. Each bound that p breaks is met with equality; where meeting one alone
    meets the other as well, that one alone binds, else both do.

    Any least and most can be met together, also where least + most > 1 (then near's bound implies wrong's), but for
    two cases: near is empty and least > 0, or wrong holds every class and most < 1.

    A group that needs probability but has none (then the divergence is infinite for every q that keeps the bounds)
    shares it evenly: the limit for p with an equal, vanishing probability added to every class.

    Args:
        p: probabilities [..., C] of any floating dtype.
        near: bool [..., C], the classes that need probability.
        wrong: bool [..., C], the classes that may have little; none of them in near.
        least: smallest q(near), in [0, 1].
        most: largest q(wrong), in [0, 1].

    Returns:
        q [..., C] in p's dtype. Rows that keep both bounds are p's own, bit by bit; rows of NaN stay so.

    Raises:
        ValueError: least or most is out of range, a mask has the wrong type or shape, a class is in both masks, or
            the bounds cannot be met. (The last two only on the CPU: on other devices, where the host would have to
            wait for the values, such rows are NaN instead.)
    """
    for name, share in (("least", least), ("most", most)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {share}")
    for name, mask in (("near", near), ("wrong", wrong)):
        if mask.dtype != torch.bool or mask.shape != p.shape:
            raise ValueError(
                f"{name} must be bool of p's shape {list(p.shape)}, got {mask.dtype} of shape {list(mask.shape)}"
            )
    possible = _possible(near, wrong, least, most)
    wide = at_least_float32(p)
    log_p = wide.log()
    log_q = bound_logits(log_p, near, wrong, least=least, most=most)
    q = torch.where(log_q == log_p, wide, log_q.exp()).to(p.dtype)
    return torch.where(possible.unsqueeze(-1), q, torch.nan)


def bound_logits(logits: Tensor, near: Tensor, wrong: Tensor, *, least: float, most: float) -> Tensor:
    """As bound_masses, of logits [..., C] in float32 or float64, also where probabilities are too small for the dtype.

    Its arguments are not checked. Returns log q [..., C]; rows that keep both bounds, and rows that are no
    distribution (NaN, +inf or only -inf), are the given logits, bit by bit.
    """
    if least + most >= 1:
        most = 1.0  # the classes outside near share at most 1 - least, so wrong's bound is met once near's is
    log_p = logits.log_softmax(-1)
    raised = _mixture(logits, (least, near), (1 - least, ~near))
    lowered = _mixture(logits, (most, wrong), (1 - most, ~wrong))
    both = _mixture(logits, (least, near), (most, wrong), (1 - least - most, ~(near | wrong)))
    enough, little = _mass(log_p, near) >= least, _mass(log_p, wrong) <= most
    bounded = torch.where(~little & (_mass(lowered, near) >= least), lowered, both)
    bounded = torch.where(~enough & (_mass(raised, wrong) <= most), raised, bounded)
    return torch.where((enough & little) | log_p.isnan(), logits, bounded)


def label_index(label: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """The labels [...] of like [..., C] as an index [..., 1] that is always valid, and whether each is a class, bool
    [..., 1]. ValueError for labels of another type or shape."""
    if label.dtype != torch.int64 or label.shape != like.shape[:-1]:
        expected, got = list(like.shape[:-1]), f"{label.dtype} of shape {list(label.shape)}"
        raise ValueError(f"label must be int64 of shape {expected}, got {got}")
    column, classes = label.unsqueeze(-1), like.shape[-1]
    return column.clamp(0, classes - 1), (column >= 0) & (column < classes)


def at_least_float32(x: Tensor) -> Tensor:
    """float64 as it is, any other dtype as float32."""
    return x if x.dtype == torch.float64 else x.float()


def _possible(near: Tensor, wrong: Tensor, least: float, most: float) -> Tensor:
    """Whether a row's masks allow its bounds, bool [...]; on the CPU, ValueError for the first row that does not."""
    problems = {
        "near and wrong must not have a class in common": (near & wrong).any(-1),
        f"near must not be empty where least is above 0, got least {least} and no class": ~near.any(-1) & (least > 0),
        f"wrong must not hold every class where most is below 1, got most {most} and all": wrong.all(-1) & (most < 1),
    }
    bad = torch.stack(list(problems.values()))
    if bad.device.type == "cpu":
        for problem, rows in zip(problems, bad.reshape(len(bad), -1), strict=True):
            if rows.any():
                raise ValueError(f"{problem} in row {int(rows.nonzero()[0])}")
    return ~bad.any(0)


def _mixture(logits: Tensor, *groups: tuple[float, Tensor]) -> Tensor:
    """Log-probabilities [..., C] that give each group of classes its share, and keep the ratios within it."""
    mixed = torch.full_like(logits, -torch.inf)
    for share, group in groups:
        log_share = math.log(share) if share > 0 else -math.inf
        mixed = torch.where(group, log_share + _within(logits, group), mixed)
    return mixed


def _within(logits: Tensor, group: Tensor) -> Tensor:
    """Log-probabilities [..., C] given that the class is in the group, even in a group that has none; for the group's
    classes only."""
    inside = torch.where(group, logits, -torch.inf)
    even = -group.sum(-1, keepdim=True).to(logits.dtype).log()
    return torch.where(inside.amax(-1, keepdim=True) == -torch.inf, even, inside.log_softmax(-1))


def _mass(log_p: Tensor, group: Tensor) -> Tensor:
    """Probability [..., 1] of the group, at most 1 however it is rounded."""
    return torch.where(group, log_p.exp(), 0.0).sum(-1, keepdim=True).clamp(max=1.0)
