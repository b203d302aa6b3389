"""What the loop trains: networks and their loss for one batch. The loop uses nothing else of a method."""

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
    """The teacher's logits [B, C] where a cache holds them."""

    def tensors(self) -> list[Tensor]:
        return [value for f in fields(self) if (value := getattr(self, f.name)) is not None]

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The inputs with `change` applied to each tensor."""
        teacher = None if self.teacher is None else change(self.teacher)
        return Inputs(change(self.images), change(self.target), teacher)

    def zeros(self, rows: int) -> Inputs:
        """Zeros of the same dtypes and shapes, but with this number of rows."""
        return self.map(lambda values: values.new_zeros((rows, *values.shape[1:])))


class Task(ABC):
    """Networks that are trained by one loss."""

    title: ClassVar[str]
    event: ClassVar[str]
    """Name of the task's epochs in log.jsonl."""
    phase: ClassVar[int]
    """Part of dropout's seeds, so that the phases of a run draw different random numbers."""
    networks: Sequence[Network]
    method_modules: Sequence[MethodModule] = ()
    """Trained, but neither evaluated nor written as weights."""

    @property
    def trained(self) -> Sequence[Trainable]:
        """Everything that the loop updates."""
        return [*self.networks, *self.method_modules]

    def set_epoch(self, epoch: float) -> None:  # noqa: B027 (few tasks change over time)
        """Called before each step, with the number of epochs done, a fraction within an epoch."""

    @abstractmethod
    def losses(self, inputs: Inputs) -> dict[str, Tensor]:
        """ "loss" (differentiable), further scalars by name, and possibly "weight" and "entropy" [B]."""

    def teacher_logits(self, epoch: int, indices: Tensor) -> Tensor | None:
        """The teacher's logits [B, C] on the host for these images' views in an epoch; None without a cache."""
        return None

    def fingerprints(self) -> dict[str, str]:
        """What, beside the options, a continued run must find unchanged: name to fingerprint."""
        return {}
