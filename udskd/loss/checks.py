"""Bad input to the loss: one sentence naming the argument, what came and what was expected (design: ValueError,
TypeError, IndexError)."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from udskd.loss.ops import REDUCTIONS, UNCERTAINTIES
from udskd.loss.transforms import transforms

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TEMPERATURES = (1e-6, 1e6)
"""Beyond these, exponentials and the factor T^2 leave the range of float32."""
FLOAT32_MAX = torch.finfo(torch.float32).max
COEFFICIENTS = ("ce_weight", "kd_weight", "peer_weight")


def logits(name: str, x: object, like: Tensor | None = None) -> None:
    """Logits [..., C] with C >= 2; the shape and device of student_a where that is given."""
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
    """The type of what is no tensor, and where its logits are if it is the output of a network."""
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
    """ValueError for logits [B, C, ...], as F.cross_entropy takes them, where labels [B, ...] prove that they are."""
    shape = student_a.shape
    if not isinstance(target, Tensor) or target.is_floating_point() or student_a.dim() < 3:
        return
    if target.shape == shape[:-1] or target.shape != shape[:1] + shape[2:]:
        return
    order = ", ".join(str(d) for d in (0, *range(2, student_a.dim()), 1))
    raise ValueError(
        f"student_a must have its classes last, but labels {list(target.shape)} say that they are dimension 1 of "
        f"logits {list(shape)}: permute({order}) the logits of every network"
    )


def per_row(name: str, x: Tensor, like: Tensor, *, scalar: bool) -> None:
    """A floating tensor with one number for each row, or (where allowed) one for all."""
    _dense(name, x)
    if x.dtype not in FLOATING:
        raise TypeError(f"{name} must be a floating tensor, got {x.dtype}")
    rows = math.prod(like.shape[:-1])
    if not (x.shape == like.shape[:-1] or tuple(x.shape) == (rows,) or (scalar and x.dim() == 0)):
        allowed = f"[] or [{rows}]" if scalar else f"[{rows}]"
        raise ValueError(f"{name} must have shape {allowed} for logits {list(like.shape)}, got {list(x.shape)}")
    same_device(name, x, like)


def _shown(x: object) -> str:
    """A number for a message; one that nobody can read is given by its size."""
    if isinstance(x, int) and x.bit_length() > 128:
        return f"an integer of {x.bit_length()} bits"
    return str(x)


def _type(x: object) -> str:
    """The name of a type, such as "str" or "numpy.float32"."""
    kind = type(x)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def readable(x: Tensor) -> bool:
    """Whether values can be looked at here and now: not on a GPU, which that would wait for, nor while a tensor stands
    for others (torch.compile, fake tensors, torch.func)."""
    return not torch.compiler.is_compiling() and x.device.type == "cpu" and not transforms() and not _is_fake(x)


def _is_fake(x: Tensor) -> bool:
    module = sys.modules.get("torch._subclasses.fake_tensor")  # without it there are none
    return module is not None and isinstance(x, module.FakeTensor)


def is_valid_weight(x: Tensor, learned: bool) -> Tensor:
    """Where a weight is finite in float32, and not negative unless it is learned; of the shape of x."""
    below = x <= FLOAT32_MAX if x.dtype == torch.float64 else x < math.inf
    above = x >= 0 if not learned else x >= -FLOAT32_MAX if x.dtype == torch.float64 else x > -math.inf
    return above & below


def weight_values(name: str, x: Tensor, learned: bool) -> None:
    """ValueError naming the first value that no weight can have. Looks at the values."""
    valid = is_valid_weight(x, learned)
    if valid.all():
        return
    first = int((~valid).flatten().nonzero()[0])
    where = f" in row {first}" if x.dim() else ""
    _refuse_weight(name, x.detach().flatten()[first].item(), learned, where)


def _refuse_weight(name: str, value: float, learned: bool = False, where: str = "") -> NoReturn:
    if FLOAT32_MAX < abs(value) < math.inf:
        raise ValueError(f"{name} must fit into float32, at most {FLOAT32_MAX:.3g}, got {_shown(value)}{where}")
    allowed = "finite" if learned else "finite and not negative"
    raise ValueError(f"{name} must be {allowed}, got {_shown(value)}{where}")


def number(name: str, x: object, expected: str = "a number") -> None:
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        raise TypeError(f"{name} must be {expected}, got {_type(x)}")


def coefficient(name: str, x: object) -> None:
    number(name, x, "a number or a tensor")
    assert isinstance(x, (int, float))
    if not 0 <= x <= FLOAT32_MAX:  # also refuses NaN
        _refuse_weight(name, x)


def temperature(name: str, x: object) -> None:
    number(name, x)
    lowest, highest = TEMPERATURES
    if not lowest <= x <= highest:  # type: ignore[operator]  # also refuses NaN
        raise ValueError(f"{name} must be from {lowest:g} to {highest:g}, got {_shown(x)}")


def flag(name: str, x: object) -> None:
    if not isinstance(x, bool):
        raise TypeError(f"{name} must be True or False, got {_type(x)}")


def label(name: str, x: object) -> None:
    if isinstance(x, bool) or not isinstance(x, int):
        raise TypeError(f"{name} must be an integer, got {_type(x)}")
    if not -(2**63) <= x < 2**63:
        raise ValueError(f"{name} must fit into int64, got {_shown(x)}")


def smoothing(x: object) -> None:
    number("label_smoothing", x)
    if not 0 <= x < 1:  # type: ignore[operator]
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


def options(given: Mapping[str, Any], like: Tensor | None = None) -> None:
    """The options of the loss, by name; of those that are tensors also the shapes, for logits such as `like`."""
    for name in ("temperature", "peer_temperature", "uncertainty_temperature"):
        if name != "peer_temperature" or given[name] is not None:
            temperature(name, given[name])
    for name in COEFFICIENTS:
        if not isinstance(given[name], Tensor):
            coefficient(name, given[name])
        elif like is not None:
            per_row(name, given[name], like, scalar=True)
    if isinstance(given["uncertainty"], Tensor):
        if like is not None:
            per_row("uncertainty", given["uncertainty"], like, scalar=False)
    else:
        choice("uncertainty", given["uncertainty"], UNCERTAINTIES)
    choice("trust", given["trust"], ("confident", "uncertain"))
    smoothing(given["label_smoothing"])
    flag("normalize_weights", given["normalize_weights"])
    flag("detach_peer", given["detach_peer"])
    label("ignore_index", given["ignore_index"])
    choice("reduction", given["reduction"], REDUCTIONS)
