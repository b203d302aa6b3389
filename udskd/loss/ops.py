"""The compiled operators in Python: a table of the backends that have them, fake kernels, and the derivative for
PyTorch's tracers.

The schemas are in csrc/ops.cpp. The forward operator returns a few numbers of each row, `rows`, which the backward
operator needs beside the logits; it saves nothing of the logits' size. Only the loss is differentiable.

There are two derivatives. An exported program contains the bare operators: only a derivative that is registered with
them, as here, survives torch.export. Eager calls take the torch.autograd.Function of udskd/loss/autograd.py, which is
several times cheaper; Dynamo cannot trace it (Tensor.is_inference, the value of grad_output).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from udskd import _native
from udskd.loss.options import REDUCTIONS, Modes
from udskd.loss.transforms import no_transforms


@dataclass(frozen=True)
class Operators:
    """The operators of one backend."""

    namespace: Any
    """Of torch.ops."""
    device: str
    """The type of the device of its tensors."""
    columns: int
    """How many numbers of a row it saves for the backward pass: csrc/loss, enum Column and SavedColumn."""
    gpu: bool
    """Whether it computes as a GPU does: one launch for each pass, and the host waits for nothing."""


OPERATORS = {
    "cuda": Operators(torch.ops.udskd, "cuda", columns=20, gpu=True),
    "cpu": Operators(torch.ops.udskd, "cpu", columns=2, gpu=False),
}


class Arguments(NamedTuple):
    """UDSKD_LOSS_ARGUMENTS of csrc/ops.cpp."""

    teacher: Tensor | None
    student_a: Tensor
    student_b: Tensor | None
    target: Tensor | None
    ce_weights: Tensor | None
    kd_weights: Tensor | None
    peer_weights: Tensor | None
    certainty: Tensor | None
    scalars: list[float]
    modes: list[int]

    @property
    def differentiable(self) -> tuple[Tensor | None, ...]:
        """The tensors for which there are gradients, in the order of NeededGradients and Gradients."""
        logits = self.teacher, self.student_a, self.student_b
        return (*logits, self.ce_weights, self.kd_weights, self.peer_weights)

    @property
    def saved(self) -> tuple[Tensor | None, ...]:
        """The tensors that the backward operator needs; `rows` has the certainties."""
        logits = self.teacher, self.student_a, self.student_b
        return (*logits, self.target, self.ce_weights, self.kd_weights, self.peer_weights)

    @classmethod
    def from_saved(cls, saved: Sequence[Tensor | None], scalars: list[float], modes: list[int]) -> Arguments:
        """The arguments of the backward operator."""
        teacher, student_a, student_b, target, ce_weights, kd_weights, peer_weights = saved
        assert student_a is not None
        tensors = teacher, student_a, student_b, target, ce_weights, kd_weights, peer_weights
        return cls(*tensors, certainty=None, scalars=scalars, modes=modes)


class NeededGradients(NamedTuple):
    """Which gradients are needed."""

    teacher: bool
    student_a: bool
    student_b: bool
    ce_weights: bool = False
    kd_weights: bool = False
    peer_weights: bool = False

    @property
    def logits(self) -> list[bool]:
        return [self.teacher, self.student_a, self.student_b]

    @property
    def coefficients(self) -> bool:
        return self.ce_weights or self.kd_weights or self.peer_weights

    def select(self, values: Iterable[Any]) -> list[Any]:
        """Those of the values, in the order of the fields, whose gradients are needed."""
        return [x for x, needed in zip(values, self) if needed]  # noqa: B905 (the values may end after the logits)


NO_LOGITS = [False, False, False]
"""The forward operator's argument `needs` where no gradient is needed."""


class Gradients(NamedTuple):
    """None for each gradient that is not needed."""

    teacher: Tensor | None
    student_a: Tensor | None
    student_b: Tensor | None
    ce_weights: Tensor | None
    kd_weights: Tensor | None
    peer_weights: Tensor | None


