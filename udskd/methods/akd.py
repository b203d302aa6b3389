"""Li: "Context-Aware Knowledge Distillation with Adaptive Weighting for Image Classification", 2025
(arXiv:2509.05319)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from udskd.config.schema import STUDENTS, AkdConfig, Config
from udskd.errors import ConfigError
from udskd.loss.uncertainty import kl_divergence
from udskd.methods.base import Answers, Setting, Shape
from udskd.methods.operator import LossTerms, OperatorMethod, add_losses, cross_entropies


class AdaptiveDistillation(OperatorMethod):
    """Each student with a balance of its own between labels and teacher, which changes during training:

        loss = mean over images of Σ_i ( alpha_i·CE_i + (1 - alpha_i)·T²·KL(t ‖ i) )

    on the target of shape "context". That alpha is learned, or follows the gap between student and teacher, is the
    paper's [paper]; its text was not available, so the formulas are [reconstructed]. alpha replaces ce_weight and
    kd_weight, which are without effect. The options are those of [akd]:

    alpha="learned": alpha = alpha_min + (alpha_max - alpha_min)·sigmoid(a), with a = 0 at the start. Since dloss/da =
    alpha'(a)·(CE - KL), alpha moves towards the smaller loss, and only its range preserves the other. guard="kendall"
    has a minimum in between instead: e^-s·CE + e^-s'·T²·KL + s + s', weights learned as noise levels (Kendall, Gal,
    Cipolla, CVPR 2018) [reconstructed], with s + s' of both students among the terms as "noise".

    alpha="batch" or "sample": 1 - alpha grows with the gap (gaps(), teacher_share()), without a gradient; for each
    image separately, or for the batch by its mean, smoothed by GapAverage. A process takes the mean over its own part
    of the batch (one of training.accumulate parts); the ranks share the average between steps.

    The gap is measured from the teacher's own logits, not from the shaped ones. Further terms: "alpha_a" and "alpha_b",
    the share of the cross-entropy in both weights, its mean over the images.
    """

    name = "akd"
    shape = "context"
    fixed: ClassVar[dict[str, Any]] = {"uncertainty": "none", "peer_weight": 0.0}

    def __init__(self, config: Config, shapes: tuple[Shape, ...] = ()) -> None:
        super().__init__(config, shapes)
        options = config.akd
        _check(options)
        self.lr = options.lr
        self._learned: LearnedAlpha | NoiseLevels | None = None
        self._average = GapAverage(options.decay) if options.alpha == "batch" else None
        if options.alpha == "learned":
            ranged = options.guard == "range"
            self._learned = LearnedAlpha(options.alpha_min, options.alpha_max) if ranged else NoiseLevels()

    def modules(self, setting: Setting) -> dict[str, nn.Module]:
        """Those of the shapes, and the module that holds alpha or the average of the gap."""
        alpha = self._learned if self._learned is not None else self._average
        return super().modules(setting) | ({} if alpha is None else {"alpha": alpha})

    def loss(self, answers: Answers) -> LossTerms:
        """The operator's loss with each student's alpha."""
        terms = super().loss(answers)
        return (
            add_losses(terms, {"noise": self._learned.penalty()}) if isinstance(self._learned, NoiseLevels) else terms
        )

    def changes(self, answers: Answers, targets: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
        """By role, both weights for this batch, and the options of target.weight that depend on the student."""
        given = super().changes(answers, targets)
        hard, soft = self._balance(answers)
        return {
            role: {**given.get(role, {}), "ce_weight": hard[i], "kd_weight": soft[i]} for i, role in enumerate(STUDENTS)
        }

    def compute_each(
        self, teachers: Mapping[str, Tensor], answers: Answers, changes: Mapping[str, Mapping[str, Any]]
    ) -> LossTerms:
        """Each student with its own target and weights; alpha is a further term."""
        terms = super().compute_each(teachers, answers, changes)
        for role, name in zip(STUDENTS, ("alpha_a", "alpha_b"), strict=True):
            hard, soft = (changes[role][weight].detach() for weight in ("ce_weight", "kd_weight"))
            terms[name] = (hard / (hard + soft)).mean()
        return terms

    def _balance(self, answers: Answers) -> tuple[Tensor, Tensor]:
        """The weights of labels and teacher, [2] or [2, B], for student a and student b."""
        if self._learned is not None:
            weights: tuple[Tensor, Tensor] = self._learned()
            return weights
        gap = gaps(answers, self.config.akd.gap, self.options.backend)
        soft = teacher_share(gap if self._average is None else self._average(gap), self.config.akd)
        return 1 - soft, soft


class LearnedAlpha(nn.Module):
    """(alpha, 1 - alpha), each [2], for student a and student b; alpha = low + (high - low)·sigmoid(a)."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.a = nn.Parameter(torch.zeros(2))

    def forward(self) -> tuple[Tensor, Tensor]:
        alpha = self.low + (self.high - self.low) * torch.sigmoid(self.a)
        return alpha, 1 - alpha


