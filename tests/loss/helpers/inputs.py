"""Inputs of the loss for its tests: logits, targets, options, and the backends that can run here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.loss.helpers import emulated
from udskd import _native

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MARKS = {"cuda": ["gpu"], "emulated": ["emulated"]}


def backends(*names: str) -> list[Any]:
    """Parameters for the backends; one that cannot run is skipped with the reason. "emulated" runs the CUDA kernels and
    follows the rules of a GPU, with tensors on the CPU."""
    out = []
    for name in names or ("reference", "cpu", "emulated", "cuda"):
        reason = emulated.reason() if name == "emulated" else _native.unavailable(name)
        marks = [getattr(pytest.mark, mark) for mark in MARKS.get(name, ())]
        if reason is not None:
            marks.append(pytest.mark.skip(reason=reason))
        out.append(pytest.param(name, marks=marks))
    return out


def device_of(backend: str) -> str:
    return "cuda" if backend == "cuda" else "cpu"


def on_gpu(backend: str) -> bool:
    """Whether the kernel depends on the shape, the layout and the gradients that are needed."""
    return backend in ("cuda", "emulated")


def can_fuse(backend: str, options: dict[str, Any]) -> bool:
    """Whether a backend has the fused form for these options of the loss."""
    normalized = options.get("normalize_weights", False)
    return options.get("reduction") != "none" and not (normalized and on_gpu(backend))


def close(x: Tensor, y: Tensor, units: int = 4) -> None:
    """Equal except for rounding; elements are differences of terms as large as the largest element."""
    allowed = units * torch.finfo(y.dtype).eps
    largest = y.abs().max().item() if y.numel() else 0.0
    torch.testing.assert_close(x, y, rtol=allowed, atol=allowed * largest)


def agree(backend: str, x: Tensor, y: Tensor) -> None:
    """Equal except for rounding: results of two forms, or of one form in two batches. On a GPU these can be results of
    a fast kernel and of the generic one."""
    close(x, y, 32 if on_gpu(backend) and y.dtype in (torch.float32, torch.float64) else 4)


def same(backend: str, x: Tensor, y: Tensor) -> None:
    """Equal, on the CPU to the bit."""
    if on_gpu(backend):
        agree(backend, x, y)
    else:
        assert torch.equal(x, y)


@dataclass(frozen=True)
class LossInputs:
    """Inputs of dual_student_loss."""

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

    def like(
        self, dtype: torch.dtype | None = None, device: str | None = None, learning: tuple[int, ...] = (0, 1, 2)
    ) -> LossInputs:
        """Leaf copies in another dtype, on another device; `learning`: which of teacher, student_a and student_b
        require gradients."""

        def leaf(k: int) -> Tensor | None:
            x = self.inputs[k]
            return None if x is None else x.detach().to(device=device, dtype=dtype).requires_grad_(k in learning)

        target = self.target
        if target is not None:
            target = target.to(device=device, dtype=dtype if target.is_floating_point() else None)
        student_a = leaf(1)
        assert student_a is not None
        return replace(self, teacher=leaf(0), student_a=student_a, student_b=leaf(2), target=target)


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
) -> LossInputs:
    """Random logits with some structure: the teacher is right for most rows."""
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
    return LossInputs(
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