def arithmetic(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any of the logits are, else float32."""
    for x in tensors:
        if x is not None and x.dtype is torch.float64:
            return torch.float64
    return torch.float32


def backward(
    namespace: Any, grad_loss: Tensor, rows: Tensor, arguments: Arguments, needs: NeededGradients
) -> Gradients:
    """The gradients, from the forward operator's arguments and its output `rows`."""
    *logits, weights = namespace.dual_student_loss_backward.default(
        grad_loss.to(rows.dtype), rows, *arguments, [*needs.logits, needs.coefficients]
    )
    teacher, student_a, student_b = (x if needed else None for x, needed in zip(logits, needs.logits, strict=True))
    ce, kd, peer = weights.unbind(1) if needs.coefficients else (None, None, None)
    return Gradients(
        teacher,
        student_a,
        student_b,
        _like(arguments.ce_weights, ce, needs.ce_weights),
        _like(arguments.kd_weights, kd, needs.kd_weights),
        _like(arguments.peer_weights, peer, needs.peer_weights),
    )


def _like(coefficient: Tensor | None, per_row: Tensor | None, needed: bool) -> Tensor | None:
    """The gradient of a coefficient, one number or [rows], from its column."""
    if not needed or coefficient is None or per_row is None:
        return None
    return per_row.sum() if coefficient.dim() == 0 else per_row


# --- fake kernels ---------------------------------------------------------------------------------------------------


def _forward_fake(namespace: Any, *arguments: Any) -> tuple[Tensor, ...]:
    given = Arguments(*arguments)
    _check_one_device(given)
    a, rows = given.student_a, given.student_a.shape[0]  # not len(), which would fix a dynamic number of rows
    dtype = arithmetic(given.teacher, given.student_a, given.student_b)
    unreduced = REDUCTIONS[Modes(*given.modes).reduction] == "none"
    shapes = ((rows,), (6, rows)) if unreduced else ((), (6,))
    saved = (rows, _columns(namespace, a.device.type))
    return tuple(a.new_empty(shape, dtype=dtype) for shape in (*shapes, (rows,), (rows,), saved))


def _fused_fake(namespace: Any, *arguments: Any) -> tuple[Tensor, ...]:
    *inputs, needs = arguments
    outputs = _forward_fake(namespace, *inputs)
    return (*outputs, *_fake_gradients(Arguments(*inputs), needs, outputs[-1]))


def _backward_fake(grad_loss: Tensor, rows: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *inputs, needs = arguments
    given = Arguments(*inputs)
    _check_one_device(given, grad_loss, rows)
    *logits, coefficients = needs
    weights = rows.new_empty((rows.shape[0], 3)) if coefficients else rows.new_empty(0)
    return (*_fake_gradients(given, logits, rows), weights)


def _scale_fake(grad_loss: Tensor, rows: Tensor, *gradients: Tensor) -> None:
    """Returns nothing: the operator scales the gradients in place."""


def _columns(namespace: Any, device: str) -> int:
    saved = (x.columns for x in OPERATORS.values() if x.namespace is namespace and x.device == device)
    return next(saved, 0)


def _check_one_device(arguments: Arguments, *others: Tensor) -> None:
    """As the kernels do: PyTorch calls the fake kernels also for tensors of which one alone is on "meta"."""
    like = arguments.student_a.device
    for x in (*arguments, *others):
        if isinstance(x, Tensor) and x.device != like:
            raise RuntimeError(f"tensors must be on one device, got {x.device} beside student_a on {like}")


def _fake_gradients(arguments: Arguments, needs: list[bool], like: Tensor) -> list[Tensor]:
    """For teacher, student_a and student_b: an empty tensor where no gradient is needed."""
    pairs = zip((arguments.teacher, arguments.student_a, arguments.student_b), needs, strict=True)
    return [x.new_empty(x.shape) if x is not None and needed else like.new_empty(0) for x, needed in pairs]


# --- the derivative for tracers -------------------------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, _, _, rows = output
    arguments = Arguments(*inputs)
    ctx.save_for_backward(rows, *arguments.saved)
    ctx.scalars, ctx.modes = arguments.scalars, arguments.modes
    ctx.mark_non_differentiable(*output[1:])


def _backward(namespace: Any, ctx: Any, grad_loss: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    rows, *saved = ctx.saved_tensors
    arguments = Arguments.from_saved(saved, ctx.scalars, ctx.modes)
    needed: Any = Arguments(*ctx.needs_input_grad)
    to = backward(namespace, grad_loss, rows, arguments, NeededGradients(*needed.differentiable))
    coefficients = to.ce_weights, to.kd_weights, to.peer_weights
    return to.teacher, to.student_a, to.student_b, None, *coefficients, None, None, None


def _no_second_derivative(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError(
        "udskd.dual_student_loss has first derivatives only; for second derivatives use backend='reference', "
        "which PyTorch differentiates as often as needed"
    )


class _Guarded(torch.library.Library):
    """A library whose operators refuse the derivatives that they do not have, where PyTorch would drop them."""

    def impl(self, op_name: Any, fn: Callable[..., Any], *rest: Any, **options: Any) -> None:
        """Registers fn(keyset, *arguments) behind a check of the arguments."""

        def guarded(keyset: Any, *arguments: Any) -> Any:
            no_transforms(*[x for x in arguments if isinstance(x, Tensor)])
            return fn(keyset, *arguments)

        super().impl(op_name, guarded, *rest, **options)  # type: ignore[no-untyped-call]


_LIBRARIES: list[torch.library.Library] = []
"""Registrations end with the life of their library."""


def register(name: str = "udskd") -> None:
    """Registers the fake kernels and derivatives for the operators of a namespace, whose library is loaded."""
    namespace = getattr(torch.ops, name)
    fakes: dict[str, Callable[..., Any]] = {
        "": partial(_forward_fake, namespace),
        "_fused": partial(_fused_fake, namespace),
        "_backward": _backward_fake,
        "_scale": _scale_fake,
    }
    for suffix, fake in fakes.items():
        torch.library.register_fake(f"{name}::dual_student_loss{suffix}", fake)
    library = _Guarded(name, "FRAGMENT")  # type: ignore[no-untyped-call]
    _LIBRARIES.append(library)
    torch.library.register_autograd(
        f"{name}::dual_student_loss", partial(_backward, namespace), setup_context=_setup_context, lib=library
    )
    torch.library.register_autograd(f"{name}::dual_student_loss_backward", _no_second_derivative)


if _native.problem is None:
    register()
