"""The training of both students, with or without a teacher: the method computes their loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from udskd import methods
from udskd.config.schema import STUDENTS, Config
from udskd.data.hashing import derive_seed
from udskd.errors import ConfigError
from udskd.methods import Answers, Method, Needs, Setting
from udskd.models.zoo import Model
from udskd.training.engine.task import Inputs, Task
from udskd.training.networks.teacher_output import TeacherForward, TeacherOutput, build_teacher_forward, last_linear
from udskd.training.networks.trainable import MethodModule, Network
from udskd.training.runtime.device import Runtime
from udskd.training.tasks.teacher import FrozenTeacher

_MODULES_SEED = 100
"""Separates the random numbers of a method's modules from those of the networks, which are derived from 0, 1 and 2."""


@dataclass(frozen=True)
class StudentsSetup:
    """A run's method, what it needs from the networks, and its own trainable modules by name."""

    method: Method
    needs: Needs
    modules: Mapping[str, nn.Module]

    @staticmethod
    def from_config(config: Config, classes: int, networks: Mapping[str, Model]) -> StudentsSetup:
        """Raises ConfigError if the method does not support these networks or options."""
        method = methods.build(config)
        setting = Setting(classes, config.data.image_size, {role: model.module for role, model in networks.items()})
        needs = method.needs(setting)
        _check(config, needs)
        if needs.responses and needs.source == "dropout":
            last_linear(networks["teacher"].module)  # raises ConfigError before anything is trained
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, _MODULES_SEED))
            return StudentsSetup(method, needs, method.modules(setting))

    def lr(self, name: str, default: float) -> float:
        """The peak learning rate of one of the modules; a shape's module has the shape's name."""
        lr = next((shape.lr for shape in self.method.shapes if shape.name == name), self.method.lr)
        return default if lr is None else lr

    def build_teacher_forward(self, config: Config, runtime: Runtime, teacher: nn.Module) -> TeacherForward:
        """The forward pass of this teacher that returns what the method needs. ConfigError if it cannot."""
        for_autograd = self.method.keeps_teacher or bool(self.modules) or bool(self.method.shapes)
        return build_teacher_forward(config, runtime, teacher, self.needs, for_autograd)


def _check(config: Config, needs: Needs) -> None:
    if needs.layers and needs.responses:
        raise ConfigError(
            f'method "{config.method}" needs the teacher\'s features, and target.shape "{config.target.shape}" needs '
            f'several responses of it ({needs.source}); a run can have only one of them: set variance.source to "draws"'
        )
    beyond_logits = "features" if needs.layers else needs.source if needs.responses else ""
    if beyond_logits and config.teacher.cache is not None:
        raise ConfigError(
            f"teacher.cache holds logits only, but this method needs the teacher's {beyond_logits}: leave "
            "teacher.cache out"
        )
    if config.teacher.cache is not None and methods.teacher_stage(config) is not None:
        raise ConfigError(
            "teacher.cache holds the logits of the teacher before this method trains it further: leave teacher.cache "
            "out, or give the further trained teacher (teacher_shaped.safetensors) as teacher.checkpoint with "
            'teacher.stage = "none"'
        )


class StudentsTask(Task):
    """One forward pass of each network on the same view of each image, and the method's loss."""

    title = "students"
    event = "epoch"
    phase = 1
    networks: tuple[Network, Network]

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        steps_per_epoch: int,
        setup: StudentsSetup,
        teacher: FrozenTeacher | None,
        models: Mapping[str, Model],
    ) -> None:
        training, counts = config.training, (config.training.epochs, steps_per_epoch)
        options = {"student_a": config.student_a, "student_b": config.student_b}
        a, b = (
            Network(role, models[role], options[role], training, runtime, *counts, setup.needs.layers.get(role, ()))
            for role in STUDENTS
        )
        self.networks = (a, b)
        self.method = setup.method
        self.method_modules = [
            MethodModule(name, module, setup.lr(name, training.lr), training, runtime, *counts)
            for name, module in setup.modules.items()
        ]
        self._autocast = runtime.autocast
        self._teacher = teacher

    def set_epoch(self, epoch: float) -> None:
        self.method.at(epoch)

    def losses(self, inputs: Inputs) -> dict[str, Tensor]:
        """The method's loss, components, weight and entropy."""
        return self.method.loss(self.answers(inputs))

    def answers(self, inputs: Inputs) -> Answers:
        """The outputs of all networks for a batch."""
        teacher = self._teacher_output(inputs)
        with self._autocast():
            outputs = {network.role: network.forward(inputs.images) for network in self.networks}
        logits = {role: out[0] if isinstance(out, tuple) else out for role, out in outputs.items()}
        features = {role: out[1] for role, out in outputs.items() if isinstance(out, tuple)}
        return Answers(
            teacher.logits,
            logits["student_a"],
            logits["student_b"],
            inputs.target,
            inputs.images,
            teacher.responses,
            {**features, "teacher": teacher.features},
        )

    def _teacher_output(self, inputs: Inputs) -> TeacherOutput:
        if inputs.teacher is not None or self._teacher is None:
            return TeacherOutput(inputs.teacher)
        return self._teacher.forward(inputs.images)

    def teacher_logits(self, epoch: int, indices: Tensor) -> Tensor | None:
        """The logits from the teacher cache, None where the run has none."""
        return None if self._teacher is None or self._teacher.cache is None else self._teacher.cache(epoch, indices)

    def fingerprints(self) -> dict[str, Any]:
        """The fingerprint of the teacher's weights."""
        return {} if self._teacher is None else {"teacher": self._teacher.fingerprint}
