"""One optimisation step of a task: forward, loss, backward, clipping, update, in one or several parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from udskd.training.engine.cuda_graph import StepGraph
from udskd.training.engine.task import Inputs, Task
from udskd.training.runtime.device import Runtime


class Step:
    """Runs the parts of each step. It reads nothing back from the device."""

    def __init__(self, task: Task, runtime: Runtime, parts: int, rows: int, cuda_graph: bool) -> None:
        """parts: number of parts of a step; rows: images of one part in this process."""
        self._task, self._runtime, self._parts, self._rows = task, runtime, parts, rows
        self._scaler = GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        self._graph = StepGraph(runtime.device) if cuda_graph else None

    def run(self, inputs: Inputs, part: int, step: int) -> dict[str, Tensor]:
        """Part `part` of step `step` (counted from 0 over all epochs); after the last part the networks are updated.

        Returns the task's terms for these images, in memory that the next call may overwrite. An unreadable image
        counts as a gradient of 0, so a part may have fewer rows than the others, or none; so does a single image that
        is left of several, if there is batch-norm.
        """
        last = part == self._parts - 1
        if last:
            for trained in self._task.trained:
                trained.set_lr(step)
        if self._graph is not None and len(inputs.images) == self._rows:
            return self._graph.run(inputs, self._whole)
        with ExitStack() as stack:
            if not last:  # the processes average their gradients once a step
                for trained in self._task.trained:
                    stack.enter_context(trained.no_sync())
            terms = self._gradients(inputs)
        if last:
            self.update()
        return terms

    def state(self) -> dict[str, Any]:
        """The loss scale, for --resume."""
        return self._scaler.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        if state:
            self._scaler.load_state_dict(state)

    def _whole(self, inputs: Inputs) -> dict[str, Tensor]:
        terms = self._gradients(inputs)
        self.update()
        return terms

    def _gradients(self, inputs: Inputs) -> dict[str, Tensor]:
        rows = len(inputs.images)
        if rows == 0 or (rows == 1 < self._rows and self._has_batch_norm()):
            if self._runtime.world.is_single:
                return {}
            with self._keep_buffers():  # the other processes wait for this one's gradients, although they are 0
                self._backward(inputs.zeros(self._rows), 0.0)
            return {}
        return self._backward(inputs, rows / (self._rows * self._parts))

    def _has_batch_norm(self) -> bool:
        """Whether an image that is left alone in a batch cannot be trained on: batch-norm of 1 x 1 pixels needs two."""
        modules = (module for trained in self._task.trained for module in trained.module.modules())
        return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)

    def _backward(self, inputs: Inputs, fraction: float) -> dict[str, Tensor]:
        """fraction: of the images that the step's mean gradient is taken over."""
        terms = self._task.losses(inputs)
        loss = terms["loss"] if fraction == 1 else terms["loss"] * fraction
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        # detached: else autograd's nodes would live on into the next step, bound to the stream of this one
        return {name: value.detach() for name, value in terms.items()}

    @contextmanager
    def _keep_buffers(self) -> Iterator[None]:
        """Restore all buffers at the end, so that batch-norm's statistics do not see the zeros."""
        buffers = [b for trained in self._task.trained for b in trained.module.buffers()]
        kept = [b.clone() for b in buffers]
        yield
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)

    def update(self) -> None:
        """Update all weights from their gradients, and free these."""
        for network in self._task.networks:
            if not any(p.grad is not None for p in network.module.parameters()):
                return  # no image of this step could be read
        for trained in self._task.trained:
            trained.update(self._scaler)
        self._scaler.update()
