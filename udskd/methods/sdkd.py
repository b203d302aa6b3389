"""Qi, Zhang, Wang, Fang, Zhang, Wang, Ding: "Guiding Yourself with Your Own Insights: Student-Driven Knowledge
Distillation", ICME 2025."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from udskd.config.schema import ROLES, STUDENTS, Config
from udskd.errors import ConfigError
from udskd.loss.functional import training_loss
from udskd.methods.base import Answers, Features, Needs, Ramp, Setting, Shape
from udskd.methods.operator import LossTerms, OperatorMethod, add_losses, join_students
from udskd.models.features import Layer, choose_layers

_HALF = (torch.bfloat16, torch.float16)
_SHORTEST = 1e-4
"""A shorter feature vector is not normalised: its gradient would grow without bounds."""


class FusionBlock(nn.Module):
    """Fuses the teacher's features into the student's at one layer:

        fused = own + scale · BN(1×1(ReLU(BN(depthwise 3×3(concatenated own and aligned)))))
        aligned = BN(1×1(teacher)), pooled or repeated to the size of own

    That such a block integrates the two networks' intermediate features is the paper's [paper]; its layers are those
    of feature fusion learning (Kim et al., arXiv:1904.09058) [reconstructed]. scale, one number for each channel,
    starts at 0 [reconstructed], so that the block starts as the identity.
    """

    def __init__(self, channels: int, teacher_channels: int) -> None:
        super().__init__()
        both = 2 * channels
        self.align = nn.Sequential(nn.Conv2d(teacher_channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.mix = nn.Sequential(
            *(
                nn.Conv2d(both, both, 3, padding=1, groups=both, bias=False),
                nn.BatchNorm2d(both),
                nn.ReLU(inplace=True),
            ),
            *(nn.Conv2d(both, channels, 1, bias=False), nn.BatchNorm2d(channels)),
        )
        self.scale = nn.Parameter(torch.zeros(channels))

    def forward(self, own: Tensor, teacher: Tensor) -> Tensor:
        """[B, channels, H, W] of own [B, channels, H, W] and teacher [B, teacher_channels, H', W'], in own's dtype."""
        aligned = _resized(self.align(teacher.to(own.dtype)), own.shape[-2:])
        change: Tensor = self.scale[:, None, None] * self.mix(torch.cat([own, aligned], 1))
        return own + change.to(own.dtype)


class ProxyTeacher(nn.Module):
    """The student with its current weights and the teacher's features fused into its own.

    A proxy with the architecture and the weights of the student, of which the fusion blocks alone are trained, is the
    paper's [paper]. The weights are copied at every step, by reading the student's own [reconstructed]. Its parameters
    are those of the blocks: the student is neither trained, nor saved, nor moved with it.
    """

    def __init__(self, student: nn.Module, layers: Sequence[str], blocks: Sequence[FusionBlock]) -> None:
        """blocks[i] works on the output of layers[i], in the order in which the layers run."""
        super().__init__()
        if len(layers) != len(blocks):
            raise ValueError(f"blocks must be one for each of the {len(layers)} layers, got {len(blocks)}")
        self.blocks = nn.ModuleList(blocks)
        self._layers = tuple(layers)
        self._student = (student,)  # in a tuple, where nn.Module does not look

    def forward(self, images: Tensor, teacher_features: Sequence[Tensor]) -> tuple[Tensor, Features]:
        """Logits [B, C], and the fused features of each layer.

        teacher_features: one [B, C', H', W'] for each layer. Batch-norm and dropout work as in the student, training
        or not; batch-norm's running statistics stay as they are.
        """
        (student,) = self._student
        weights = {name: parameter.detach() for name, parameter in student.named_parameters()}
        statistics = {name: buffer.clone() for name, buffer in student.named_buffers()}
        fused: list[Tensor] = []
        with ExitStack() as hooks:
            for name, block, features in zip(self._layers, self.blocks, teacher_features, strict=True):
                layer = student.get_submodule(name)
                hooks.enter_context(layer.register_forward_hook(_replace_by(block, features, fused)))
            logits: Tensor = functional_call(student, {**weights, **statistics}, (images,))
        return logits, tuple(fused)


