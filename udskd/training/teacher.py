"""The teacher: loaded from a checkpoint, or trained on the same images; then frozen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from udskd.models import Model
from udskd.training.fit import Task, fit
from udskd.training.network import Network, build_model
from udskd.training.session import Session
from udskd.training.weights import load_network


class TeacherTask(Task):
    """Cross-entropy of one network."""

    title = "teacher"
    event = "teacher_epoch"
    phase = 0

    def __init__(self, session: Session, model: Model, epochs: int) -> None:
        options, training = session.config.teacher, session.config.training
        steps = session.train.steps_per_epoch
        self.network = Network("teacher", model, options, training, session.runtime, epochs, steps)
        self.networks = (self.network,)
        self._autocast = session.runtime.autocast
        self._smoothing = options.label_smoothing

    def losses(self, images: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The cross-entropy, as "loss"."""
        with self._autocast():
            logits = self.network.forward(images)
        return {"loss": F.cross_entropy(logits.float(), target, label_smoothing=self._smoothing)}


def find(session: Session) -> Model:
    """The teacher as it is before anything is trained: from teacher.checkpoint, from this run's folder, or random."""
    config = session.config
    file = _file(session)
    if file is not None:
        return load_network(file, config.teacher, session.classes, config.data)
    return build_model("teacher", config.teacher, len(session.classes), config.data.image_size, config.seed)


def obtain(session: Session, model: Model) -> Model:
    """What find() gave, trained if it still has to be, and frozen."""
    file = _file(session)
    if file is None:
        model = _train(session, model)
        session.saved = "the teacher, but no epoch of the students,"
    session.display.line("teacher: trained in this run" if file is None else f"teacher: weights from {file}")
    return freeze(session, model)


def freeze(session: Session, model: Model) -> Model:
    """Eval mode for good (batch-norm's statistics stay) and no gradients."""
    module = session.runtime.place(model.module).eval().requires_grad_(False)
    return replace(model, module=module)


def _file(session: Session) -> Path | None:
    own = _own(session)
    if session.config.teacher.checkpoint is not None:
        return Path(session.config.teacher.checkpoint)
    return own if own.exists() else None


def _own(session: Session) -> Path:
    return session.folder.path / "teacher.safetensors"


def _train(session: Session, model: Model) -> Model:
    epochs = session.config.teacher.epochs or session.config.training.epochs
    task = TeacherTask(session, model, epochs)
    state_file = session.folder.checkpoints / "teacher.pt"
    fit(session, task, epochs, state_file)
    session.save_weights(_own(session), model, task.network.result)
    state_file.unlink(missing_ok=True)
    return replace(model, module=task.network.result)
