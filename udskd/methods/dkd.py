"""Zhao, Cui, Song, Qiu, Liang: "Decoupled Knowledge Distillation", CVPR 2022 (arXiv:2203.08679)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from udskd.config.schema import STUDENTS, Config
from udskd.errors import ConfigError
from udskd.loss.functional import DualStudentLossOutput, training_loss
from udskd.methods.base import Answers, Ramp, Shape
from udskd.methods.operator import LossTerms, OperatorMethod, join_students, to_terms


class DecoupledDistillation(OperatorMethod):
    """The divergence from the teacher in two parts with weights of their own:

        loss = mean over images of Σ_i ( ce_weight·CE_i + ramp·T²·( alpha·TCKD_i + beta·NCKD_i ) )

    where TCKD is the KL of the two probabilities "the label" and "any other class", NCKD that of the distributions over
    the other classes, and KL = TCKD + (1 - p_y)·NCKD with the teacher's probability p_y of the label [paper]; so
    NCKD does not vanish where the teacher is sure. ramp = min(epoch / ramp_epochs, 1) [paper: the published
    code], over at most half of the run [reconstructed]. alpha and beta are the only weights of distillation [paper]:
    kd_weight and peer_weight are without effect. Label smoothing applies to the cross-entropy alone.

    Both parts are the operator's KL, so that nothing cancels where p_y is 0 or 1: NCKD of the logits without the
    label's, TCKD of two logits, the label's and the others' together, which is T·logsumexp(others / T). A class at -inf
    is excluded as in the operator; where the teacher excludes all classes but the label, NCKD is 0 [reconstructed].

    A target.weight multiplies both parts of its image; it comes from the whole target, as in every other method
    [reconstructed]. Labels only: "the other classes" of a mixed target do not exist.

    Returned terms: kd_a, kd_b are alpha·T²·TCKD + beta·T²·NCKD, weighted but without the ramp; tckd_a, tckd_b, nckd_a
    and nckd_b are T²·TCKD and T²·NCKD, 0 for a part whose weight is 0.
    """

    name = "dkd"
    fixed: ClassVar[dict[str, Any]] = {"uncertainty": "none", "kd_weight": 0.0, "peer_weight": 0.0}

    def __init__(self, config: Config, shapes: tuple[Shape, ...] = ()) -> None:
        super().__init__(config, shapes)
        if config.data.mixup > 0:
            raise ConfigError(f'method "dkd" needs labels, but data.mixup is {config.data.mixup}: set it to 0')
        self._ramp = Ramp(config.dkd.ramp_epochs, config.training.epochs)

    def at(self, epoch: float) -> None:
        self._ramp.at(epoch)

    def compute_both(self, teacher: Tensor | None, answers: Answers) -> LossTerms:
        """Both students with one target."""
        assert teacher is not None
        parts = self._parts([teacher, answers.student_a, answers.student_b], answers.target, {})
        return self._terms(*map(to_terms, parts))

    def compute_each(
        self, teachers: Mapping[str, Tensor], answers: Answers, changes: Mapping[str, Mapping[str, Any]]
    ) -> LossTerms:
        """Each student with its own target and options."""
        a, b = (
            self._parts([teachers[role], answers.student(role)], answers.target, changes.get(role, {}))
            for role in STUDENTS
        )
        return self._terms(*(join_students(of_a, of_b, None) for of_a, of_b in zip(a, b, strict=True)))

    def _parts(
        self, logits: list[Tensor], labels: Tensor, changes: Mapping[str, Any]
    ) -> tuple[DualStudentLossOutput, DualStudentLossOutput, DualStudentLossOutput]:
        """The operator's cross-entropy, TCKD and NCKD, of the teacher's logits and one or two students'."""
        if labels.is_floating_point():
            raise ValueError(f"dkd needs labels int64 [B] as target, got {labels.dtype} {list(labels.shape)}")
        ce = self._operator(logits, labels, changes)
        # The images' weights come from the whole distribution, not from its parts.
        options = {"uncertainty": ce.weight, "normalize_weights": False, "ce_weight": 0.0}
        split = [label_and_others(x, labels) for x in logits]
        pairs = [against_the_rest(own, others, self.options.temperature) for own, others in split]
        others = comparable([others for _, others in split])
        alpha, beta = (self._ramped(weight, ce.weight) for weight in (self.config.dkd.alpha, self.config.dkd.beta))
        tckd = self._operator(pairs, None, {**options, "kd_weight": alpha})
        return ce, tckd, self._operator(others, None, {**options, "kd_weight": beta})

    def _operator(
        self, logits: list[Tensor], target: Tensor | None, options: Mapping[str, Any]
    ) -> DualStudentLossOutput:
        teacher, student_a, *rest = logits
        student_b = rest[0] if rest else None
        return training_loss(teacher, student_a, student_b, target, **{**self.arguments, **options})

    def _ramped(self, weight: float, like: Tensor) -> float | Tensor:
        """A part whose weight is 0 is not computed at all, so that it may be infinite."""
        return self._ramp.times(weight, like) if weight else 0.0

    def _terms(self, ce: LossTerms, tckd: LossTerms, nckd: LossTerms) -> LossTerms:
        alpha, beta = self.config.dkd.alpha, self.config.dkd.beta
        terms = {**ce, "loss": ce["loss"] + tckd["loss"] + nckd["loss"]}
        for x in ("a", "b"):
            label, others = tckd[f"kd_{x}"], nckd[f"kd_{x}"]
            terms |= {f"kd_{x}": alpha * label + beta * others, f"tckd_{x}": label, f"nckd_{x}": others}
        return terms


def label_and_others(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The label's logit [B], and the logits [B, C] with that class excluded: float32, or float64 if they are."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    index = labels.unsqueeze(-1)
    return logits.gather(-1, index).squeeze(-1), logits.scatter(-1, index, -math.inf)


def against_the_rest(own: Tensor, others: Tensor, temperature: float) -> Tensor:
    """Two logits [B, 2] whose softmax at the temperature is the label's probability, and that of all others together;
    of the label's logit [B] and the others' [B, C]."""
    empty = others.isneginf().all(-1)
    # logsumexp of nothing is -inf, as it should be, but its derivative would be NaN
    rest = temperature * torch.logsumexp(torch.where(empty.unsqueeze(-1), 0.0, others) / temperature, -1)
    return torch.stack([own, torch.where(empty, -math.inf, rest)], -1)


def comparable(others: list[Tensor]) -> list[Tensor]:
    """The others' logits [B, C], the teacher's first. A row in which the teacher excludes all of them becomes 0 for
    every network, so that their divergence is 0."""
    empty = others[0].isneginf().all(-1, keepdim=True)
    return [torch.where(empty, 0.0, x) for x in others]
