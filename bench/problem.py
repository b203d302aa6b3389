"""What is measured: one batch of logits, one loss, the answer in float64, and how far another answer is from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.loss.helpers import eager

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
PASSES = ("forward", "forward+backward")
CACHES = ("warm", "cold")
AT_ONCE = 1 << 26  # logits of a network whose answer in float64 is computed at a time: some 8 GB
# The paper's whole loss: labels, teacher, peers, weighting by entropy. The temperature is the user's.
OPTIONS = {"ce_weight": 1.0, "kd_weight": 0.9, "peer_weight": 0.5, "uncertainty": "entropy", "detach_peer": True}


@dataclass(frozen=True)
class Case:
    """A size, a dtype, and "forward" (the loss under no_grad) or "forward+backward" (and both students' gradients);
    from logits that the last call has left in the caches, as far as they hold them, or from others each time."""

    rows: int
    classes: int
    dtype: str
    kind: str
    cache: str = "warm"

    @property
    def gradients(self) -> bool:
        return self.kind == "forward+backward"

    @property
    def minimal_bytes(self) -> int:
        """What no implementation can avoid: reading three tensors of logits and, of gradients, writing two."""
        return (5 if self.gradients else 3) * self.rows * self.classes * DTYPES[self.dtype].itemsize

    @property
    def logits_bytes(self) -> int:
        return 3 * self.rows * self.classes * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        cold = ", cold" if self.cache == "cold" else ""
        return f"{self.rows} x {self.classes}, {self.dtype}, {self.kind}{cold}"


class Problem(NamedTuple):
    """The loss's inputs; the students require gradients, unless they are only asked for the loss."""

    teacher: Tensor
    student_a: Tensor
    student_b: Tensor
    target: Tensor

    def copy(self, dtype: torch.dtype | None = None) -> Problem:
        teacher, a, b = (x.detach().to(dtype, copy=True).requires_grad_(x.requires_grad) for x in self[:3])
        return Problem(teacher, a, b, self.target)

    def rows(self, part: slice) -> Problem:
        teacher, a, b = (x.detach()[part].requires_grad_(x.requires_grad) for x in self[:3])
        return Problem(teacher, a, b, self.target[part])

    @property
    def students(self) -> tuple[Tensor, Tensor]:
        return self.student_a, self.student_b


Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def make(case: Case, device: str, seed: int = 0) -> Problem:
    """Logits of the size that networks give, of a teacher that is mostly right; drawn where they will lie, since a
    large case has no room for copies."""
    g = torch.Generator(device).manual_seed(seed)
    shape, dtype = (case.rows, case.classes), DTYPES[case.dtype]
    labels = torch.randint(0, case.classes, (case.rows,), generator=g, device=device)
    teacher, a, b = (torch.empty(shape, dtype=dtype, device=device).normal_(0, 2, generator=g) for _ in range(3))
    teacher[torch.arange(case.rows, device=device), labels] += 4
    return Problem(teacher, a.requires_grad_(case.gradients), b.requires_grad_(case.gradients), labels)


def observe(loss: Loss, problem: Problem, gradients: bool) -> list[Tensor]:
    """The loss and, if asked for, both gradients."""
    if not gradients:
        with torch.no_grad():
            return [loss(*problem).double()]
    value = loss(*problem)
    seen = [value.detach().double()]  # before the backward pass: a CUDA graph may reuse the loss's memory
    return seen + list(torch.autograd.grad(value, problem.students))


class Oracle:
    """The answer in float64 for the same, already rounded logits, of a mean over the rows. Of a large batch it is
    computed part by part, whenever it is needed."""

    def __init__(self, problem: Problem, options: dict[str, Any], gradients: bool) -> None:
        self._problem, self._options, self._gradients = problem, options, gradients
        self._whole: list[Tensor] | None = None

    def error(self, seen: Sequence[Tensor]) -> float:
        """The largest error: the loss's relative to the loss, a gradient's to its largest element. NaN is inf."""
        loss = torch.zeros((), dtype=torch.float64, device=seen[0].device)
        largest = [torch.zeros_like(loss) for _ in seen[1:]]
        worst = [torch.zeros_like(loss) for _ in seen[1:]]
        for part, share, (value, *gradients) in self._parts():
            loss += value * share
            for k, (mine, true) in enumerate(zip(seen[1:], gradients, strict=True)):
                exact = true * share
                worst[k] = torch.maximum(worst[k], (mine[part] - exact).abs().max())
                largest[k] = torch.maximum(largest[k], exact.abs().max())
        errors = [(seen[0] - loss).abs() / loss.abs(), *(x / y for x, y in zip(worst, largest, strict=True))]
        return max(float(x) if x == x else float("inf") for x in errors)

    def _parts(self) -> Iterator[tuple[slice, float, list[Tensor]]]:
        """Rows, their share of all, and the answer for them alone."""
        rows, classes = self._problem.teacher.shape
        height = max(1, AT_ONCE // classes)
        if height >= rows:
            self._whole = self._whole or self._answer(self._problem)
            yield slice(None), 1.0, self._whole
            return
        for begin in range(0, rows, height):
            part = slice(begin, min(begin + height, rows))
            yield part, (part.stop - begin) / rows, self._answer(self._problem.rows(part))

    def _answer(self, problem: Problem) -> list[Tensor]:
        def exact(*inputs: Tensor) -> Tensor:
            return eager.dual_student_loss(*inputs, **self._options).loss

        return observe(exact, problem.copy(torch.float64), self._gradients)
