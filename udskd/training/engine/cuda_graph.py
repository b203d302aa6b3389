"""The whole step as one CUDA graph: one launch instead of a thousand, which is what small images wait for."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from udskd.training.engine.task import Inputs

Whole = Callable[[Inputs], dict[str, Tensor]]
WARM_UP = 3  # steps before the capture, which are steps like all others: nothing is computed for the warm-up alone


class StepGraph:
    """Replays a step on inputs of always the same shape; captured at its fourth call.

    It does not keep the step, which keeps it: in a cycle of references the graph's memory would stay taken until some
    later collection of garbage.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._calls = 0
        self._graph: Any = None
        self._inputs: Inputs | None = None
        self._terms: dict[str, Tensor] = {}

    def run(self, inputs: Inputs, step: Whole) -> dict[str, Tensor]:
        """One step, by step(inputs), the same at each call; the returned tensors are overwritten by the next."""
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._on_the_side(inputs, step)
        if self._graph is None:
            self._capture(inputs, step)
        assert self._inputs is not None
        for mine, theirs in zip(self._inputs.tensors(), inputs.tensors(), strict=True):
            mine.copy_(theirs)
        self._graph.replay()
        return self._terms

    def _on_the_side(self, inputs: Inputs, step: Whole) -> dict[str, Tensor]:
        """A capture wants the libraries initialised on a stream other than the default one."""
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            terms = step(inputs)
        current.wait_stream(self._side)
        return terms

    def _capture(self, inputs: Inputs, step: Whole) -> None:
        self._inputs = inputs.map(Tensor.clone)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that copies batches goes on meanwhile
        graph = torch.cuda.graph(self._graph, stream=self._side, capture_error_mode="thread_local")
        with garbage_collection_paused(), graph:
            self._terms = step(self._inputs)


@contextmanager
def garbage_collection_paused() -> Generator[None]:
    """Garbage is collected before, not within: what destroys an old graph, or unloads a kernel, breaks a capture."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
