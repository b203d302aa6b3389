"""The whole step as one CUDA graph: one launch instead of a thousand, which is what small images wait for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from udskd.training.task import Inputs

WARM_UP = 3  # steps before the capture, which are steps like all others: nothing is computed for the warm-up alone


class StepGraph:
    """Replays a step on inputs of always the same shape; captured at its fourth call."""

    def __init__(self, device: torch.device, step: Callable[[Inputs], dict[str, Tensor]]) -> None:
        self._device, self._step = device, step
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._calls = 0
        self._graph: Any = None
        self._inputs: Inputs | None = None
        self._terms: dict[str, Tensor] = {}

    def run(self, inputs: Inputs) -> dict[str, Tensor]:
        """One step; the returned tensors are overwritten by the next."""
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._on_the_side(inputs)
        if self._graph is None:
            self._capture(inputs)
        assert self._inputs is not None
        for mine, theirs in zip(self._inputs.tensors(), inputs.tensors(), strict=True):
            mine.copy_(theirs)
        self._graph.replay()
        return self._terms

    def _on_the_side(self, inputs: Inputs) -> dict[str, Tensor]:
        """A capture wants the libraries initialised on a stream other than the default one."""
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            terms = self._step(inputs)
        current.wait_stream(self._side)
        return terms

    def _capture(self, inputs: Inputs) -> None:
        self._inputs = inputs.map(Tensor.clone)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that copies batches goes on meanwhile
        with torch.cuda.graph(self._graph, stream=self._side, capture_error_mode="thread_local"):
            self._terms = self._step(self._inputs)
