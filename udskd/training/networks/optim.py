"""The optimiser, its parameter groups, and the learning rate of every step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weights of two and more dimensions decay, vectors (biases, normalisation) do not."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1]
    rest = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def sgd(module: nn.Module, *, lr: float | Tensor, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Fused SGD, with Nesterov momentum unless momentum is 0. An `lr` in a tensor may change in a CUDA graph."""
    groups = parameter_groups(module, weight_decay) or [{"params": []}]  # a module with buffers only has no parameters
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    for group in groups if momentum > 0 else ():
        for parameter in group["params"]:
            # If the scaled loss of the first step overflows, fused SGD skips the step but keeps a momentum buffer that
            # it allocated and never wrote. A first step from zeros gives the same bits as one without a buffer.
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine to zero: a function of the step, so there is no state to save."""

    peak: float
    steps: int
    warmup_steps: int

    @staticmethod
    def from_epochs(peak: float, *, epochs: int, warmup_epochs: float, steps_per_epoch: int) -> Schedule:
        """A warm-up longer than half of the run is cut to half of it: short runs reach the peak and decay too."""
        steps = epochs * steps_per_epoch
        return Schedule(peak, steps, min(round(warmup_epochs * steps_per_epoch), steps // 2))

    def lr(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.peak * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
