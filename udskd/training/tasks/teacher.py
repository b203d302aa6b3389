"""The teacher: loaded or trained on the run's images, trained further where the method needs that, then frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from udskd import methods
from udskd.config.schema import TeacherConfig
from udskd.errors import CheckpointError
from udskd.methods import TeacherStage
from udskd.models.checkpoints import fingerprint
from udskd.models.loading import load_network
from udskd.models.zoo import Model
from udskd.training.engine.loop import fit
from udskd.training.engine.session import Session
from udskd.training.engine.task import Inputs, Task
from udskd.training.evaluation.evaluate import Evaluation
from udskd.training.networks.teacher_output import TeacherForward
from udskd.training.networks.trainable import Network, build_model
from udskd.training.runtime.device import Runtime
from udskd.training.teacher_cache import reader

SHAPED_TEACHER = "teacher_shaped"
"""Role of a teacher after its further training, and stem of its files' names."""


class TeacherTask(Task):
    """Training of the teacher with cross-entropy."""

    title = "teacher"
    event = "teacher_epoch"
    phase = 0
    role: ClassVar[str] = "teacher"

    def __init__(self, session: Session, model: Model, options: TeacherConfig, epochs: int) -> None:
        training, steps = session.config.training, session.train.steps_per_epoch
        self.network = Network(self.role, model, options, training, session.runtime, epochs, steps)
        self.networks = (self.network,)
        self._autocast = session.runtime.autocast
        self._smoothing = options.label_smoothing

    def losses(self, inputs: Inputs) -> dict[str, Tensor]:
        """The terms of objective() for a batch."""
        with self._autocast():
            logits = self.network.forward(inputs.images)
        return self.objective(logits.float(), inputs.target)

    def objective(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The cross-entropy, as "loss"."""
        return {"loss": F.cross_entropy(logits, target, label_smoothing=self._smoothing)}


class StageTask(TeacherTask):
    """Further training of a trained teacher, before it is frozen, with the loss of a TeacherStage."""

    title = "teacher's stage"
    event = "teacher_stage_epoch"
    phase = 2
    role = SHAPED_TEACHER

    def __init__(self, session: Session, model: Model, stage: TeacherStage, origin: str) -> None:
        """origin: fingerprint of the teacher that the stage begins with."""
        # A copy: the teacher as measured so far must not change. An average of weights has no gradients.
        model = replace(model, module=copy.deepcopy(model.module).requires_grad_(True))
        super().__init__(session, model, replace(session.config.teacher, lr=stage.lr), stage.epochs)
        self._stage, self._origin = stage, origin

    def objective(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The stage's loss and its components."""
        return self._stage.loss(logits, target)

    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of the teacher that the stage began with."""
        return {"teacher": self._origin}


@dataclass(frozen=True)
class FrozenTeacher:
    """The frozen teacher of a run."""

    model: Model
    fingerprint: str
    """The fingerprint of its weights."""
    forward: TeacherForward
    """Images [B, 3, S, S] -> TeacherOutput, in the arithmetic of the run."""
    cache: Callable[[int, Tensor], Tensor] | None = None
    """(epoch, indices [B]) -> logits [B, C] on the host, where the run has a teacher cache."""
    evaluation: Evaluation | None = None
    """Its result on the validation images, where its training has just ended with it."""


def load_or_build(session: Session) -> Model:
    """The teacher before any training: from teacher.checkpoint, from the run's folder, or with random weights."""
    config = session.config
    file = _existing_weights(session)
    if file is not None:
        return load_network(file, config.teacher, session.classes, config.data)
    return build_model("teacher", config.teacher, len(session.classes), config.data.image_size, config.seed)


def is_trained(session: Session) -> bool:
    """Whether this run trains the teacher, or trains it further."""
    return _existing_weights(session) is None or methods.teacher_stage(session.config) is not None


def train_and_freeze(
    session: Session, model: Model, build_forward: Callable[[nn.Module], TeacherForward]
) -> FrozenTeacher:
    """Train what load_or_build() returned unless its weights come from a file, run the method's stage, and freeze it.

    build_forward(module) returns the forward pass that the method needs.
    """
    file, evaluation = _existing_weights(session), None
    if file is None:
        model, evaluation = _train(session, model)
        session.saved = "the teacher, but no epoch of the students,"
    session.folder.remove_state("teacher")
    session.display.line("teacher: trained in this run" if file is None else f"teacher: weights from {file}")
    stage = methods.teacher_stage(session.config)
    if stage is not None:
        model, evaluation = _train_stage(session, model, stage)
    model = freeze(session.runtime, model)
    mark = fingerprint(model.module.state_dict())
    return FrozenTeacher(model, mark, build_forward(model.module), reader.open_cache(session, model), evaluation)


def freeze(runtime: Runtime, model: Model) -> Model:
    """The model on the run's device, in eval mode and without gradients."""
    module = runtime.place(model.module).eval().requires_grad_(False)
    return replace(model, module=module)


def describe_source(session: Session) -> str:
    """Where the teacher comes from, for messages."""
    return session.config.teacher.checkpoint or "the teacher of this run"


def refuse_other_stem(session: Session, model: Model, stem: str) -> None:
    """CheckpointError if the run began with the same weights in a network of another stem."""
    if model.stem != stem:
        raise CheckpointError(
            f'{session.folder.path} was started with a teacher of stem "{stem}", but {describe_source(session)} with '
            f'the same weights has stem "{model.stem}": put that one back, or start another run'
        )


def _existing_weights(session: Session) -> Path | None:
    """The file with the teacher's weights, None if the run has yet to train it."""
    file = _weights_file(session, "teacher")
    if session.config.teacher.checkpoint is not None:
        return Path(session.config.teacher.checkpoint)
    return file if file.exists() else None


def _weights_file(session: Session, role: str) -> Path:
    return session.folder.path / f"{role}.safetensors"


def _train(session: Session, model: Model) -> tuple[Model, Evaluation | None]:
    options = session.config.teacher
    epochs = options.epochs or session.config.training.epochs
    return _fit(session, TeacherTask(session, model, options, epochs), epochs)


def _train_stage(session: Session, model: Model, stage: TeacherStage) -> tuple[Model, Evaluation | None]:
    """The teacher after a stage: from the run's folder if the stage is complete, else trained now."""
    origin, file = fingerprint(model.module.state_dict()), _weights_file(session, SHAPED_TEACHER)
    evaluation = None
    if file.exists():
        shaped = _load_stage(session, model, origin, file)
    else:
        _log_stage(session, model, origin, stage)
        shaped, evaluation = _fit(session, StageTask(session, model, stage, origin), stage.epochs)
        session.saved = "the teacher and its further training, but no epoch of the students,"
    session.folder.remove_state(SHAPED_TEACHER)
    session.display.line(f"teacher: after {stage.name}, {stage.epochs} epochs")
    return shaped, evaluation


def _load_stage(session: Session, model: Model, origin: str, file: Path) -> Model:
    """The result of a complete stage. CheckpointError if the stage began with another teacher than this one."""
    events = session.folder.events("teacher_stage")[-1:]
    if [event["origin"] for event in events] != [origin]:
        raise CheckpointError(f"{file} was trained from another teacher: put that one back, or start another run")
    shaped = load_network(file, session.config.teacher, session.classes, session.config.data)
    refuse_other_stem(session, model, shaped.stem)
    return shaped


def _log_stage(session: Session, model: Model, origin: str, stage: TeacherStage) -> None:
    """Log the teacher that a stage begins with, once. CheckpointError if it began with another stem."""
    events = session.folder.events("teacher_stage")[-1:]
    if [event["origin"] for event in events] == [origin]:
        refuse_other_stem(session, model, events[0].get("stem", model.stem))  # logs of earlier versions have no stem
    elif session.world.is_rank0:
        session.folder.log("teacher_stage", name=stage.name, origin=origin, stem=model.stem)


def _fit(session: Session, task: TeacherTask, epochs: int) -> tuple[Model, Evaluation | None]:
    """Train, save the result and give every rank the weights of rank 0. Returns the result and its evaluation, None if
    an earlier process made it."""
    evaluation, network = fit(session, task, epochs, task.role).evaluations.get(task.role), task.network
    session.save_weights(_weights_file(session, task.role), network.model, network.result)
    session.world.broadcast_from_rank0(network.result.buffers())
    return replace(network.model, module=network.result), evaluation