class StudentDriven(OperatorMethod):
    """Each student i learns from the teacher and from a proxy p of its own, which is the student with the teacher's
    features fused in; the students do not learn from each other:

        L_i = ce_weight·CE_i + kd_weight·T²·KL(t ‖ i) + ramp·peer_weight·τ²·KL(sg p ‖ i)
              + feature_weight · mean over layers, images and positions of ‖u(f_i) - sg u(f_p)‖²
        L_p = ce_weight·CE_p + kd_weight·T²·KL(t ‖ p) + ramp·peer_weight·τ²·KL(sg i ‖ p)

    with u(f) = f / max(‖f‖, 1e-4) over the channels, f_p the outputs of the fusion blocks. The gradient of L_p reaches
    the blocks alone, that of L_i the student alone.

    The proxy, that only its blocks are trained, the KL between the outputs of teacher, proxy and student, and the
    mutual learning that motivates it are the paper's [paper]. The distance between features, the forms of L_i and L_p,
    their weights, which are those of [loss], and which layers are fused are not published, and options [reconstructed].
    The ramp over sdkd.ramp_epochs is that of decoupled distillation's code: at first the proxy equals the student. It
    applies to both directions [reconstructed]. peer_a and peer_b are the students' KL from their proxies.
    """

    name = "sdkd"
    uses_teacher = True
    fixed: ClassVar[dict[str, Any]] = {"uncertainty": "none"}

    def __init__(self, config: Config, shapes: tuple[Shape, ...] = ()) -> None:
        super().__init__(config, shapes)
        if not config.loss.detach_peer:
            raise ConfigError(
                'loss.detach_peer must be true for method "sdkd", got false: a student and its proxy learn separately'
            )
        self.lr = config.sdkd.lr
        self._ramp = Ramp(config.sdkd.ramp_epochs, config.training.epochs)
        self._proxies: dict[str, ProxyTeacher] = {}

    def needs(self, setting: Setting) -> Needs:
        """The features to fuse. ConfigError for a network without these layers."""
        needs = super().needs(setting)
        own = {role: tuple(layer.name for layer in layers) for role, layers in self._layers(setting).items()}
        return replace(needs, layers={**needs.layers, **own})

    def modules(self, setting: Setting) -> dict[str, nn.Module]:
        """The proxies, whose only parameters are those of their fusion blocks."""
        layers = self._layers(setting)
        for role in STUDENTS:
            pairs = zip(layers[role], layers["teacher"], strict=True)
            blocks = [FusionBlock(own.channels, teacher.channels) for own, teacher in pairs]
            names = [layer.name for layer in layers[role]]
            self._proxies[role] = ProxyTeacher(setting.networks[role], names, blocks)
        own = {"fusion_a": self._proxies["student_a"], "fusion_b": self._proxies["student_b"]}
        return {**super().modules(setting), **own}

    def at(self, epoch: float) -> None:
        self._ramp.at(epoch)

    def loss(self, answers: Answers) -> LossTerms:
        """The sum of L_i and L_p of both students, and "proxy_ce" and "feature" of each (the distance unweighted)."""
        targets, own = self.targets(answers)
        changes = self.changes(answers, targets)
        peer_weight = self._ramp.times(self.arguments["peer_weight"], answers.student_a)
        outs, distances = {}, {}
        for role in STUDENTS:
            student, (proxy, fused) = answers.student(role), self._run_proxy(role, answers)
            options = {**self.arguments, "peer_weight": peer_weight, **changes.get(role, {})}
            outs[role] = training_loss(targets[role], student, proxy, answers.target, **options)
            distances[role] = feature_distance(answers.features[role], fused)
        (a, b), (feature_a, feature_b) = outs.values(), distances.values()
        terms = join_students(a, b, None)
        terms["loss"] = terms["loss"] + self.config.sdkd.feature_weight * (feature_a + feature_b)
        terms |= {"peer_a": a.peer_a, "peer_b": b.peer_a, "proxy_ce_a": a.ce_b, "proxy_ce_b": b.ce_b}
        terms |= {"feature_a": feature_a.detach(), "feature_b": feature_b.detach()}
        return add_losses(terms, own)

    def _run_proxy(self, role: str, answers: Answers) -> tuple[Tensor, Features]:
        """The proxy's logits [B, C] in the student's dtype, and the fused features."""
        assert answers.images is not None
        student = answers.student(role)
        with _arithmetic_of(student, *answers.features[role]):
            logits, fused = self._proxies[role](answers.images, answers.features["teacher"])
        return logits.to(student.dtype), fused

    def _layers(self, setting: Setting) -> dict[str, tuple[Layer, ...]]:
        """By role, the layers to fuse, as many for each."""
        options, size, layers = self.config.sdkd, setting.image_size, {}
        for role in ROLES:
            option = f"{role}_layers"
            wanted = getattr(options, option)
            layers[role] = choose_layers(setting.networks[role], size, wanted, options.stages, f"sdkd.{option}")
            if len(layers[role]) != len(layers["teacher"]):
                counts = f"{len(layers['teacher'])} and {len(layers[role])}"
                raise ConfigError(f"sdkd.teacher_layers and sdkd.{option} must be equally many layers, got {counts}")
        return layers


def feature_distance(own: Sequence[Tensor], fused: Sequence[Tensor]) -> Tensor:
    """Mean over layers, images and positions of ‖u(own) - u(fused)‖², u(f) = f / max(‖f‖, 1e-4) over the channels.

    Two tensors [B, C, H, W] for each layer, C, H and W being the layer's. That is 2 - 2·cosine, so a layer counts the
    same whatever its width. float32 (float64 for float64); no gradient reaches fused.
    """
    distances = [(_unit(x) - _unit(y.detach())).square().sum(1).mean() for x, y in zip(own, fused, strict=True)]
    return torch.stack(distances).mean()


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features if features.dtype == torch.float64 else features.float(), dim=1, eps=_SHORTEST)


def _resized(features: Tensor, size: torch.Size) -> Tensor:
    """Pooled to a smaller size, repeated to a larger one."""
    if features.shape[-2:] == size:
        return features
    if features.shape[-2] > size[0]:
        return F.adaptive_avg_pool2d(features, (size[0], size[1]))
    return F.interpolate(features, list(size))


def _replace_by(block: nn.Module, teacher: Tensor, fused: list[Tensor]) -> Callable[..., Tensor]:
    """A forward hook that replaces a layer's output by the block's, and appends it to `fused`."""

    def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        fused.append(block(output, teacher))
        return fused[-1]

    return hook


def _arithmetic_of(*outputs: Tensor) -> AbstractContextManager[object]:
    """Autocast if these outputs are half precision, also for a caller that has left autocast."""
    half = next((x.dtype for x in outputs if x.dtype in _HALF), None)
    return nullcontext() if half is None else torch.autocast(outputs[0].device.type, half)
