"""Checks of the tensors that the loss is given. A ValueError, TypeError or IndexError names the argument, its value and
what is expected."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from udskd.loss.transforms import transforms

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FLOAT32_MAX = torch.finfo(torch.float32).max


def logits(name: str, x: object, like: Tensor | None = None) -> None:
    """Logits [..., C] with C >= 2, of the shape and on the device of `like` (student_a) if it is given."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor of logits, got {_described(x)}")
    _dense(name, x)
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


def _described(x: object) -> str:
    """The type of an argument that is not a tensor, with a hint where a network's output holds its logits."""
    kind = type(x).__name__
    if isinstance(getattr(x, "logits", None), Tensor):
        return f"{kind}: give its .logits"
    if isinstance(x, Mapping):
        return f'{kind}: give the tensor in it, such as output["logits"]'
    if isinstance(x, (tuple, list)) and x and isinstance(x[0], Tensor):
        return f"{kind}: give the tensor in it, such as output[0]"
    if type(x).__module__ == "numpy":
        return f"{kind} of NumPy: convert it by torch.from_numpy"
    return kind


def _dense(name: str, x: Tensor) -> None:
    if x.is_nested:
        raise TypeError(
            f"{name} must be a dense tensor, got a nested one: pad it (torch.nested.to_padded_tensor) and give the "
            "padding the label ignore_index"
        )
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {x.layout}: convert it by .to_dense()")


def same_device(name: str, x: Tensor, like: Tensor) -> None:
    if x.device != like.device:
        raise ValueError(f"{name} and student_a must be on one device, got {x.device} and {like.device}")


def target(x: object, like: Tensor) -> None:
    """int64 labels [...] or floating class probabilities [..., C]."""
    if not isinstance(x, Tensor):
        raise TypeError(f"target must be a tensor, got {_described(x)}")
    _dense("target", x)
    one_hot = " (one-hot labels are probabilities: convert them by .float())"
    if x.dtype in FLOATING:
        expected: Sequence[int] = like.shape
    elif x.dtype == torch.int64:
        expected = like.shape[:-1]
    else:
        hint = one_hot if x.shape == like.shape else ""
        raise TypeError(f"target must be int64 labels or floating class probabilities, got {x.dtype}{hint}")
    if x.shape != torch.Size(expected):
        kind = "labels" if x.dtype == torch.int64 else "probabilities"
        hint = one_hot if x.dtype == torch.int64 and x.shape == like.shape else ""
        raise ValueError(
            f"target as {kind} must have shape {list(expected)} for logits {list(like.shape)}, got {list(x.shape)}"
            f"{hint}"
        )
    same_device("target", x, like)


def classes_last(student_a: Tensor, target: object) -> None:
    """ValueError for logits [B, C, ...], the layout of F.cross_entropy, if labels [B, ...] show that layout."""
    shape = student_a.shape
    if not isinstance(target, Tensor) or target.is_floating_point() or student_a.dim() < 3:
        return
    if target.shape == shape[:-1] or target.shape != shape[:1] + shape[2:]:
        return
    order = ", ".join(str(d) for d in (0, *range(2, student_a.dim()), 1))
    raise ValueError(
        f"student_a must have its classes last, but labels {list(target.shape)} show that they are dimension 1 of "
        f"logits {list(shape)}: permute({order}) the logits of every network"
    )


def per_row(name: str, x: Tensor, like: Tensor, *, scalar: bool) -> None:
    """A floating tensor with one number for each row or, with scalar=True, one for all rows."""
    _dense(name, x)
    if x.dtype not in FLOATING:
        raise TypeError(f"{name} must be a floating tensor, got {x.dtype}")
    rows = math.prod(like.shape[:-1])
    if not (x.shape == like.shape[:-1] or tuple(x.shape) == (rows,) or (scalar and x.dim() == 0)):
        allowed = f"[] or [{rows}]" if scalar else f"[{rows}]"
        raise ValueError(f"{name} must have shape {allowed} for logits {list(like.shape)}, got {list(x.shape)}")
    same_device(name, x, like)


def printed(x: object) -> str:
    """A number for a message; an integer with too many digits to read is given by its size."""
    if isinstance(x, int) and x.bit_length() > 128:
        return f"an integer of {x.bit_length()} bits"
    return str(x)


def readable(x: Tensor) -> bool:
    """Whether the values of a tensor can be read: not on a GPU, for which the host would have to wait, and not under
    torch.compile, torch.func or for fake tensors, where a tensor has no values of its own."""
    return not torch.compiler.is_compiling() and x.device.type == "cpu" and not transforms() and not _is_fake(x)


def _is_fake(x: Tensor) -> bool:
    module = sys.modules.get("torch._subclasses.fake_tensor")  # not imported: there is no fake tensor
    return module is not None and isinstance(x, module.FakeTensor)


def is_valid_weight(x: Tensor, learned: bool) -> Tensor:
    """For each element of a weight, whether it is finite in float32 and, unless the weight is learned, not negative."""
    below = x <= FLOAT32_MAX if x.dtype == torch.float64 else x < math.inf
    above = x >= 0 if not learned else x >= -FLOAT32_MAX if x.dtype == torch.float64 else x > -math.inf
    return above & below


def weight_values(name: str, x: Tensor, learned: bool) -> None:
    """ValueError naming the first value that a weight cannot have. Reads the values."""
    valid = is_valid_weight(x, learned)
    if valid.all():
        return
    first = int((~valid).flatten().nonzero()[0])
    where = f" in row {first}" if x.dim() else ""
    refuse_weight(name, x.detach().flatten()[first].item(), learned, where)


def refuse_weight(name: str, value: float, learned: bool = False, where: str = "") -> NoReturn:
    """ValueError for a weight that is negative, not finite, or too large for float32."""
    if FLOAT32_MAX < abs(value) < math.inf:
        raise ValueError(f"{name} must fit into float32, at most {FLOAT32_MAX:.3g}, got {printed(value)}{where}")
    allowed = "finite" if learned else "finite and not negative"
    raise ValueError(f"{name} must be {allowed}, got {printed(value)}{where}")


def labels(x: Tensor, classes: int, ignore_index: int) -> None:
    """IndexError naming the first label that is neither a class nor ignore_index. Reads the values."""
    if x.is_floating_point():
        return
    bad = ((x < 0) | (x >= classes)) & (x != ignore_index)
    if bad.any():
        row = int(bad.nonzero()[0])
        expected = f"expected 0 to {classes - 1} or ignore_index {ignore_index}"
        raise IndexError(f"target: row {row} has label {int(x[row])}, {expected}")


def inputs(teacher: object, student_a: object, student_b: object, target_: object) -> None:
    """The arguments of the loss that are not options."""
    logits("student_a", student_a)
    assert isinstance(student_a, Tensor)
    classes_last(student_a, target_)
    if student_b is not None:
        logits("student_b", student_b, student_a)
        assert isinstance(student_b, Tensor)
        if student_b.dtype != student_a.dtype:
            raise TypeError(f"student_b must have student_a's dtype {student_a.dtype}, got {student_b.dtype}")
    if teacher is not None:
        logits("teacher", teacher, student_a)
    if target_ is not None:
        target(target_, student_a)
