"""The frozen teacher's output for a batch: logits and, where a method needs them, several responses or features."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from udskd.config.schema import Config
from udskd.errors import ConfigError
from udskd.methods import Needs
from udskd.models.features import FeatureExtractor
from udskd.training.networks.inference import FrozenNetwork, fold
from udskd.training.runtime.device import Runtime

MAX_SHIFT = 0.125
"""Largest translation of a random view in each direction, as a fraction of the image's side. Unmeasured."""


class TeacherOutput(NamedTuple):
    """The teacher's output for one batch, without gradients."""

    logits: Tensor | None
    """[B, C]; None where there is no teacher."""
    responses: Tensor | None = None
    """Logits of k stochastic passes, [k, B, C], where the method needs them."""
    features: tuple[Tensor, ...] = ()
    """Outputs [B, C', H, W] of the layers that the method needs, in its order."""


TeacherForward = Callable[[Tensor], TeacherOutput]
"""Images [B, 3, S, S] -> the teacher's output."""


def build_teacher_forward(
    config: Config, runtime: Runtime, module: nn.Module, needs: Needs, for_autograd: bool
) -> TeacherForward:
    """The forward pass that returns what `needs` asks of the teacher, in the arithmetic of a run with this config.

    for_autograd: as for FrozenNetwork. Raises ConfigError if this network cannot return what is needed.
    """
    dtype = runtime.dtype_of(config.teacher.precision)
    layers = needs.layers.get("teacher", ())
    if layers:
        return _TeacherWithFeatures(module, runtime, dtype, layers, config.training.compile)
    if needs.responses and needs.source == "dropout":
        return _TeacherWithDropout(module, runtime, dtype, needs.responses, config.variance.dropout)
    frozen = FrozenNetwork(module, runtime, dtype, config.training.compile, for_autograd or needs.responses > 0)
    if needs.responses:
        return _with_random_views(frozen, config.data.flip, needs.responses)
    return lambda images: TeacherOutput(frozen(images))


def _with_random_views(frozen: FrozenNetwork, flip: float, count: int) -> TeacherForward:
    def forward(images: Tensor) -> TeacherOutput:
        logits = frozen(images)
        return TeacherOutput(logits, torch.stack([frozen(random_view(images, flip)) for _ in range(count)]))

    return forward


class _TeacherWithFeatures:
    """Logits and features. Batch-norm is not folded: folding would remove layers that the method names."""

    def __init__(
        self, module: nn.Module, runtime: Runtime, dtype: torch.dtype, layers: tuple[str, ...], compiled: bool
    ) -> None:
        frozen = runtime.place(copy.deepcopy(module).eval().requires_grad_(False))
        tapped = FeatureExtractor(frozen.to(dtype), layers)
        self._tapped: Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]] = (
            torch.compile(tapped) if compiled else tapped
        )
        self._dtype = dtype

    @torch.no_grad()
    def __call__(self, images: Tensor) -> TeacherOutput:
        logits, features = self._tapped(images.to(self._dtype))
        return TeacherOutput(logits, features=features)


class _TeacherWithDropout:
    """Logits and k responses from one forward pass: dropout is applied to the input of the last layer only."""

    def __init__(self, module: nn.Module, runtime: Runtime, dtype: torch.dtype, count: int, p: float) -> None:
        self._module = runtime.place(fold(copy.deepcopy(module).eval().requires_grad_(False))).to(dtype)
        self._head = last_linear(self._module)
        self._head.register_forward_pre_hook(self._keep_head_input)
        self._dtype, self._count, self._p, self._head_input = dtype, count, p, torch.empty(0)

    def _keep_head_input(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (self._head_input,) = inputs

    @torch.no_grad()
    def __call__(self, images: Tensor) -> TeacherOutput:
        logits, head = self._module(images.to(self._dtype)), self._head
        responses = [F.linear(F.dropout(self._head_input, self._p), head.weight, head.bias) for _ in range(self._count)]
        return TeacherOutput(logits, torch.stack(responses))


def last_linear(module: nn.Module) -> nn.Linear:
    """The network's last linear layer. ConfigError if it has none."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise ConfigError(
            'variance.source is "dropout", but the teacher\'s last layer is not linear: take "draws" or "views"'
        )
    return layers[-1]


def random_view(images: Tensor, flip: float) -> Tensor:
    """Translate each image [B, 3, S, S] by up to MAX_SHIFT and mirror it with probability `flip`; borders reflect."""
    rows, random = len(images), torch.rand(3, len(images), device=images.device, dtype=images.dtype)
    transforms = images.new_zeros(rows, 2, 3)
    transforms[:, 0, 0] = torch.where(random[0] < flip, -1.0, 1.0)
    transforms[:, 1, 1] = 1.0
    transforms[:, :, 2] = 2 * MAX_SHIFT * (2 * random[1:].T - 1)  # a side has length 2 in grid_sample's coordinates
    grid = F.affine_grid(transforms, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
