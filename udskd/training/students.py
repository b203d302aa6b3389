"""Both students together, with or without a teacher: the method says what they learn from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from udskd.methods import Method
from udskd.models import Model
from udskd.training.fit import Task
from udskd.training.network import Network
from udskd.training.session import Session


class StudentsTask(Task):
    """One forward pass of each network on the same view of each image, and the method's loss."""

    title = "students"
    event = "epoch"
    phase = 1
    networks: tuple[Network, Network]

    def __init__(
        self, session: Session, method: Method, teacher: Model | None, student_a: Model, student_b: Model
    ) -> None:
        config, runtime = session.config, session.runtime
        counts = config.training.epochs, session.train.steps_per_epoch
        self.networks = (
            Network("student_a", student_a, config.student_a, config.training, runtime, *counts),
            Network("student_b", student_b, config.student_b, config.training, runtime, *counts),
        )
        self._method = method
        self._autocast = runtime.autocast
        self._teacher: Any = None
        if teacher is not None:
            self._teacher = torch.compile(teacher.module) if config.training.compile else teacher.module

    def losses(self, images: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The method's loss, components, weight and entropy."""
        with self._autocast():
            with torch.no_grad():
                teacher = None if self._teacher is None else self._teacher(images)
            student_a, student_b = (network.forward(images) for network in self.networks)
        return self._method.loss(teacher, student_a, student_b, target)
