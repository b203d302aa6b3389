"""Both students together, with or without a teacher: the method says what they learn from."""

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
from udskd.training.engine.session import Session
from udskd.training.engine.task import Inputs, Task
from udskd.training.networks.teacher_output import Said, Saying, saying
from udskd.training.networks.trainable import Network, Part
from udskd.training.runtime.device import Runtime
from udskd.training.tasks.teacher import Taught

_PARTS_SEED = 100  # apart from the networks' own


@dataclass(frozen=True)
class Plan:
    """A run's method, fitted to its networks."""

    method: Method
    needs: Needs
    parts: Mapping[str, nn.Module]

    def lr(self, part: str) -> float | None:
        """A part's own peak learning rate: a shape's part has the shape's name."""
        return next((shape.lr for shape in self.method.shapes if shape.name == part), self.method.lr)

    @staticmethod
    def of(config: Config, classes: int, networks: Mapping[str, Model]) -> Plan:
        """Raises ConfigError for what the method cannot do with these networks or options."""
        method = methods.build(config)
        modules = {role: model.module for role, model in networks.items()}
        setting = Setting(classes, config.data.image_size, modules)
        needs = method.needs(setting)
        _check(config, needs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, _PARTS_SEED))
            return Plan(method, needs, method.modules(setting))

    def says(self, config: Config, runtime: Runtime, teacher: nn.Module) -> Saying:
        """What the method asks of this teacher."""
        keeps = self.method.keeps_teacher or bool(self.parts) or bool(self.method.shapes)
        return saying(config, runtime, teacher, self.needs, ordinary=keeps)


def _check(config: Config, needs: Needs) -> None:
    if needs.layers and needs.responses:
        raise ConfigError(
            f'method "{config.method}" asks the teacher for features, and target.shape "{config.target.shape}" for '
            f'several answers ({needs.source}): only one of them can be had, so set variance.source to "draws"'
        )
    beyond = "features" if needs.layers else needs.source if needs.responses else ""
    if beyond and config.teacher.cache is not None:
        raise ConfigError(
            f"teacher.cache holds logits only, but this method asks the teacher for {beyond}: leave teacher.cache out"
        )
    if config.teacher.cache is not None and methods.teacher_stage(config) is not None:
        raise ConfigError(
            "teacher.cache is of a teacher as it is, but this method trains it further: leave teacher.cache out, or "
            'give the trained one (teacher_shaped.safetensors) as teacher.checkpoint with teacher.stage = "none"'
        )


class StudentsTask(Task):
    """One forward pass of each network on the same view of each image, and the method's loss."""

    title = "students"
    event = "epoch"
    phase = 1
    networks: tuple[Network, Network]

    def __init__(self, session: Session, plan: Plan, teacher: Taught | None, models: Mapping[str, Model]) -> None:
        config, runtime = session.config, session.runtime
        training, counts = config.training, (config.training.epochs, session.train.steps_per_epoch)
        options = {"student_a": config.student_a, "student_b": config.student_b}
        a, b = (
            Network(role, models[role], options[role], training, runtime, *counts, plan.needs.layers.get(role, ()))
            for role in STUDENTS
        )
        self.networks = (a, b)
        self.method = plan.method
        self.parts = [
            Part(name, module, training.lr if (lr := plan.lr(name)) is None else lr, training, runtime, *counts)
            for name, module in plan.parts.items()
        ]
        self._autocast = runtime.autocast
        self._teacher = teacher

    def set_epoch(self, epoch: float) -> None:
        self.method.at(epoch)

    def losses(self, inputs: Inputs) -> dict[str, Tensor]:
        """The method's loss, components, weight and entropy."""
        return self.method.loss(self.answers(inputs))

    def answers(self, inputs: Inputs) -> Answers:
        """What all networks say."""
        teacher = self._said(inputs)
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

    def _said(self, inputs: Inputs) -> Said:
        if inputs.teacher is not None or self._teacher is None:
            return Said(inputs.teacher)
        return self._teacher.says(inputs.images)

    def teacher_logits(self, epoch: int, indices: Tensor) -> Tensor | None:
        """From the teacher's cache, where there is one."""
        return None if self._teacher is None or self._teacher.cache is None else self._teacher.cache(epoch, indices)

    def fingerprints(self) -> dict[str, Any]:
        """The teacher, by its weights."""
        return {} if self._teacher is None else {"teacher": self._teacher.fingerprint}
