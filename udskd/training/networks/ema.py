"""The exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ExponentialMovingAverage:
    """The average of a network's weights and of its batch-norm statistics, from the first update on.

    The arithmetic is that of torch.optim.swa_utils. Its AveragedModel is not used: it counts its updates in a tensor,
    and reading that tensor makes the host wait for the GPU at every step.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False)
        self._update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._started = False

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the network's present weights. Integer buffers are copied."""
        average, current = self.module.state_dict(), module.state_dict()
        averaged = [name for name, tensor in average.items() if tensor.is_floating_point()] if self._started else []
        if averaged:
            self._update([average[name] for name in averaged], [current[name] for name in averaged], None)
        for name in average.keys() - set(averaged):
            average[name].copy_(current[name])
        self._started = True

    def state(self) -> dict[str, Any]:
        """The state that --resume needs."""
        return {"module": self.module.state_dict(), "started": self._started}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what state() returned."""
        self.module.load_state_dict(state["module"])
        self._started = bool(state["started"])
