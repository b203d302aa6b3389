"""Both students together, with or without a teacher: the method says what they learn from."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from udskd.methods import Method
from udskd.models import Model
from udskd.training.network import Network
from udskd.training.session import Session
from udskd.training.task import Inputs, Task
from udskd.training.teacher import Taught


class StudentsTask(Task):
    """One forward pass of each network on the same view of each image, and the method's loss."""

    title = "students"
    event = "epoch"
    phase = 1
    networks: tuple[Network, Network]

    def __init__(
        self, session: Session, method: Method, teacher: Taught | None, student_a: Model, student_b: Model
    ) -> None:
        config, runtime = session.config, session.runtime
        counts = config.training.epochs, session.train.steps_per_epoch
        self.networks = (
            Network("student_a", student_a, config.student_a, config.training, runtime, *counts),
            Network("student_b", student_b, config.student_b, config.training, runtime, *counts),
        )
        self._method = method
        self._autocast = runtime.autocast
        self._teacher = teacher

    def losses(self, inputs: Inputs) -> dict[str, Tensor]:
        """The method's loss, components, weight and entropy."""
        teacher = inputs.teacher
        if teacher is None and self._teacher is not None:
            teacher = self._teacher.logits(inputs.images)
        with self._autocast():
            student_a, student_b = (network.forward(inputs.images) for network in self.networks)
        return self._method.loss(teacher, student_a, student_b, inputs.target)

    def teacher_logits(self, epoch: int, indices: Tensor) -> Tensor | None:
        """From the teacher's cache, where there is one."""
        return None if self._teacher is None or self._teacher.cache is None else self._teacher.cache(epoch, indices)

    def belongs_to(self) -> dict[str, Any]:
        """The teacher, by its weights."""
        return {} if self._teacher is None else {"teacher": self._teacher.fingerprint}
