"""The parts of the CUDA graph that a CPU can test: references between step and graph, and garbage collection."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from udskd.training.engine import cuda_graph as graph
from udskd.training.engine.step import Step
from udskd.training.engine.task import Inputs


def test_a_step_ends_with_its_last_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graph's memory is then free for the next phase of the run."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    monkeypatch.setattr(graph.StepGraph, "_run_on_side_stream", lambda self, inputs, step: step(inputs))
    loss = torch.ones((), requires_grad=True)
    task: Any = SimpleNamespace(networks=[], trained=[], losses=lambda inputs: {"loss": 2 * loss})
    runtime: Any = SimpleNamespace(device=torch.device("cpu"), precision="fp32")
    with graph.garbage_collection_paused():
        step = Step(task, runtime, 1, 4, cuda_graph=True)
        step.run(Inputs(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)), 0, 0)
        assert loss.grad == 2
        gone = weakref.ref(step)
        del step
        assert gone() is None


def test_garbage_is_collected_before_a_capture() -> None:
    class Node:
        """Refers to itself."""

    node: Any = Node()
    node.me, gone = node, weakref.ref(node)
    del node
    with graph.garbage_collection_paused():
        assert gone() is None


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_within_a_capture_and_the_rest_is_as_before(enabled: bool) -> None:
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    within = []

    def capture() -> None:
        with graph.garbage_collection_paused():
            within.append(gc.isenabled())
            raise KeyError

    try:
        with pytest.raises(KeyError):
            capture()
        assert (within, gc.isenabled()) == ([False], enabled)
    finally:
        (gc.enable if was else gc.disable)()
