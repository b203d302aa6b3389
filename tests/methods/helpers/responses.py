"""Several responses of a teacher, and the formulas of targets computed from them, in float64, for their tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from udskd.config.schema import STUDENTS, Config, LossConfig, TargetConfig, VarianceConfig
from udskd.methods.base import Answers

B, C, K = 6, 5, 3
T = 3.0
LOSS = LossConfig(temperature=T, ce_weight=0.7, kd_weight=0.8)
UPSTREAM = 1.7
SIGMAS = 5.0


def config(method: str = "variance", shape: str = "auto", **options: Any) -> Config:
    variance = replace(VarianceConfig(responses=K), **options)
    return Config(method=method, loss=LOSS, target=TargetConfig(shape=shape), variance=variance)


def batch(dtype: torch.dtype = torch.float64, rows: int = B, device: str = "cpu") -> Answers:
    generator = torch.Generator().manual_seed(0)
    t, a, b = (3 * torch.randn(rows, C, dtype=torch.float64, generator=generator) for _ in range(3))
    y = torch.randint(0, C, (rows,), generator=generator).to(device)
    responses = t + torch.randn(K, rows, C, dtype=torch.float64, generator=generator)
    t, a, b, responses = (x.to(device, dtype) for x in (t, a, b, responses))
    return Answers(t, a.requires_grad_(), b.requires_grad_(), y, responses=responses)


def teacher(answers: Answers) -> Tensor:
    assert answers.teacher is not None
    return answers.teacher


def tempered(logits: Tensor | None) -> Tensor:
    assert logits is not None
    return (logits.detach() / T).softmax(-1)


def distilled(target: Tensor, student: Tensor) -> Tensor:
    """T^2 KL(target || student at T) of each row, of target probabilities that may be zero."""
    return T**2 * (torch.xlogy(target, target) - target * (student / T).log_softmax(-1)).sum(-1)


def expected(targets: dict[str, Tensor], answers: Answers) -> Tensor:
    loss = torch.zeros((), dtype=torch.float64)
    for role in STUDENTS:
        student = answers.student(role)
        loss = loss + 0.7 * F.cross_entropy(student, answers.target)
        loss = loss + 0.8 * distilled(targets[role].detach(), student).mean()
    return loss


def assert_same_loss_and_gradients(got: Tensor, want: Tensor, answers: Answers) -> None:
    torch.testing.assert_close(got, want)
    students, upstream = (answers.student_a, answers.student_b), torch.tensor(UPSTREAM, dtype=torch.float64)
    gradients = (torch.autograd.grad(loss, students, upstream) for loss in (got, want))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def seeded(seed: int, call: Callable[[], Tensor]) -> Tensor:
    torch.manual_seed(seed)
    return call()
