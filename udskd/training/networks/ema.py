"""The exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Average of the weights, and of batch-norm's statistics, which belong to them; from the first update on.

    The arithmetic is torch.optim.swa_utils'; its AveragedModel is not used because its count of updates, a tensor,
    makes the host wait for the GPU at every step.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False)
        self._update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._started = False

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the network's present weights. Counters (integer buffers) are copied."""
        mine, theirs = self.module.state_dict(), module.state_dict()
        averaged = [name for name, tensor in mine.items() if tensor.is_floating_point()] if self._started else []
        if averaged:
            self._update([mine[name] for name in averaged], [theirs[name] for name in averaged], None)
        for name in mine.keys() - set(averaged):
            mine[name].copy_(theirs[name])
        self._started = True

    def state(self) -> dict[str, Any]:
        """For --resume."""
        return {"module": self.module.state_dict(), "started": self._started}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what state() gave."""
        self.module.load_state_dict(state["module"])
        self._started = bool(state["started"])
