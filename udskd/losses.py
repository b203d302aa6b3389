"""The loss: one function and its nn.Module over every backend."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from udskd import _library, checks, ops, reference
from udskd.uncertainty import Trust, Uncertainty

Backend = Literal["auto", "cuda", "cpu", "reference"]
Reduction = Literal["mean", "sum", "none"]
BACKENDS = ("auto", "cuda", "cpu", "reference")

if _library.problem is None:
    ops.register()


class DualStudentLossOutput(NamedTuple):
    """The loss and what it is made of. Only `loss` is differentiable; the rest is for logs.

    The components are reduced as the loss is, and loss == ce_weight (ce_a + ce_b) + kd_weight (kd_a + kd_b) + peer_weight (peer_a + peer_b).
    A term that was not asked for (no teacher, no second student, no target, or a weight of 0.0) is 0.
    """

    loss: Tensor
    ce_a: Tensor
    ce_b: Tensor
    kd_a: Tensor
    kd_b: Tensor
    peer_a: Tensor
    peer_b: Tensor
    weight: Tensor
    entropy: Tensor


def dual_student_loss(
    teacher: Tensor | None,
    student_a: Tensor,
    student_b: Tensor | None = None,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
    peer_temperature: float | None = None,
    ce_weight: float | Tensor = 1.0,
    kd_weight: float | Tensor = 0.9,
    peer_weight: float | Tensor = 0.5,
    uncertainty: Uncertainty | Tensor = "entropy",
    trust: Trust = "confident",
    normalize_weights: bool = False,
    uncertainty_temperature: float = 1.0,
    detach_peer: bool = True,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    backend: Backend = "auto",
) -> DualStudentLossOutput:
    """Uncertainty-weighted distillation of one teacher into two students that also teach each other, as one operator.

        loss = mean over rows of  sum over i in {a, b} of
               ce_weight CE(student_i, target)
             + kd_weight w T^2 KL(teacher^T || student_i^T)
             + peer_weight tau^2 KL(stop_grad(student_j^tau) || student_i^tau),  j the other student

    with x^T = softmax(x / T) and w the teacher's certainty, 1 - H(teacher) / log C by default [paper: UDSKD, arXiv 2511.18826; the weight.
    reconstructed: temperature 1 for H, T^2 on the KL terms, forward KL between the students, the coefficients' defaults].

    Args:
        teacher: logits [..., C], or None for no teacher (deep mutual learning: weight 1, entropy 0). Any floating dtype.
        student_a: logits [..., C]; leading dimensions are flattened to B rows. float64, float32, float16 or bfloat16, any strides.
        student_b: logits of the same shape and dtype, or None (distillation of a single student).
        target: int64 labels [...], class probabilities [..., C], or None (no cross-entropy).
        temperature: T of the teacher's term. peer_temperature: tau of the students' terms, T by default.
        ce_weight, kd_weight, peer_weight: numbers, or tensors ([] or [B]) that receive gradients if they require them.
        uncertainty: what w is made from: "entropy", "max_prob" (largest probability), "margin" (largest less second), "none" (w = 1), or w itself
            as a tensor [B]. w carries no gradient.
        trust: "confident" weights by certainty, "uncertain" by 1 - certainty; "none" and a tensor are taken as they are.
        normalize_weights: divide w by its mean over the batch, so that it does not change the average weight of distillation.
        uncertainty_temperature: temperature of the softmax that w and `entropy` are taken of.
        detach_peer: a peer's term leaves the peer alone; if False, it flows into both students.
        label_smoothing: as in F.cross_entropy, in [0, 1).
        ignore_index: rows with this label add nothing to any term, whatever their logits hold.
        reduction: "mean" over rows that are not ignored, "sum", or "none" ([B]).
        backend: "auto" takes the compiled kernels for the tensors' device where there are any, else "reference" (plain PyTorch).

    Returns:
        DualStudentLossOutput(loss, ce_a, ce_b, kd_a, kd_b, peer_a, peer_b, weight [B], entropy [B] in nats), in float32 (float64 for float64
        logits). weight and entropy are 0 in ignored rows.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        IndexError: a label is neither a class nor ignore_index (CPU; on a GPU that row's loss and gradient are NaN, since looking would wait for it).
        NotImplementedError: a second derivative, except with backend="reference".

    A class whose logit is -inf is excluded and contributes nothing; a divergence is +inf only where its first argument has mass on it. NaN, +inf or
    only -inf in a row make that row NaN and no other.
    """
    peer_temperature = temperature if peer_temperature is None else peer_temperature
    _check(teacher, student_a, student_b, target)
    _check_options(student_a, temperature, peer_temperature, ce_weight, kd_weight, peer_weight, uncertainty, trust, uncertainty_temperature)
    checks.smoothing(label_smoothing)
    checks.choice("reduction", reduction, ops.REDUCTIONS)
    run = _reference if _choose(backend, student_a.device) == "reference" else _compiled
    loss, components, weight, entropy = run(
        _rows(teacher),
        student_a if student_a.dim() == 2 else student_a.flatten(0, -2),
        _rows(student_b),
        _flat_target(target),
        temperature=float(temperature),
        peer_temperature=float(peer_temperature),
        ce_weight=_flat(ce_weight),
        kd_weight=_flat(kd_weight),
        peer_weight=_flat(peer_weight),
        uncertainty=_flat(uncertainty),
        trust=trust,
        normalize_weights=normalize_weights,
        uncertainty_temperature=float(uncertainty_temperature),
        detach_peer=detach_peer,
        label_smoothing=float(label_smoothing),
        ignore_index=ignore_index,
        reduction=reduction,
    )
    return DualStudentLossOutput(loss, *components.unbind(0), weight, entropy)


class DualStudentLoss(nn.Module):
    """udskd.dual_student_loss as a module: the same options, forward(teacher, student_a, student_b=None, target=None)."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        known = dual_student_loss.__kwdefaults__
        for name in options:
            if name not in known:
                raise TypeError(f"DualStudentLoss has no option {name!r}; it has {', '.join(known)}")
        self.options = dict(options)

    def forward(
        self, teacher: Tensor | None, student_a: Tensor, student_b: Tensor | None = None, target: Tensor | None = None
    ) -> DualStudentLossOutput:
        return dual_student_loss(teacher, student_a, student_b, target, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


def _check(teacher: Tensor | None, student_a: Tensor, student_b: Tensor | None, target: Tensor | None) -> None:
    checks.logits("student_a", student_a)
    if student_b is not None:
        checks.logits("student_b", student_b, student_a)
        if student_b.dtype != student_a.dtype:
            raise TypeError(f"student_b must have student_a's dtype {student_a.dtype}, got {student_b.dtype}")
    if teacher is not None:
        checks.logits("teacher", teacher, student_a)
    if target is not None:
        checks.target(target, student_a)


def _check_options(
    like: Tensor,
    temperature: float,
    peer_temperature: float,
    ce_weight: float | Tensor,
    kd_weight: float | Tensor,
    peer_weight: float | Tensor,
    uncertainty: str | Tensor,
    trust: str,
    uncertainty_temperature: float,
) -> None:
    checks.temperature("temperature", temperature)
    checks.temperature("peer_temperature", peer_temperature)
    checks.temperature("uncertainty_temperature", uncertainty_temperature)
    for name, weight in (("ce_weight", ce_weight), ("kd_weight", kd_weight), ("peer_weight", peer_weight)):
        if isinstance(weight, Tensor):
            checks.per_row(name, weight, like, scalar=True)
        else:
            checks.coefficient(name, weight)
    if isinstance(uncertainty, Tensor):
        checks.per_row("uncertainty", uncertainty, like, scalar=False)
    else:
        checks.choice("uncertainty", uncertainty, ops.UNCERTAINTIES)
    checks.choice("trust", trust, ("confident", "uncertain"))


def _choose(backend: str, device: torch.device) -> str:
    """The backend that runs; ValueError if the one asked for cannot."""
    checks.choice("backend", backend, BACKENDS)
    if backend == "auto":
        return device.type if device.type in ("cuda", "cpu") and _library.unavailable(device.type) is None else "reference"
    if backend == "reference":
        return backend
    reason = _library.unavailable(backend)
    if reason is not None:
        raise ValueError(f"backend {backend!r} is unavailable: {reason}")
    if device.type != backend:
        raise ValueError(f"backend {backend!r} needs tensors on {backend!r}, got student_a on {device}")
    return backend


def _rows(x: Tensor | None) -> Tensor | None:
    return x if x is None or x.dim() == 2 else x.flatten(0, -2)


def _flat_target(target: Tensor | None) -> Tensor | None:
    if target is None or not target.is_floating_point():
        return target if target is None or target.dim() == 1 else target.flatten()
    return _rows(target.detach())


def _flat(x: Any) -> Any:
    return x.flatten() if isinstance(x, Tensor) and x.dim() > 1 else x


def _reference(teacher: Tensor | None, a: Tensor, b: Tensor | None, target: Tensor | None, **options: Any) -> reference.Terms:
    hard = target is not None and not target.is_floating_point()
    if hard and target is not None and target.device.type == "cpu" and not torch.compiler.is_compiling():
        bad = ((target < 0) | (target >= a.shape[-1])) & (target != options["ignore_index"])
        if bad.any():
            row = int(bad.nonzero()[0])
            last = a.shape[-1] - 1
            raise IndexError(
                f"target: row {row} has label {int(target[row])}, expected 0 to {last} or ignore_index {options['ignore_index']}"
            )
    return reference.dual_student_loss(teacher, a, b, target, **options)


def _compiled(teacher: Tensor | None, a: Tensor, b: Tensor | None, target: Tensor | None, **options: Any) -> reference.Terms:
    dtype = ops.arithmetic(teacher, a, b)
    tensors, numbers = [], []
    for name in ("ce_weight", "kd_weight", "peer_weight"):
        weight = options[name]
        given = isinstance(weight, Tensor)
        tensors.append(weight.to(dtype) if given else None)
        numbers.append(1.0 if given else float(weight))
    kind = options["uncertainty"]
    certainty = kind.detach().to(dtype) if isinstance(kind, Tensor) else None
    arguments = (
        *(teacher, a, b, target, *tensors, certainty, *numbers),
        *(options["temperature"], options["peer_temperature"], options["uncertainty_temperature"], options["label_smoothing"]),
        *(0 if certainty is not None else ops.UNCERTAINTIES.index(kind), options["trust"] == "uncertain", options["normalize_weights"]),
        *(options["detach_peer"], options["ignore_index"], ops.REDUCTIONS.index(options["reduction"])),
    )
    if torch.compiler.is_compiling():
        return torch.ops.udskd.dual_student_loss.default(*arguments)[:4]
    try:
        return torch.ops.udskd.dual_student_loss.default(*arguments)[:4]
    except RuntimeError as error:
        position = str(error).find("target: row ")
        if position < 0:
            raise
        raise IndexError(str(error)[position:].splitlines()[0]) from None
