"""Calibrated uncertainty distillation: "Trust the uncertain teacher: distilling dark knowledge via calibrated
uncertainty", 2026 (arXiv:2602.12687)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from udskd.config.schema import Config
from udskd.errors import ConfigError
from udskd.loss.uncertainty import entropy
from udskd.methods.base import Answers, Shape, Shaped, TeacherStage
from udskd.methods.masses import at_least_float32, bound_logits, clip_wrong_mass, label_index
from udskd.methods.operator import OperatorMethod


class _MovesMass(Shape):
    """A shape that needs the label, on probabilities at temperature 1, or as tempered (cud.clip "after")."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        _refuse_mixup(config, f'target.shape "{self.name}"')
        self.temperature = config.loss.temperature if config.cud.clip == "after" else 1.0


class WrongMassClip(_MovesMass):
    """Where the teacher's most probable class is not the label, part of its probability moves to the label:
    udskd.methods.masses.clip_wrong_mass.

    The formula is the paper's, and so are eta = 0.5 and margin = 0.7, with which the label always ends at least as
    probable as the class that loses mass [paper]. Whether probabilities are clipped at temperature 1 and then tempered
    (cud.clip "before") or clipped as tempered by loss.temperature ("after") is not published [reconstructed].

    Only the logits of the two classes change, to those with which the softmax is the clipped distribution. Rows in
    which the teacher is right are returned bit by bit; logits in half precision come back as float32.

    ConfigError for mixup, which leaves no label.
    """

    name = "wrong_mass_clip"

    @torch.no_grad()
    def __call__(self, logits: Tensor, role: str, answers: Answers) -> Shaped:
        """logits [B, C] of the teacher -> Shaped with logits [B, C], and no loss."""
        given = at_least_float32(logits)
        tempered = given / self.temperature
        p = tempered.softmax(-1)
        q = clip_wrong_mass(p, answers.target, eta=self.config.cud.eta, margin=self.config.cud.margin)
        clipped = self.temperature * (q.log() + tempered.logsumexp(-1, keepdim=True))
        return Shaped(torch.where(q == p, given, clipped))


class MassBounds(_MovesMass):
    """The distribution closest to the teacher's, in KL(q ‖ p), that gives the label at least cud.label_mass, and the
    classes that the teacher ranks above the label at most cud.wrong_mass together: udskd.methods.masses.bound_masses.

    The bounds on the two masses, the projection, and that KL(q || p) makes of it an exponential tilt of the two groups
    are the paper's, which never fits the tilt [paper]. Its bounds on the entropy are left out, and its first group is a
    neighbourhood of classes related to the label; that group as the label alone, the second as the classes above it (a
    class that ties is not), the tilt in closed form, the two numbers, and cud.clip as for wrong_mass_clip are
    [reconstructed].

    Rows that keep both bounds are returned bit by bit, others as temperature times log q (-inf for the classes above
    the label if cud.wrong_mass is 0); logits in half precision come back as float32.

    ConfigError for mixup, which leaves no label. Any two bounds in [0, 1) can be met together: with all probability on
    the label, both are.
    """

    name = "mass_bounds"

    @torch.no_grad()
    def __call__(self, logits: Tensor, role: str, answers: Answers) -> Shaped:
        """logits [B, C] of the teacher -> Shaped with logits [B, C], and no loss."""
        given = at_least_float32(logits)
        index, known = label_index(answers.target, given)
        near = torch.arange(given.shape[-1], device=given.device) == index
        wrong = given > given.gather(-1, index)
        tempered = given / self.temperature
        options = self.config.cud
        bounded = bound_logits(tempered, near, wrong, least=options.label_mass, most=options.wrong_mass)
        return Shaped(torch.where(known & (bounded != tempered), self.temperature * bounded, given))


