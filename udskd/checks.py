"""Bad input to the loss: one sentence naming the argument, what came and what was expected (design: ValueError,
TypeError, IndexError)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from udskd.ops import REDUCTIONS, UNCERTAINTIES

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def logits(name: str, x: object, like: Tensor | None = None) -> None:
    """Logits [..., C] with C >= 2; the shape and device of student_a where that is given."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor of logits, got {type(x).__name__}")
    if x.dtype not in FLOATING:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16 logits, got {x.dtype}")
    if x.dim() < 2 or x.shape[-1] < 2:
        raise ValueError(
            f"{name} must be logits [..., C] of at least two dimensions and two classes, got shape {list(x.shape)}"
        )
    if like is None:
        return
    if x.shape != like.shape:
        raise ValueError(f"{name} and student_a must have the same shape, got {list(x.shape)} and {list(like.shape)}")
    same_device(name, x, like)


def same_device(name: str, x: Tensor, like: Tensor) -> None:
    if x.device != like.device:
        raise ValueError(f"{name} and student_a must be on one device, got {x.device} and {like.device}")


def target(x: object, like: Tensor) -> None:
    """int64 labels [...] or floating class probabilities [..., C]."""
    if not isinstance(x, Tensor):
        raise TypeError(f"target must be a tensor, got {type(x).__name__}")
    if x.dtype in FLOATING:
        expected: Sequence[int] = like.shape
    elif x.dtype == torch.int64:
        expected = like.shape[:-1]
    else:
        raise TypeError(f"target must be int64 labels or floating class probabilities, got {x.dtype}")
    if x.shape != torch.Size(expected):
        kind = "labels" if x.dtype == torch.int64 else "probabilities"
        raise ValueError(
            f"target as {kind} must have shape {list(expected)} for logits {list(like.shape)}, got {list(x.shape)}"
        )
    same_device("target", x, like)


def per_row(name: str, x: Tensor, like: Tensor, *, scalar: bool) -> None:
    """A floating tensor with one number for each row, or (where allowed) one for all."""
    if x.dtype not in FLOATING:
        raise TypeError(f"{name} must be a floating tensor, got {x.dtype}")
    rows = math.prod(like.shape[:-1])
    if not (x.shape == like.shape[:-1] or tuple(x.shape) == (rows,) or (scalar and x.dim() == 0)):
        allowed = f"[] or [{rows}]" if scalar else f"[{rows}]"
        raise ValueError(f"{name} must have shape {allowed} for logits {list(like.shape)}, got {list(x.shape)}")
    same_device(name, x, like)


def coefficient(name: str, x: object) -> None:
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        raise TypeError(f"{name} must be a number or a tensor, got {type(x).__name__}")
    if not 0 <= x < math.inf:  # also refuses NaN; torch.compile cannot trace math.isfinite
        raise ValueError(f"{name} must be finite and not negative, got {x}")


def temperature(name: str, x: object) -> None:
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(x).__name__}")
    if not 0 < x < math.inf:
        raise ValueError(f"{name} must be finite and greater than 0, got {x}")


def smoothing(x: object) -> None:
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        raise TypeError(f"label_smoothing must be a number, got {type(x).__name__}")
    if not 0 <= x < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {x}")


def choice(name: str, x: object, known: Sequence[str]) -> None:
    if not isinstance(x, str) or x not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {x!r}")


def labels(x: Tensor, classes: int, ignore_index: int) -> None:
    """IndexError naming the first label that is neither a class nor ignore_index. Looks at the values."""
    if x.is_floating_point():
        return
    bad = ((x < 0) | (x >= classes)) & (x != ignore_index)
    if bad.any():
        row = int(bad.nonzero()[0])
        expected = f"expected 0 to {classes - 1} or ignore_index {ignore_index}"
        raise IndexError(f"target: row {row} has label {int(x[row])}, {expected}")


def inputs(teacher: object, student_a: object, student_b: object, target_: object) -> None:
    """The four tensors of the loss."""
    logits("student_a", student_a)
    assert isinstance(student_a, Tensor)
    if student_b is not None:
        logits("student_b", student_b, student_a)
        assert isinstance(student_b, Tensor)
        if student_b.dtype != student_a.dtype:
            raise TypeError(f"student_b must have student_a's dtype {student_a.dtype}, got {student_b.dtype}")
    if teacher is not None:
        logits("teacher", teacher, student_a)
    if target_ is not None:
        target(target_, student_a)


def options(like: Tensor, given: dict[str, Any]) -> None:
    """The options of the loss, by name, for logits such as student_a."""
    for name in ("temperature", "peer_temperature", "uncertainty_temperature"):
        temperature(name, given[name])
    for name in ("ce_weight", "kd_weight", "peer_weight"):
        if isinstance(given[name], Tensor):
            per_row(name, given[name], like, scalar=True)
        else:
            coefficient(name, given[name])
    if isinstance(given["uncertainty"], Tensor):
        per_row("uncertainty", given["uncertainty"], like, scalar=False)
    else:
        choice("uncertainty", given["uncertainty"], UNCERTAINTIES)
    choice("trust", given["trust"], ("confident", "uncertain"))
    smoothing(given["label_smoothing"])
    choice("reduction", given["reduction"], REDUCTIONS)
