"""The interface between a method and the training loop, which uses nothing else of the methods."""

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
    """One batch and the outputs of the networks for it."""

    teacher: Tensor | None
    """Logits [B, C] without gradient, or None for a method without a teacher."""
    student_a: Tensor
    """Logits [B, C]."""
    student_b: Tensor
    target: Tensor
    """Labels int64 [B], or probabilities [B, C] after mixup."""
    images: Tensor | None = None
    """float32 [B, 3, S, S], normalised."""
    responses: Tensor | None = None
    """Logits [k, B, C] of k passes of the teacher, if the method needs them."""
    features: Mapping[str, Features] = field(default_factory=dict)
    """By role: the outputs [B, C', H, W] of the layers that the method needs, in their order."""

    def student(self, role: str) -> Tensor:
        """The logits of the student with this role."""
        return self.student_a if role == "student_a" else self.student_b

    def peer(self, role: str) -> Tensor:
        """The logits of the other student."""
        return self.student_b if role == "student_a" else self.student_a


@dataclass(frozen=True)
class Needs:
    """What a method needs beside the students' logits."""

    responses: int = 0
    """How many passes of the teacher, for Answers.responses."""
    source: Literal["dropout", "views"] = "views"
    """What differs between the passes."""
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By role: the layers whose outputs are in Answers.features."""


@dataclass(frozen=True)
class Setting:
    """The networks of a run, to which a method's own modules must fit."""

    classes: int
    image_size: int
    networks: Mapping[str, nn.Module]
    """By role: the modules that are trained, not copies."""


class Shaped(NamedTuple):
    """The target of a student, and the loss from which the shape learns."""

    logits: Tensor
    """[B, C]; no gradient reaches the shape through them."""
    loss: Tensor | None = None
    """A scalar loss of the shape's own parameters."""


class Shape(ABC):
    """A step from the teacher's logits to the logits that a student imitates."""

    name: ClassVar[str]
    per_student: ClassVar[bool] = False
    """Whether the two students have different targets."""
    needs: Needs = Needs()
    lr: float | None = None
    """Peak learning rate of its own modules; training.lr by default."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def modules(self, setting: Setting) -> dict[str, nn.Module]:
        """Its trainable modules by the shape's name. Called once, before training; PyTorch's generator initialises the
        weights."""
        return {}

    @abstractmethod
    def __call__(self, logits: Tensor, role: str, answers: Answers) -> Shaped:
        """logits [B, C]: the teacher's, or those of the previous shape; role: of the student whose target this is
        (without meaning unless per_student)."""


class TeacherStage(ABC):
    """Further training of the teacher, after its first training and before it is frozen."""

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
    """Name of the method's own TeacherStage."""
    shape: ClassVar[str] = "none"
    """Name of the method's own Shape."""
    lr: float | None = None
    """Peak learning rate of its own modules; training.lr by default."""
    keeps_teacher: ClassVar[bool] = True
    """Whether autograd saves the teacher's logits for a backward pass, which excludes tensors of inference mode."""

    def __init__(self, config: Config, shapes: tuple[Shape, ...] = ()) -> None:
        """Raises ConfigError for options that the method does not support."""
        self.config, self.options, self.shapes = config, config.loss, shapes

    def needs(self, setting: Setting) -> Needs:
        """What the method and its shapes need. ConfigError for networks that cannot provide it."""
        return next((shape.needs for shape in self.shapes if shape.needs != Needs()), Needs())

    def modules(self, setting: Setting) -> dict[str, nn.Module]:
        """The trainable modules of the method and its shapes; called once, after needs()."""
        return {name: module for shape in self.shapes for name, module in shape.modules(setting).items()}

    def at(self, epoch: float) -> None:  # noqa: B027 (few methods change over time)
        """Called before each step with the number of completed epochs, for weights that change over time."""

    @abstractmethod
    def loss(self, answers: Answers) -> dict[str, Tensor]:
        """The batch's loss.

        Returns "loss" (scalar, differentiable), every name of COMPONENTS (scalars, detached), with a teacher "weight"
        [B] and "entropy" [B] (of the targets, in nats), detached, and further detached scalars by name.
        """


class Ramp:
    """A factor that grows linearly from 0 to 1 over the first epochs. It is on the device, where a CUDA graph reads its
    current value."""

    def __init__(self, epochs: float, of: int) -> None:
        """A ramp longer than half of the run's epochs is cut to it."""
        self.epochs = min(epochs, of / 2)
        self._factor: Tensor | None = None
        self._value = 1.0 if self.epochs == 0 else 0.0

    def at(self, epoch: float) -> None:
        """epoch: the number of completed epochs, with a fraction."""
        if self.epochs:
            self._value = min(epoch / self.epochs, 1.0)
            if self._factor is not None:
                self._factor.fill_(self._value)

    def times(self, weight: float, like: Tensor) -> float | Tensor:
        """The weight times the current factor."""
        if not self.epochs:
            return weight
        if self._factor is None or self._factor.device != like.device:
            self._factor = torch.full((), self._value, device=like.device)
        return self._factor * weight
