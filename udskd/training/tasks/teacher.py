"""The teacher: loaded from a checkpoint, or trained on the same images; perhaps taught further; then frozen."""

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
from udskd.training.networks.teacher_output import Saying
from udskd.training.networks.trainable import Network, build_model
from udskd.training.teacher_cache import reader

SHAPED = "teacher_shaped"


class TeacherTask(Task):
    """Cross-entropy of one network."""

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
        """The objective's terms."""
        with self._autocast():
            logits = self.network.forward(inputs.images)
        return self.objective(logits.float(), inputs.target)

    def objective(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The cross-entropy, as "loss"."""
        return {"loss": F.cross_entropy(logits, target, label_smoothing=self._smoothing)}


class StageTask(TeacherTask):
    """What a method has a trained teacher learn before it is frozen."""

    title = "teacher's stage"
    event = "teacher_stage_epoch"
    phase = 2
    role = SHAPED

    def __init__(self, session: Session, model: Model, stage: TeacherStage, origin: str) -> None:
        # a copy, and an average of weights is frozen: what was measured so far stays as it is
        model = replace(model, module=copy.deepcopy(model.module).requires_grad_(True))
        super().__init__(session, model, replace(session.config.teacher, lr=stage.lr), stage.epochs)
        self._stage, self._origin = stage, origin

    def objective(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The stage's loss and what it is made of."""
        return self._stage.loss(logits, target)

    def fingerprints(self) -> dict[str, str]:
        """The teacher that it began with, by its weights."""
        return {"teacher": self._origin}


@dataclass(frozen=True)
class Taught:
    """The frozen teacher of a run."""

    model: Model
    fingerprint: str
    """Of its weights."""
    says: Saying
    """Of images [B, 3, S, S], in the arithmetic of the run."""
    cache: Callable[[int, Tensor], Tensor] | None = None
    """(epoch, indices [B]) -> logits [B, C] on the host, where they were computed beforehand."""


def find(session: Session) -> Model:
    """The teacher as it is before anything is trained: from teacher.checkpoint, from this run's folder, or random."""
    config = session.config
    file = _file(session)
    if file is not None:
        return load_network(file, config.teacher, session.classes, config.data)
    return build_model("teacher", config.teacher, len(session.classes), config.data.image_size, config.seed)


def obtain(session: Session, model: Model, says: Callable[[nn.Module], Saying]) -> Taught:
    """What find() gave, trained if it still has to be, taught further if the method wants that, and frozen; `says`
    makes of it what the method asks."""
    file = _file(session)
    if file is None:
        model = _train(session, model)
        session.saved = "the teacher, but no epoch of the students,"
    session.folder.remove_state("teacher")
    session.display.line("teacher: trained in this run" if file is None else f"teacher: weights from {file}")
    stage = methods.teacher_stage(session.config)
    if stage is not None:
        model = _further(session, model, stage)
    model = freeze(session, model)
    return Taught(model, fingerprint(model.module.state_dict()), says(model.module), reader.find(session, model))


def freeze(session: Session, model: Model) -> Model:
    """Eval mode for good (batch-norm's statistics stay) and no gradients."""
    module = session.runtime.place(model.module).eval().requires_grad_(False)
    return replace(model, module=module)


def origin(session: Session) -> str:
    """Where the teacher comes from, in words."""
    return session.config.teacher.checkpoint or "the teacher of this run"


def refuse_other_stem(session: Session, model: Model, stem: str) -> None:
    """CheckpointError if the run began with a teacher of another stem than this one of the same weights."""
    if model.stem != stem:
        raise CheckpointError(
            f'{session.folder.path} was started with a teacher of stem "{stem}", but {origin(session)} with the same '
            f'weights has stem "{model.stem}": put that one back, or start another run'
        )


def _file(session: Session) -> Path | None:
    own = _own(session)
    if session.config.teacher.checkpoint is not None:
        return Path(session.config.teacher.checkpoint)
    return own if own.exists() else None


def _own(session: Session, role: str = "teacher") -> Path:
    return session.folder.path / f"{role}.safetensors"


def _train(session: Session, model: Model) -> Model:
    options = session.config.teacher
    epochs = options.epochs or session.config.training.epochs
    return _trained(session, TeacherTask(session, model, options, epochs), epochs)


def _further(session: Session, model: Model, stage: TeacherStage) -> Model:
    """The teacher after a stage that this run has made already, or makes now."""
    origin, file = fingerprint(model.module.state_dict()), _own(session, SHAPED)
    events = session.folder.events("teacher_stage")[-1:]
    begun = [event["origin"] for event in events]
    if file.exists():
        # which teacher it came from is looked at here, since nothing else remembers it once the stage is complete
        if begun != [origin]:
            raise CheckpointError(f"{file} was made of another teacher: put that one back, or start another run")
        shaped = load_network(file, session.config.teacher, session.classes, session.config.data)
        refuse_other_stem(session, model, shaped.stem)
    else:
        if begun == [origin]:
            refuse_other_stem(session, model, events[0].get("stem", model.stem))  # earlier versions did not log it
        task = StageTask(session, model, stage, origin)
        if session.world.is_rank0 and begun != [origin]:
            session.folder.log("teacher_stage", name=stage.name, origin=origin, stem=model.stem)
        shaped = _trained(session, task, stage.epochs)
        session.saved = "the teacher and its further training, but no epoch of the students,"
    session.folder.remove_state(SHAPED)
    session.display.line(f"teacher: after {stage.name}, {stage.epochs} epochs")
    return shaped


def _trained(session: Session, task: TeacherTask, epochs: int) -> Model:
    fit(session, task, epochs, task.role)
    network = task.network
    session.save_weights(_own(session, task.role), network.model, network.result)
    session.world.broadcast_from_rank0(network.result.buffers())
    return replace(network.model, module=network.result)
