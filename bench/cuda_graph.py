"""A loss with its gradients as one CUDA graph, as in a training step that is captured as a whole: the logits keep their
memory, and a call replays the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.workload import Loss

WARM_UP = 3  # calls before the capture, in which a library may still load and allocate


class CapturedLoss(NamedTuple):
    """A graph whose every replay overwrites the loss and the students' gradients (none under no_grad)."""

    graph: Any  # torch.cuda.CUDAGraph, whose replay() has no type annotations
    loss: Tensor
    gradients: tuple[Tensor, ...]


def capture(loss: Loss, inputs: tuple[Tensor, ...]) -> CapturedLoss:
    def step() -> tuple[Tensor, tuple[Tensor, ...]]:
        value = loss(*inputs)
        return value.detach(), torch.autograd.grad(value, inputs[1:3]) if value.requires_grad else ()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value, gradients = step()
    return CapturedLoss(graph, value, gradients)


class _Replay(torch.autograd.Function):
    """Returns the gradients of the captured step, which are those for a grad_output of 1."""

    @staticmethod
    def forward(ctx: Any, captured: CapturedLoss, a: Tensor, b: Tensor) -> Tensor:
        captured.graph.replay()
        ctx.gradients = captured.gradients
        return captured.loss.detach()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(x.detach() for x in ctx.gradients)


class GraphedLoss:
    """A loss that captures a graph when its inputs are other tensors than in the last call, and else replays it."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.key: tuple[Any, ...] = ()  # the inputs themselves: the reference keeps their memory in use
        self.captured: CapturedLoss | None = None

    def release(self) -> None:
        """Frees the graph and its memory."""
        self.key, self.captured = (), None

    def replay(self) -> Callable[[], None]:
        """The replay of the captured graph alone; it leaves the results in the tensors of the capture."""
        assert self.captured is not None
        replay: Callable[[], None] = self.captured.graph.replay
        return replay

    def __call__(self, *inputs: Tensor) -> Tensor:
        key = (torch.is_grad_enabled(), *inputs)
        if len(key) != len(self.key) or any(x is not y for x, y in zip(key, self.key, strict=True)):
            self.release()
            self.key, self.captured = key, capture(self.loss, inputs)
        assert self.captured is not None
        replay: Any = _Replay.apply
        out: Tensor = replay(self.captured, *inputs[1:3])
        return out
