"""What a method is: a name, whether it needs the teacher's logits, and its loss for one batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar

from torch import Tensor

from udskd.config import LossConfig

COMPONENTS = ("ce_a", "ce_b", "kd_a", "kd_b", "peer_a", "peer_b")


class Method(ABC):
    """One paper's loss for two students. The training loop knows methods by this interface only."""

    name: ClassVar[str]
    uses_teacher: ClassVar[bool]

    def __init__(self, options: LossConfig) -> None:
        self.options = options

    @abstractmethod
    def loss(self, teacher: Tensor | None, student_a: Tensor, student_b: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The batch's loss.

        Args:
            teacher: logits [B, C] without gradient, or None where uses_teacher is False.
            student_a, student_b: logits [B, C].
            target: labels int64 [B], or probabilities [B, C] after mixup.

        Returns:
            "loss" (scalar, differentiable), every name of COMPONENTS (scalars, detached), and with a teacher "weight"
            [B] and "entropy" [B] (in nats), detached.
        """


class OperatorMethod(Method):
    """A method that is udskd.dual_student_loss with some of its options held fixed."""

    fixed: ClassVar[dict[str, Any]] = {}

    def __init__(self, options: LossConfig) -> None:
        super().__init__(options)
        from udskd.losses import DualStudentLoss

        self._loss = DualStudentLoss(**{**asdict(options), **self.fixed})

    def loss(self, teacher: Tensor | None, student_a: Tensor, student_b: Tensor, target: Tensor) -> dict[str, Tensor]:
        out = self._loss(teacher if self.uses_teacher else None, student_a, student_b, target)
        terms = {"loss": out.loss, **{name: getattr(out, name) for name in COMPONENTS}}
        return {**terms, "weight": out.weight, "entropy": out.entropy} if self.uses_teacher else terms
