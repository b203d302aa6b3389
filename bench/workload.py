"""The measured cases, their inputs, and the loss in float64 with which every implementation is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.loss.helpers import eager

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
PASSES = ("forward", "forward+backward")
CACHES = ("warm", "cold")
CHUNK_LOGITS = 1 << 26  # logits of each network in one float64 computation: about 8 GB
# The paper's whole loss: labels, teacher, peers, weights by entropy. The temperature is an argument of the command.
LOSS_OPTIONS = {"ce_weight": 1.0, "kd_weight": 0.9, "peer_weight": 0.5, "uncertainty": "entropy", "detach_peer": True}


@dataclass(frozen=True)
class Case:
    """A shape, a dtype, a pass, the state of the caches, and how near the students are to the teacher.

    kind: "forward" (the loss under no_grad) or "forward+backward" (the loss and both students' gradients).
    cache: "warm" (every call has the same logits) or "cold" (every call has logits that have left the caches).
    apart: the standard deviation of the differences between the logits of a student and of the teacher, as late in a
        training; None for independent logits.
    """

    rows: int
    classes: int
    dtype: str
    kind: str
    cache: str = "warm"
    apart: float | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Case:
        """The case of a row of results; older rows name neither the state of the caches nor the students' logits."""
        cache, apart = row.get("cache", "warm"), row.get("apart")
        return cls(row["rows"], row["classes"], row["dtype"], row["pass"], cache, apart)

    @property
    def gradients(self) -> bool:
        return self.kind == "forward+backward"

    @property
    def minimal_bytes(self) -> int:
        """Bytes that every implementation moves: it reads three tensors of logits and writes two of gradients."""
        return (5 if self.gradients else 3) * self.rows * self.classes * DTYPES[self.dtype].itemsize

    @property
    def logits_bytes(self) -> int:
        return 3 * self.rows * self.classes * DTYPES[self.dtype].itemsize

    @property
    def size(self) -> str:
        return f"{self.rows} x {self.classes}, {self.dtype}"

    @property
    def conditions(self) -> str:
        near = [] if self.apart is None else [f"students {self.apart:g} from the teacher"]
        return ", ".join([self.kind, *["cold"] * (self.cache == "cold"), *near])

    def __str__(self) -> str:
        return f"{self.size}, {self.conditions}"


class Workload(NamedTuple):
    """Inputs of the loss. The students require gradients unless only the loss is measured."""

    teacher: Tensor
    student_a: Tensor
    student_b: Tensor
    target: Tensor

    def copy(self, dtype: torch.dtype | None = None) -> Workload:
        teacher, a, b = (x.detach().to(dtype, copy=True).requires_grad_(x.requires_grad) for x in self[:3])
        return Workload(teacher, a, b, self.target)

    def rows(self, part: slice) -> Workload:
        teacher, a, b = (x.detach()[part].requires_grad_(x.requires_grad) for x in self[:3])
        return Workload(teacher, a, b, self.target[part])

    @property
    def students(self) -> tuple[Tensor, Tensor]:
        return self.student_a, self.student_b


Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def make_workload(case: Case, device: str, seed: int = 0) -> Workload:
    """Logits as large as those of trained networks, of a teacher that is mostly right.

    They are drawn on the device and changed in place, because a large case leaves no memory for copies.
    """
    g = torch.Generator(device).manual_seed(seed)
    shape, dtype = (case.rows, case.classes), DTYPES[case.dtype]
    labels = torch.randint(0, case.classes, (case.rows,), generator=g, device=device)
    scales = (2.0, *[2.0 if case.apart is None else case.apart] * 2)
    teacher, a, b = (torch.empty(shape, dtype=dtype, device=device).normal_(0, x, generator=g) for x in scales)
    teacher[torch.arange(case.rows, device=device), labels] += 4
    if case.apart is not None:
        a += teacher
        b += teacher
    return Workload(teacher, a.requires_grad_(case.gradients), b.requires_grad_(case.gradients), labels)


def evaluate(loss: Loss, workload: Workload, gradients: bool) -> list[Tensor]:
    """The loss in float64 and, if `gradients`, those of both students."""
    if not gradients:
        with torch.no_grad():
            return [loss(*workload).double()]
    value = loss(*workload)
    found = [value.detach().double()]  # before the backward pass: a CUDA graph may reuse the loss's memory
    return found + list(torch.autograd.grad(value, workload.students))


class Oracle:
    """Loss (the mean over the rows) and gradients in float64 for the same, already rounded logits.

    A large batch is computed chunk by chunk, each time it is needed.
    """

    def __init__(self, workload: Workload, options: dict[str, Any], gradients: bool) -> None:
        self._workload, self._options, self._gradients = workload, options, gradients
        self._whole: list[Tensor] | None = None

    def error(self, found: Sequence[Tensor]) -> float:
        """The largest error: the loss's relative to the loss, a gradient's to its largest element. NaN is inf."""
        loss = torch.zeros((), dtype=torch.float64, device=found[0].device)
        largest = [torch.zeros_like(loss) for _ in found[1:]]
        worst = [torch.zeros_like(loss) for _ in found[1:]]
        for part, share, (value, *gradients) in self._chunks():
            loss += value * share
            for k, (gradient, exact_gradient) in enumerate(zip(found[1:], gradients, strict=True)):
                exact = exact_gradient * share
                worst[k] = torch.maximum(worst[k], (gradient[part] - exact).abs().max())
                largest[k] = torch.maximum(largest[k], exact.abs().max())
        errors = [(found[0] - loss).abs() / loss.abs(), *(x / y for x, y in zip(worst, largest, strict=True))]
        return max(float(x) if x == x else float("inf") for x in errors)

    def _chunks(self) -> Iterator[tuple[slice, float, list[Tensor]]]:
        """Rows, their share of all rows, and loss and gradients of these rows alone."""
        rows, classes = self._workload.teacher.shape
        height = max(1, CHUNK_LOGITS // classes)
        if height >= rows:
            self._whole = self._whole or self._exact(self._workload)
            yield slice(None), 1.0, self._whole
            return
        for begin in range(0, rows, height):
            part = slice(begin, min(begin + height, rows))
            yield part, (part.stop - begin) / rows, self._exact(self._workload.rows(part))

    def _exact(self, workload: Workload) -> list[Tensor]:
        def loss(*inputs: Tensor) -> Tensor:
            return eager.dual_student_loss(*inputs, **self._options).loss

        return evaluate(loss, workload.copy(torch.float64), self._gradients)
