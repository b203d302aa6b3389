"""The whole step as one CUDA graph: one launch instead of about a thousand, whose cost dominates with small images."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from udskd.training.engine.task import Inputs

WholeStep = Callable[[Inputs], dict[str, Tensor]]
WARM_UP = 3  # training steps that run before the capture


class StepGraph:
    """Replays a step on inputs of one shape. The fourth call captures it.

    The graph holds no reference to the Step, which holds the graph: a cycle of references would keep the graph's memory
    until a later garbage collection.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._calls = 0
        self._graph: Any = None
        self._inputs: Inputs | None = None
        self._terms: dict[str, Tensor] = {}

    def run(self, inputs: Inputs, step: WholeStep) -> dict[str, Tensor]:
        """One step, by step(inputs), which must be the same function at each call.

        The next call overwrites the returned tensors.
        """
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._run_on_side_stream(inputs, step)
        if self._graph is None:
            self._capture(inputs, step)
        assert self._inputs is not None
        for mine, theirs in zip(self._inputs.tensors(), inputs.tensors(), strict=True):
            mine.copy_(theirs)
        self._graph.replay()
        return self._terms

    def _run_on_side_stream(self, inputs: Inputs, step: WholeStep) -> dict[str, Tensor]:
        """A capture needs the libraries initialised on a stream other than the default one."""
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            terms = step(inputs)
        current.wait_stream(self._side)
        return terms

    def _capture(self, inputs: Inputs, step: WholeStep) -> None:
        self._inputs = inputs.map(Tensor.clone)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that copies batches continues during the capture
        graph = torch.cuda.graph(self._graph, stream=self._side, capture_error_mode="thread_local")
        with garbage_collection_paused(), graph:
            self._terms = step(self._inputs)


@contextmanager
def garbage_collection_paused() -> Generator[None]:
    """Collect garbage before the context and not within: destroying an old graph or unloading a kernel breaks a
    capture."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
