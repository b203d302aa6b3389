"""Which implementation runs, and the step from checked arguments to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from udskd import _library, autograd, checks, forms, ops, reference

BACKENDS = ("auto", "cuda", "cpu", "reference")

if _library.problem is None:
    ops.register()


def choose(backend: str, device: torch.device) -> str:
    """The backend that runs for tensors on a device; ValueError if the one asked for cannot."""
    checks.choice("backend", backend, BACKENDS)
    if backend == "auto":
        return device.type if _library.has_kernels(device.type) else "reference"
    if backend == "reference":
        return backend
    reason = _library.unavailable(backend)
    if reason is not None:
        raise ValueError(f"backend {backend!r} is unavailable: {reason}")
    if device.type != backend:
        raise ValueError(f"backend {backend!r} needs tensors on {backend!r}, got student_a on {device}")
    return backend


def run(backend: str, *inputs: Tensor | None, **options: Any) -> reference.Terms:
    """(loss, components, weight, entropy) of teacher, student_a, student_b and target with any leading dimensions."""
    teacher, student_a, student_b, target = (None if x is None else _rows(x) for x in inputs)
    assert student_a is not None
    if target is not None:
        target = target.detach() if target.is_floating_point() else target.flatten()
    implementation = _reference if backend == "reference" else _compiled
    for name in ("ce_weight", "kd_weight", "peer_weight", "uncertainty"):
        if isinstance(options[name], Tensor) and options[name].dim() > 1:
            options[name] = options[name].flatten()
    return implementation(teacher, student_a, student_b, target, **options)


def _rows(x: Tensor) -> Tensor:
    return x.flatten(0, -2) if x.is_floating_point() and x.dim() != 2 else x


def _reference(
    teacher: Tensor | None, a: Tensor, b: Tensor | None, target: Tensor | None, **options: Any
) -> reference.Terms:
    if target is not None and target.device.type == "cpu" and not torch.compiler.is_compiling():
        checks.labels(target, a.shape[-1], options["ignore_index"])
    return reference.dual_student_loss(teacher, a, b, target, **options)


def _compiled(
    teacher: Tensor | None, a: Tensor, b: Tensor | None, target: Tensor | None, **options: Any
) -> reference.Terms:
    dtype = ops.arithmetic(teacher, a, b)
    weights = [options[name] for name in ("ce_weight", "kd_weight", "peer_weight")]
    tensors = tuple(weight.to(dtype) if isinstance(weight, Tensor) else None for weight in weights)
    kind = options["uncertainty"]
    certainty = kind.detach().to(dtype) if isinstance(kind, Tensor) else None
    form = forms.choose((teacher, a, b), tensors, options["reduction"])
    outputs = _call(
        form,
        *(teacher, a, b, target),
        *tensors,
        certainty,
        *(1.0 if isinstance(weight, Tensor) else float(weight) for weight in weights),
        *(options["temperature"], options["peer_temperature"], options["uncertainty_temperature"]),
        options["label_smoothing"],
        ops.UNCERTAINTIES.index("none" if certainty is not None else kind),
        *(options["trust"] == "uncertain", options["normalize_weights"], options["detach_peer"]),
        *(options["ignore_index"], ops.REDUCTIONS.index(options["reduction"])),
    )
    return outputs[0], outputs[1], outputs[2], outputs[3]


def _call(form: str, *arguments: Any) -> tuple[Tensor, ...]:
    """The operator; its complaint about a label, which crosses PyTorch's boundary as a RuntimeError, as IndexError."""
    outputs: tuple[Tensor, ...]
    if form == "traced":
        outputs = torch.ops.udskd.dual_student_loss.default(*arguments)
        return outputs
    try:
        if form != "loss":
            outputs = autograd.Loss.apply(form == "fused", *arguments)
        elif arguments[1].device.type == "cpu":
            outputs = torch.ops.udskd.dual_student_loss_fused.default(*arguments, False, False, False)
        else:
            outputs = torch.ops.udskd.dual_student_loss.default(*arguments)
    except RuntimeError as error:
        position = str(error).find("target: row ")
        if position < 0:
            raise
        raise IndexError(str(error)[position:].splitlines()[0]) from None
    return outputs