class NoiseLevels(nn.Module):
    """(e^-s, e^-s'), each [2], for student a and student b; s and s' are 0 at the start."""

    def __init__(self) -> None:
        super().__init__()
        # two vectors and no matrix: matrices get weight decay
        self.hard, self.soft = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def forward(self) -> tuple[Tensor, Tensor]:
        return torch.exp(-self.hard), torch.exp(-self.soft)

    def penalty(self) -> Tensor:
        """The term that keeps the weights from vanishing."""
        return self.hard.sum() + self.soft.sum()


class GapAverage(nn.Module):
    """Moving average [2] of the gaps [2, B] of both students: the first batch sets it, later ones move it.

    Two buffers, a decayed sum of the batches' means and the sum of their weights, as in Adam's bias correction. Both
    can be averaged over processes, also if one of them has had no image yet. Images whose gap is not finite do not
    count, and a batch of such images alone does not change the average, in which they would stay forever.
    """

    total: Tensor
    mass: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("total", torch.zeros(2))
        self.register_buffer("mass", torch.zeros(2))

    @torch.no_grad()
    def forward(self, gaps: Tensor) -> Tensor:
        finite = gaps.isfinite()
        mean = torch.where(finite, gaps, 0.0).sum(-1) / finite.sum(-1)
        new = mean.isfinite()
        self.total.copy_(torch.where(new, self.decay * self.total + (1 - self.decay) * mean, self.total))
        self.mass.copy_(torch.where(new, self.decay * self.mass + (1 - self.decay), self.mass))
        return torch.where(self.mass > 0, self.total / self.mass, 0.0)


@torch.no_grad()
def gaps(answers: Answers, kind: str, backend: str = "auto") -> Tensor:
    """How far each student is behind the teacher on each image, [2, B], without a gradient.

    "ce": CE_student - CE_teacher; "js": the Jensen-Shannon divergence of their distributions at temperature 1, over
    log 2, in [0, 1]; "ratio": CE_student / (CE_teacher + CE_student), in [0, 1]. Where both cross-entropies are 0, or
    both infinite, the students are no further than the teacher: 0, or 1/2 of the ratio.
    """
    assert answers.teacher is not None
    students = (answers.student_a, answers.student_b)
    if kind == "js":
        return torch.stack([jensen_shannon(answers.teacher, student) for student in students])
    teacher, *each = cross_entropies(answers.target, answers.teacher, *students, backend=backend)
    student = torch.stack(each)
    if kind == "ce":
        return torch.where(student == teacher, 0.0, student - teacher)
    return torch.where(student == teacher, 0.5, 1 / (1 + teacher / student))


def jensen_shannon(x: Tensor, y: Tensor) -> Tensor:
    """Jensen-Shannon divergence [B] of softmax(x) and softmax(y), logits [B, C], over log 2: 0 if they are equal, 1 if
    no class has mass in both."""
    log_p, log_q = (z.to(torch.promote_types(z.dtype, torch.float32)).log_softmax(-1) for z in (x, y))
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return ((kl_divergence(log_p, log_m) + kl_divergence(log_q, log_m)) / (2 * math.log(2))).clamp(0, 1)


def teacher_share(gap: Tensor, options: AkdConfig) -> Tensor:
    """1 - alpha of gaps of any shape, within [1 - alpha_max, 1 - alpha_min]; it never falls as the gap grows.

    "ce": sigmoid(kappa·gap); "ratio": the gap itself; "js": the range, from its lower end for 0 to its upper for 1.
    """
    low, high = 1 - options.alpha_max, 1 - options.alpha_min
    if options.gap == "js":
        gap = low + (high - low) * gap
    elif options.gap == "ce":
        gap = torch.sigmoid(options.kappa * gap)
    return gap.clamp(low, high)


def _check(options: AkdConfig) -> None:
    low, high = options.alpha_min, options.alpha_max
    if not 0 <= low < high <= 1:
        raise ConfigError(
            f"akd.alpha_min and akd.alpha_max must be numbers 0 <= alpha_min < alpha_max <= 1, got {low} and {high}"
        )
