"""Optimiser groups, the learning rate of every step, and clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weights of two and more dimensions with decay; vectors (biases, normalisation) without."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1]
    rest = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def sgd(module: nn.Module, *, lr: float | Tensor, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Fused SGD, with Nesterov momentum where there is momentum. A rate in a tensor may change within a CUDA graph."""
    groups = parameter_groups(module, weight_decay) or [{"params": []}]  # what has only buffers needs no update
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    for group in groups if momentum > 0 else ():
        for parameter in group["params"]:
            # A first step that is skipped, because a scaled loss overflowed, would leave fused SGD with a buffer that
            # it allocated and never wrote. From zeros, the first step has the same bits as from none.
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine to zero. A function of the step: there is nothing to save or restore."""

    peak: float
    steps: int
    warmup_steps: int

    @staticmethod
    def from_epochs(peak: float, *, epochs: int, warmup_epochs: float, steps_per_epoch: int) -> Schedule:
        """A warm-up longer than half of the run is cut to it: short trial runs still reach the peak and decay."""
        steps = epochs * steps_per_epoch
        return Schedule(peak, steps, min(round(warmup_epochs * steps_per_epoch), steps // 2))

    def lr(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.peak * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
