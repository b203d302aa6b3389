"""A loss with its gradients as one CUDA graph, as in a training step that is captured whole: the logits' memory stays,
and a call is a replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.problem import Loss

WARM_UP = 3  # calls before the capture, in which a library may still load and allocate


class Captured(NamedTuple):
    """Every replay writes the loss and the students' gradients (none under no_grad) into the same tensors again."""

    graph: Any  # torch.cuda.CUDAGraph, for whose replay() PyTorch has no types
    loss: Tensor
    gradients: tuple[Tensor, ...]


def capture(loss: Loss, inputs: tuple[Tensor, ...]) -> Captured:
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
    return Captured(graph, value, gradients)


class _Replay(torch.autograd.Function):
    """The gradients are those of the captured step, for a grad_output of 1."""

    @staticmethod
    def forward(ctx: Any, captured: Captured, a: Tensor, b: Tensor) -> Tensor:
        captured.graph.replay()
        ctx.gradients = captured.gradients
        return captured.loss.detach()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(x.detach() for x in ctx.gradients)


class Replayed:
    """A loss that is captured when it meets other inputs than the last, and replayed when it meets the same."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.key: tuple[Any, ...] = ()  # the inputs themselves, which keeps their memory theirs
        self.captured: Captured | None = None

    def forget(self) -> None:
        """Gives all memory back."""
        self.key, self.captured = (), None

    def replay(self) -> Callable[[], None]:
        """The captured graph alone, which leaves its results where they always are."""
        assert self.captured is not None
        again: Callable[[], None] = self.captured.graph.replay
        return again

    def __call__(self, *inputs: Tensor) -> Tensor:
        key = (torch.is_grad_enabled(), *inputs)
        if len(key) != len(self.key) or any(x is not y for x, y in zip(key, self.key, strict=True)):
            self.forget()
            self.key, self.captured = key, capture(self.loss, inputs)
        assert self.captured is not None
        replay: Any = _Replay.apply
        out: Tensor = replay(self.captured, *inputs[1:3])
        return out
