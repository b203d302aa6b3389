"""What is measured: one batch of logits, one loss, the answer in float64, and how far another answer is from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.ops import eager

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
PASSES = ("forward", "forward+backward")
# The paper's whole loss: labels, teacher, peers, weighting by entropy. The temperature is the user's.
OPTIONS = {"ce_weight": 1.0, "kd_weight": 0.9, "peer_weight": 0.5, "uncertainty": "entropy", "detach_peer": True}


@dataclass(frozen=True)
class Case:
    """A size, a dtype, and "forward" (the loss under no_grad) or "forward+backward" (and both students' gradients)."""

    rows: int
    classes: int
    dtype: str
    kind: str

    @property
    def gradients(self) -> bool:
        return self.kind == "forward+backward"

    @property
    def minimal_bytes(self) -> int:
        """What no implementation can avoid: reading three tensors of logits and, of gradients, writing two."""
        return (5 if self.gradients else 3) * self.rows * self.classes * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        return f"{self.rows} x {self.classes}, {self.dtype}, {self.kind}"


class Problem(NamedTuple):
    """The loss's inputs; the students require gradients."""

    teacher: Tensor
    student_a: Tensor
    student_b: Tensor
    target: Tensor

    def copy(self, dtype: torch.dtype | None = None) -> Problem:
        teacher, a, b = (x.detach().to(dtype, copy=True) for x in self[:3])
        return Problem(teacher, a.requires_grad_(), b.requires_grad_(), self.target)


Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def make(case: Case, device: str, seed: int = 0) -> Problem:
    """Logits of the size that networks give, of a teacher that is mostly right."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, case.classes, (case.rows,), generator=g)
    teacher, a, b = (torch.randn(case.rows, case.classes, generator=g) * 2 for _ in range(3))
    teacher[torch.arange(case.rows), labels] += 4
    on_device = Problem(*(x.to(device) for x in (teacher, a, b, labels)))
    return on_device.copy(DTYPES[case.dtype])


def observe(loss: Loss, problem: Problem, gradients: bool) -> list[Tensor]:
    """The loss and, if asked for, both gradients, in float64."""
    if not gradients:
        with torch.no_grad():
            return [loss(*problem).double()]
    value = loss(*problem)
    seen = [value.detach().double()]  # before the backward pass: a CUDA graph may reuse the loss's memory
    return seen + [x.double() for x in torch.autograd.grad(value, (problem.student_a, problem.student_b))]


def oracle(problem: Problem, options: dict[str, Any], gradients: bool) -> list[Tensor]:
    """The answer in float64 for the same, already rounded logits."""

    def exact(*inputs: Tensor) -> Tensor:
        return eager.dual_student_loss(*inputs, **options).loss

    return observe(exact, problem.copy(torch.float64), gradients)


def error(seen: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest error: the loss's relative to the loss, a gradient's relative to its largest element. NaN is inf."""
    parts = [float((x - y).abs().max() / y.abs().max()) for x, y in zip(seen, truth, strict=True)]
    return max(x if x == x else float("inf") for x in parts)
