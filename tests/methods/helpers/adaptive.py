"""Adaptive distillation's formulas, written out with PyTorch's own functions, for its tests."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.methods.helpers.batches import OPTIONS, C, kd
from udskd import methods
from udskd.config.schema import AkdConfig, Config, LossConfig, TargetConfig
from udskd.methods.base import Answers, Setting

SETTING = Setting(C, 8, {})
LOW, HIGH, KAPPA, DECAY = 0.2, 0.7, 0.6, 0.75


def config(shape: str = "none", weight: Any = "auto", backend: Any = "auto", **akd: Any) -> Config:
    return Config(
        "akd",
        loss=LossConfig(**OPTIONS, backend=backend),
        target=TargetConfig(shape, weight),
        akd=AkdConfig(**{"alpha_min": LOW, "alpha_max": HIGH, "decay": DECAY, "kappa": KAPPA, **akd}),
    )


def akd(**options: Any) -> tuple[methods.Method, dict[str, nn.Module]]:
    method = methods.build(config(**options))
    return method, method.modules(SETTING)


def students(x: Answers) -> list[tuple[str, Tensor]]:
    return [("a", x.student_a), ("b", x.student_b)]


def ce(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, reduction="none")


def expected(x: Answers, alphas: list[Tensor]) -> Tensor:
    losses = [(w * ce(s, x.target) + (1 - w) * kd(x, s)).mean() for w, (_, s) in zip(alphas, students(x), strict=True)]
    return losses[0] + losses[1]


def gap(x: Answers, student: Tensor, kind: str) -> Tensor:
    """[B], as it is defined."""
    assert x.teacher is not None
    student = student.detach()
    behind, known = ce(student, x.target), ce(x.teacher, x.target)
    if kind == "ce":
        return behind - known
    if kind == "ratio":
        return behind / (known + behind)
    p, q = x.teacher.softmax(-1), student.softmax(-1)
    m = (p + q) / 2
    return ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / (2 * math.log(2))


def alpha(gap: Tensor, kind: str) -> Tensor:
    share = {"ce": torch.sigmoid(KAPPA * gap), "js": 1 - HIGH + (HIGH - LOW) * gap, "ratio": gap}[kind]
    return 1 - share.clamp(1 - HIGH, 1 - LOW)