class UncertaintyShaping(TeacherStage):
    """Difficulty-aware uncertainty shaping, further training of the teacher, which keeps its certainty where it is
    right and makes it uncertain where it is wrong.

        loss = mean over images of  min(max_weight, w)·(1 - p_y)^gamma·(-log p_y)  -  entropy_bonus·mean of g·H(p)
        g = sg[1 if wrong, else 1 - p_y],    w = sg[1 + (1 if wrong) + (1 - p_y)]

    with p the teacher's probabilities at temperature 1, y the label, wrong where a class is more probable than the
    label, H in nats, and sg for what passes no gradient.

    A focal loss with a gated bonus for entropy, a weight for hard images that is clipped at 3, and entropy_bonus = 0.1
    are the paper's [paper]; the gate's and the weight's formulas, and what H is measured in, are not published
    [reconstructed]. The paper's gamma is 10, for text and a pretrained encoder: at p_y = 0.5 that leaves a
    thousandth of the gradient, hence 2 here [reconstructed]. w never exceeds 3, so only a smaller max_weight clips it.

    ConfigError for mixup, which leaves no label.
    """

    name = "uncertainty_shaping"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        _refuse_mixup(config, f'teacher.stage "{self.name}"')
        self.epochs, self.lr = config.cud.stage_epochs, config.cud.stage_lr

    def loss(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The stage's loss of the teacher's logits [B, C] with labels int64 [B].

        Returns "loss" (scalar, differentiable), and detached, without its coefficient, what it is made of: "focal" and
        "bonus", so that loss = focal - entropy_bonus·bonus.
        """
        options, logits = self.config.cud, at_least_float32(logits)
        log_p, log_rest = _label_or_not(logits, target)
        with torch.no_grad():
            rest = log_rest.exp()
            wrong = logits.gather(-1, target.unsqueeze(-1)).squeeze(-1) < logits.amax(-1)
            gate = torch.where(wrong, 1.0, rest)
            weight = (1 + wrong.to(rest.dtype) + rest).clamp(max=options.max_weight)
        focal = (weight * (options.gamma * log_rest).exp() * -log_p).mean()
        bonus = (gate * entropy(logits)).mean()
        return {"loss": focal - options.entropy_bonus * bonus, "focal": focal.detach(), "bonus": bonus.detach()}


class CalibratedUncertainty(OperatorMethod):
    """Two students that imitate, separately, a teacher with calibrated uncertainty and corrected wrong predictions:

        loss = mean over images of Σ_i ( ce_weight·CE_i + kd_weight·T²·KL(q^T ‖ i^T) )

    with q the teacher's probabilities after wrong-mass clipping, q^T those tempered, and i^T a student's tempered ones.

    The two steps before distillation (stage "uncertainty_shaping", shape "wrong_mass_clip"), the forward KL on tempered
    probabilities with the factor T², and the cross-entropy with the labels are the paper's [paper]. T and the weights
    are not published and come from the options, as for "kd"; the paper's networks read text, and two students side by
    side are for the comparison with "udskd" [reconstructed]. Options remove each step, to measure its effect:
    teacher.stage="none", target.shape="none", or "mass_bounds" in place of clipping.
    """

    name = "cud"
    stage = "uncertainty_shaping"
    shape = "wrong_mass_clip"
    fixed: ClassVar[dict[str, Any]] = {"uncertainty": "none", "peer_weight": 0.0}


def _label_or_not(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """log p_y and log(1 - p_y), [B] each, with exact gradients however close p_y is to 0 or 1.

    Both are a log-sigmoid of the label's log-odds. Taking 1 - p_y from p_y instead would lose it to rounding, and a
    power of it below 1 would have the gradient inf·0 there.
    """
    index = target.unsqueeze(-1)
    others = logits.scatter(-1, index, -torch.inf).logsumexp(-1)
    odds = logits.gather(-1, index).squeeze(-1) - others
    return F.logsigmoid(odds), F.logsigmoid(-odds)


def _refuse_mixup(config: Config, what: str) -> None:
    if config.data.mixup > 0:
        raise ConfigError(
            f"data.mixup is {config.data.mixup}, but {what} needs labels: set data.mixup to 0, or choose another"
        )
