"""The public loss: a function and an nn.Module, for every backend."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from udskd.loss import checks, dispatch
from udskd.loss.options import LossOptions, remembered
from udskd.loss.reference import Outputs
from udskd.loss.uncertainty import Trust, Uncertainty

Backend = Literal["auto", "cuda", "cpu", "reference"]
Reduction = Literal["mean", "sum", "none"]


class DualStudentLossOutput(NamedTuple):
    """The loss and its components. Only `loss` is differentiable; the rest is for logs.

    The components are reduced as the loss is, and
    loss == ce_weight (ce_a + ce_b) + kd_weight (kd_a + kd_b) + peer_weight (peer_a + peer_b).
    A term that is not computed (no teacher, no second student, no target, or a weight of 0.0) is 0.
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

    with x^T = softmax(x / T), and w the teacher's certainty, by default 1 - H(teacher) / log C.
    [paper: UDSKD, arXiv 2511.18826: the three terms and w. reconstructed: H at temperature 1, the factors T^2 and
    tau^2, the direction of the students' KL, every coefficient's default.]

    Args:
        teacher: logits [..., C] of any floating dtype, or None for no teacher (weight 1, entropy 0). They may come from
            inference_mode; under torch.compile from no_grad, since PyTorch keeps no inference tensors in a graph.
        student_a: logits [..., C], float64, float32, float16 or bfloat16, any strides; leading dimensions are B rows.
        student_b: logits of the same shape and dtype, or None (distillation of a single student).
        target: int64 labels [...], class probabilities [..., C] of any floating dtype (they get no gradient), or None
            (no cross-entropy).
        temperature: T of the teacher's term, from 1e-6 to 1e6, as every temperature.
        peer_temperature: tau of the students' term; T by default.
        ce_weight: a number, or a tensor ([], [B] or [...]) that receives its gradient; likewise the next two. Finite;
            and not negative, unless it is a tensor that requires a gradient.
        kd_weight: weight of the teacher's term.
        peer_weight: weight of the students' term.
        uncertainty: what w is made from: "entropy", "max_prob" (the largest probability), "margin" (the largest less
            the second), "none" (w = 1), or w itself as a tensor [B] or [...], finite and not negative. w carries no
            gradient.
        trust: "confident" weights by certainty, "uncertain" by 1 - certainty; "none" and a tensor are not changed.
        normalize_weights: divide w by its batch mean, so that it does not change the average weight of distillation.
        uncertainty_temperature: temperature of the softmax that w and `entropy` are taken of.
        detach_peer: a student's peer term gives the peer no gradient; if False, it gives both students a gradient.
        label_smoothing: as in F.cross_entropy, in [0, 1).
        ignore_index: rows with this label add nothing to any term, whatever their logits hold.
        reduction: "mean" over rows that are not ignored (NaN if all are, as in F.cross_entropy; the gradients are 0
            then), "sum", or "none" ([...]).
        backend: "auto" takes the compiled kernels of the tensors' device, or "reference" (plain PyTorch) without them.

    Returns:
        DualStudentLossOutput(loss, ce_a, ce_b, kd_a, kd_b, peer_a, peer_b, weight [...], entropy [...] in nats),
        float32 (float64 if any logits are); [...] are the leading dimensions of the logits. Gradients have each
        input's dtype. weight and entropy are 0 in ignored rows.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. (The values of a weight that is a tensor are
            read on the CPU only, and not under torch.compile: elsewhere its rows' loss and gradients are NaN.)
        IndexError: a label is neither a class nor ignore_index. (On a GPU, and with backend="reference" under
            torch.compile, that row's loss and gradient are NaN instead: the host would have to wait for the labels.)
        NotImplementedError: a second derivative, forward-mode derivatives, or the transforms of torch.func, except with
            backend="reference".

    A class whose logit is -inf is excluded and contributes nothing; a divergence is +inf only where its first argument
    has mass on such a class. NaN, +inf or only -inf in a row make that row NaN and no other.
    """
    given: Any = (
        temperature,
        peer_temperature,
        ce_weight,
        kd_weight,
        peer_weight,
        uncertainty,
        trust,
        normalize_weights,
        uncertainty_temperature,
        detach_peer,
        label_smoothing,
        ignore_index,
        reduction,
        backend,
    )
    options = LossOptions(*given) if torch.compiler.is_compiling() else remembered(given)
    return _checked(teacher, student_a, student_b, target, options)


DEFAULTS: dict[str, Any] = {
    p.name: p.default for p in inspect.signature(dual_student_loss).parameters.values() if p.kind is p.KEYWORD_ONLY
}
"""The options of the loss by name, with their defaults."""


def training_loss(
    teacher: Tensor | None,
    student_a: Tensor,
    student_b: Tensor | None = None,
    target: Tensor | None = None,
    **options: Any,
) -> DualStudentLossOutput:
    """udskd.dual_student_loss for the training loop: on the CPU as on a GPU, an invalid value of a weight makes its row
    NaN. Such values come from networks that have diverged, which the loop reports in a message of its own."""
    given = LossOptions(**{**DEFAULTS, **options})
    return _checked(teacher, student_a, student_b, target, given, refuse=False)


def _checked(
    teacher: Tensor | None,
    student_a: Tensor,
    student_b: Tensor | None,
    target: Tensor | None,
    options: LossOptions,
    *,
    learned: Collection[str] = (),
    refuse: bool = True,
) -> DualStudentLossOutput:
    """Checks the tensors, computes the loss, and restores the leading dimensions.

    learned: names of weights that are learned even if they do not require a gradient now. refuse: whether an invalid
    value of a weight is an error, where values can be read.
    """
    checks.inputs(teacher, student_a, student_b, target)
    backend = dispatch.choose(options.backend, student_a.device)
    if tensors := options.tensors():
        for name, x in tensors.items():
            checks.per_row(name, x, student_a, scalar=name != "uncertainty")
        options = options.replaced({name: _valid(name, x, name in learned, refuse) for name, x in tensors.items()})
    if student_a.dim() == 2:
        out = dispatch.run(backend, teacher, student_a, student_b, target, options)
    else:
        t, b, y = (None if x is None else _rows(x) for x in (teacher, student_b, target))
        out = dispatch.run(backend, t, _rows(student_a), b, y, options)
        out = _leading(out, student_a.shape[:-1], options.reduction)
    ce_a, ce_b, kd_a, kd_b, peer_a, peer_b = out.components.unbind(0)
    return DualStudentLossOutput(out.loss, ce_a, ce_b, kd_a, kd_b, peer_a, peer_b, out.weight, out.entropy)


def _rows(x: Tensor) -> Tensor:
    """[..., C] as [B, C]; labels [...] as [B]."""
    return x.flatten(0, -2) if x.is_floating_point() else x.flatten()


def _leading(out: Outputs, leading: torch.Size, reduction: str) -> Outputs:
    """What is computed of each row, [B], as [...]."""
    loss, components, weight, entropy = out
    if reduction == "none":
        loss, components = loss.view(leading), components.view(6, *leading)
    return Outputs(loss, components, weight.view(leading), entropy.view(leading))


def _valid(name: str, weight: Tensor, learned: bool, refuse: bool) -> Tensor:
    """The weight, [] or [B]. An invalid value is a ValueError if it can be read and is to be refused, else it becomes
    NaN."""
    if name == "uncertainty":
        weight = weight.detach()
    learned = learned or weight.requires_grad
    if refuse and checks.readable(weight):
        checks.weight_values(name, weight, learned)
    else:
        weight = torch.where(checks.is_valid_weight(weight, learned), weight, torch.nan)
    return weight.flatten() if weight.dim() > 1 else weight


class DualStudentLoss(nn.Module):
    """udskd.dual_student_loss as a module: the same options; forward(teacher, student_a, student_b, target).

    Every option is an attribute of the module. ce_weight, kd_weight, peer_weight and uncertainty may be tensors. An
    nn.Parameter among them is a parameter of the module, to be given to the optimiser and learned; any other tensor is
    one of its buffers. Either is in the module's state and moves with it.

    Raises TypeError and ValueError as the function does, for options that are wrong whatever the logits are.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        for name in options:
            if name not in DEFAULTS:
                raise TypeError(f"DualStudentLoss has no option {name!r}; it has {', '.join(DEFAULTS)}")
        self._options = LossOptions(**{**DEFAULTS, **options})
        for name, value in {**DEFAULTS, **options}.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                super().__setattr__(name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute. An option is checked, and a tensor becomes a buffer, as in the constructor."""
        if name not in DEFAULTS:
            super().__setattr__(name, value)
            return
        options = self._options.replaced({name: value})
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and name in vars(self):
            delattr(self, name)
            self.register_buffer(name, value)
        else:
            super().__setattr__(name, value)  # raises TypeError where a buffer or parameter would become a number
        self._options = options

    def forward(
        self,
        teacher: Tensor | None,
        student_a: Tensor,
        student_b: Tensor | None = None,
        target: Tensor | None = None,
    ) -> DualStudentLossOutput:
        """The loss of one batch; see udskd.dual_student_loss."""
        tensors = {name: getattr(self, name) for name in self._options.tensors()}  # moved, loaded or replaced since
        options = self._options.replaced(tensors)
        return _checked(teacher, student_a, student_b, target, options, learned=self._parameters.keys())

    def extra_repr(self) -> str:
        shown = []
        for name, default in DEFAULTS.items():
            value = getattr(self, name)
            if isinstance(value, Tensor):
                shown.append(f"{name}={type(value).__name__} {list(value.shape)}")
            elif value != default:
                shown.append(f"{name}={value!r}")
        return ", ".join(shown)
