"""What the epoch loop trains: networks, and their loss for one batch. The loop knows nothing else of a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor

from udskd.training.networks.trainable import MethodModule, Network, Trainable


@dataclass(frozen=True)
class Inputs:
    """One batch on the device."""

    images: Tensor
    """float32 [B, 3, S, S], normalised."""
    target: Tensor
    """int64 [B], or with mixup probabilities [B, C]."""
    teacher: Tensor | None = None
    """The teacher's logits [B, C] where they are known beforehand."""

    def tensors(self) -> list[Tensor]:
        return [value for f in fields(self) if (value := getattr(self, f.name)) is not None]

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same of changed tensors."""
        teacher = None if self.teacher is None else change(self.teacher)
        return Inputs(change(self.images), change(self.target), teacher)

    def blank(self, rows: int) -> Inputs:
        """As many rows of nothing."""
        return self.map(lambda values: values.new_zeros((rows, *values.shape[1:])))


class Task(ABC):
    """Networks to train together."""

    title: ClassVar[str]
    event: ClassVar[str]
    """Name of the task's epochs in log.jsonl."""
    phase: ClassVar[int]
    """Keeps the random numbers (dropout) of the phases of a run apart."""
    networks: Sequence[Network]
    method_modules: Sequence[MethodModule] = ()
    """What is trained beside them, but neither evaluated nor saved as a result."""

    @property
    def trained(self) -> Sequence[Trainable]:
        """Everything that has weights."""
        return [*self.networks, *self.method_modules]

    def set_epoch(self, epoch: float) -> None:  # noqa: B027 (few tasks change over time)
        """Called before each step, with the epochs done so far."""

    @abstractmethod
    def losses(self, inputs: Inputs) -> dict[str, Tensor]:
        """ "loss" (differentiable), further scalars by name, and possibly "weight" and "entropy" [B]."""

    def teacher_logits(self, epoch: int, indices: Tensor) -> Tensor | None:
        """The teacher's logits [B, C] for these images' views of an epoch, on the host, where they are known."""
        return None

    def fingerprints(self) -> dict[str, str]:
        """What a continued run must find unchanged beside its options."""
        return {}
