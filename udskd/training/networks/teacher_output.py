"""What the frozen teacher says about a batch: logits, and where a method asks for it several answers, or features."""

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
from udskd.models.features import Tapped
from udskd.training.networks.inference import Frozen, fold
from udskd.training.runtime.device import Runtime

SHIFT = 0.125
"""Of the image's side: how far a view is moved, at most, in each direction."""


class Said(NamedTuple):
    """The teacher's part of a batch, without gradients."""

    logits: Tensor | None
    """[B, C]; None where there is no teacher."""
    responses: Tensor | None = None
    """[k, B, C], where asked for."""
    features: tuple[Tensor, ...] = ()
    """[B, C', H, W] each, of the layers asked for."""


Saying = Callable[[Tensor], Said]


def saying(config: Config, runtime: Runtime, module: nn.Module, needs: Needs, ordinary: bool) -> Saying:
    """What the teacher answers to images [B, 3, S, S], in the arithmetic of a run with these options.

    ordinary: as for Frozen. Raises ConfigError if this network cannot give what is needed.
    """
    dtype = runtime.dtype_of(config.teacher.precision)
    layers = needs.layers.get("teacher", ())
    if layers:
        return _WithFeatures(module, runtime, dtype, layers, config.training.compile)
    if needs.responses and needs.source == "dropout":
        return _WithDropout(module, runtime, dtype, needs.responses, config.variance.dropout)
    frozen = Frozen(module, runtime, dtype, config.training.compile, ordinary or needs.responses > 0)
    if needs.responses:
        flip, count = config.data.flip, needs.responses
        return lambda images: Said(frozen(images), torch.stack([frozen(view(images, flip)) for _ in range(count)]))
    return lambda images: Said(frozen(images))


class _WithFeatures:
    """Unfolded: folding batch-norm away would take the layers' names with it."""

    def __init__(
        self, module: nn.Module, runtime: Runtime, dtype: torch.dtype, layers: tuple[str, ...], compiled: bool
    ) -> None:
        own = runtime.place(copy.deepcopy(module).eval().requires_grad_(False))
        tapped = Tapped(own.to(dtype), layers)
        self._tapped: Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]] = (
            torch.compile(tapped) if compiled else tapped
        )
        self._dtype = dtype

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Said:
        logits, features = self._tapped(images.to(self._dtype))
        return Said(logits, features=features)


class _WithDropout:
    """k answers of one pass: only what goes into the last layer is dropped at random."""

    def __init__(self, module: nn.Module, runtime: Runtime, dtype: torch.dtype, count: int, p: float) -> None:
        self._module = runtime.place(fold(copy.deepcopy(module).eval().requires_grad_(False))).to(dtype)
        self._head = last_linear(self._module)
        self._head.register_forward_pre_hook(self._keep)
        self._dtype, self._count, self._p, self._kept = dtype, count, p, torch.empty(0)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (self._kept,) = inputs

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Said:
        logits, head, kept = self._module(images.to(self._dtype)), self._head, self._kept
        answers = [F.linear(F.dropout(kept, self._p), head.weight, head.bias) for _ in range(self._count)]
        return Said(logits, torch.stack(answers))


def last_linear(module: nn.Module) -> nn.Linear:
    """The layer that gives the logits. ConfigError where it is of another kind."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise ConfigError(
            'variance.source is "dropout", but the teacher\'s last layer is not linear: take "draws" or "views"'
        )
    return layers[-1]


def view(images: Tensor, flip: float) -> Tensor:
    """Each image [B, 3, S, S] moved a little and with probability `flip` mirrored, its border reflected."""
    rows, random = len(images), torch.rand(3, len(images), device=images.device, dtype=images.dtype)
    places = images.new_zeros(rows, 2, 3)
    places[:, 0, 0] = torch.where(random[0] < flip, -1.0, 1.0)
    places[:, 1, 1] = 1.0
    places[:, :, 2] = 2 * SHIFT * (2 * random[1:].T - 1)  # a whole side is 2 in these coordinates
    grid = F.affine_grid(places, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
