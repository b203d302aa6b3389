"""Problems to put to the loss: logits, targets, options, and the backends that can answer here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from udskd import _library

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def backends(*names: str) -> list[Any]:
    """Parameters for the backends; CUDA is skipped with its reason where it cannot run."""
    out = []
    for name in names or ("reference", "cpu", "cuda"):
        reason = _library.unavailable(name)
        marks = [pytest.mark.gpu] if name == "cuda" else []
        if reason is not None:
            marks.append(pytest.mark.skip(reason=reason))
        out.append(pytest.param(name, marks=marks))
    return out


def device_of(backend: str) -> str:
    return "cuda" if backend == "cuda" else "cpu"


@dataclass(frozen=True)
class Problem:
    """Inputs of dual_student_loss. `wrt` names the logits that require gradients."""

    teacher: Tensor | None
    student_a: Tensor
    student_b: Tensor | None
    target: Tensor | None

    @property
    def logits(self) -> list[Tensor]:
        return [x for x in (self.teacher, self.student_a, self.student_b) if x is not None]

    @property
    def inputs(self) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
        return self.teacher, self.student_a, self.student_b, self.target

    def like(self, dtype: torch.dtype | None = None, device: str | None = None) -> Problem:
        """Leaf copies in another dtype, on another device, that require gradients."""

        def leaf(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().to(device=device, dtype=dtype).requires_grad_()

        target = self.target
        if target is not None:
            target = target.to(device=device, dtype=dtype if target.is_floating_point() else None)
        student_a = leaf(self.student_a)
        assert student_a is not None
        return replace(
            self, teacher=leaf(self.teacher), student_a=student_a, student_b=leaf(self.student_b), target=target
        )


def make(
    rows: int = 7,
    classes: int = 10,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    scale: float = 3.0,
    teacher: bool = True,
    two: bool = True,
    target: str | None = "hard",
    ignored: int = 0,
) -> Problem:
    """Random logits with a little structure: the teacher is right more often than not."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (rows,), generator=g)
    t, a, b = (torch.randn(rows, classes, generator=g, dtype=torch.float64) * scale for _ in range(3))
    t = t + 4 * torch.nn.functional.one_hot(labels, classes)
    y: Tensor | None = labels
    if ignored:
        y = labels.clone()
        y[torch.randperm(rows, generator=g)[:ignored]] = -100
    if target == "soft":
        y = torch.rand(rows, classes, generator=g, dtype=torch.float64)
        y = (y / y.sum(-1, keepdim=True)).to(dtype)
    a = a.to(dtype).requires_grad_()
    return Problem(
        t.to(dtype).requires_grad_() if teacher else None,
        a,
        b.to(dtype).requires_grad_() if two else None,
        y if target else None,
    )


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "temperature 1": {"temperature": 1.0},
    "temperature 2.5, peers at 1": {"temperature": 2.5, "peer_temperature": 1.0},
    "temperature 20": {"temperature": 20.0},
    "max_prob": {"uncertainty": "max_prob"},
    "margin": {"uncertainty": "margin"},
    "no uncertainty": {"uncertainty": "none"},
    "trust the uncertain": {"trust": "uncertain"},
    "trust the uncertain by margin": {"trust": "uncertain", "uncertainty": "margin"},
    "trust does not touch none": {"trust": "uncertain", "uncertainty": "none"},
    "weights at temperature 4": {"uncertainty_temperature": 4.0},
    "normalized weights": {"normalize_weights": True},
    "normalized margins": {"normalize_weights": True, "uncertainty": "margin", "trust": "uncertain"},
    "peers flow both ways": {"detach_peer": False},
    "label smoothing": {"label_smoothing": 0.1},
    "other coefficients": {"ce_weight": 0.3, "kd_weight": 2.0, "peer_weight": 1.5},
    "no cross-entropy": {"ce_weight": 0.0},
    "no teacher term": {"kd_weight": 0.0},
    "no peers": {"peer_weight": 0.0},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
}
