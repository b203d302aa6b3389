"""What a method is, and what it may ask of the training loop. The loop knows methods by this file only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from udskd.config.schema import Config

COMPONENTS = ("ce_a", "ce_b", "kd_a", "kd_b", "peer_a", "peer_b")
Features = tuple[Tensor, ...]


@dataclass(frozen=True)
class Answers:
    """One batch, and what the networks answered to it."""

    teacher: Tensor | None
    """Logits [B, C] without gradient, or None where the method asks for no teacher."""
    student_a: Tensor
    """Logits [B, C]."""
    student_b: Tensor
    target: Tensor
    """Labels int64 [B], or probabilities [B, C] after mixup."""
    images: Tensor | None = None
    """float32 [B, 3, S, S], normalised."""
    responses: Tensor | None = None
    """Logits [k, B, C] of the teacher, where the method asks for several answers."""
    features: Mapping[str, Features] = field(default_factory=dict)
    """By role: the outputs [B, C', H, W] of the layers that the method asks for, in their order."""

    def student(self, role: str) -> Tensor:
        """That student's logits."""
        return self.student_a if role == "student_a" else self.student_b

    def peer(self, role: str) -> Tensor:
        """The other student's logits."""
        return self.student_b if role == "student_a" else self.student_a


@dataclass(frozen=True)
class Needs:
    """What a method asks of the loop beside the students' logits."""

    responses: int = 0
    """How many answers of the teacher, in Answers.responses."""
    source: Literal["dropout", "views"] = "views"
    """Where they differ."""
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By role: layers whose outputs are wanted, in Answers.features."""


@dataclass(frozen=True)
class Setting:
    """The networks of a run, for methods that have parts of their own that must fit them."""

    classes: int
    image_size: int
    networks: Mapping[str, nn.Module]
    """By role; these very modules are trained."""


class Shaped(NamedTuple):
    """What a student is to imitate, and what the shaping learns from."""

    logits: Tensor
    """[B, C]; no gradient reaches the shape through them."""
    loss: Tensor | None = None
    """A scalar for the shape's own parameters."""


class Shape(ABC):
    """A step from the teacher's logits to the logits that a student is to imitate."""

    name: ClassVar[str]
    per_student: ClassVar[bool] = False
    """Whether the two students are given different targets."""
    needs: Needs = Needs()
    lr: float | None = None
    """Peak learning rate of its part; training.lr by default."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def modules(self, setting: Setting) -> dict[str, nn.Module]:
        """Its own trainable part, by the shape's name, made once, before training; weights from PyTorch's generator."""
        return {}

    @abstractmethod
    def __call__(self, logits: Tensor, role: str, answers: Answers) -> Shaped:
        """logits [B, C]: the teacher's, or what the shapes before made of them; role: the student's that they are for
        (of no meaning unless per_student)."""


class TeacherStage(ABC):
    """Further training of the teacher, after its own and before it is frozen."""

    name: ClassVar[str]
    epochs: int
    lr: float

    def __init__(self, config: Config) -> None:
        self.config = config

    @abstractmethod
    def loss(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """ "loss" (differentiable) of the teacher's logits [B, C], float32, and further scalars by name."""


class Method(ABC):
    """One paper's loss for two students."""

    name: ClassVar[str]
    uses_teacher: ClassVar[bool] = True
    stage: ClassVar[str] = "none"
    """Name of the teacher's further training that belongs to the method."""
    shape: ClassVar[str] = "none"
    """Name of what belongs between the teacher and the students."""
    lr: float | None = None
    """Peak learning rate of its own parts; training.lr by default."""
    keeps_teacher: ClassVar[bool] = True
    """Whether autograd may keep the teacher's logits for a backward pass: those of inference mode cannot be."""

    def __init__(self, config: Config, shapes: tuple[Shape, ...] = ()) -> None:
        """Raises ConfigError for options that the method cannot be with."""
        self.config, self.options, self.shapes = config, config.loss, shapes

    def needs(self, setting: Setting) -> Needs:
        """What it and its shapes ask of the loop. ConfigError where these networks cannot give it."""
        return next((shape.needs for shape in self.shapes if shape.needs != Needs()), Needs())

    def modules(self, setting: Setting) -> dict[str, nn.Module]:
        """As Shape.modules, for its shapes and itself; called once, after needs()."""
        return {name: module for shape in self.shapes for name, module in shape.modules(setting).items()}

    def at(self, epoch: float) -> None:  # noqa: B027 (few methods change over time)
        """Called before each step with the epochs done so far, for what changes over time."""

    @abstractmethod
    def loss(self, answers: Answers) -> dict[str, Tensor]:
        """The batch's loss.

        Returns "loss" (scalar, differentiable), every name of COMPONENTS (scalars, detached), with a teacher "weight"
        [B] and "entropy" [B] (of the targets, in nats), detached, and further detached scalars by name.
        """


class Ramp:
    """A weight's linear growth from 0 over the first epochs, on the device, where a CUDA graph can see it change."""

    def __init__(self, epochs: float, of: int) -> None:
        """A ramp longer than half of the run's epochs is cut to it."""
        self.epochs = min(epochs, of / 2)
        self._factor: Tensor | None = None
        self._value = 1.0 if self.epochs == 0 else 0.0

    def at(self, epoch: float) -> None:
        """epoch: those done so far, with a fraction."""
        if self.epochs:
            self._value = min(epoch / self.epochs, 1.0)
            if self._factor is not None:
                self._factor.fill_(self._value)

    def times(self, weight: float, like: Tensor) -> float | Tensor:
        """The weight as it is now."""
        if not self.epochs:
            return weight
        if self._factor is None or self._factor.device != like.device:
            self._factor = torch.full((), self._value, device=like.device)
        return self._factor * weight
