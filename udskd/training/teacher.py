"""The teacher: loaded from a checkpoint, or trained on the same images; then frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from udskd.config import Config
from udskd.models import Model
from udskd.training import cache
from udskd.training.checkpoint import fingerprint
from udskd.training.fit import fit
from udskd.training.frozen import Frozen
from udskd.training.network import Network, build_model
from udskd.training.runtime import Runtime
from udskd.training.session import Session
from udskd.training.task import Inputs, Task
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

    def losses(self, inputs: Inputs) -> dict[str, Tensor]:
        """The cross-entropy, as "loss"."""
        with self._autocast():
            logits = self.network.forward(inputs.images)
        return {"loss": F.cross_entropy(logits.float(), inputs.target, label_smoothing=self._smoothing)}


@dataclass(frozen=True)
class Taught:
    """The frozen teacher of a run."""

    model: Model
    fingerprint: str
    """Of its weights."""
    logits: Callable[[Tensor], Tensor]
    """[B, C] of images [B, 3, S, S], in the arithmetic of the run."""
    cache: Callable[[int, Tensor], Tensor] | None = None
    """(epoch, indices [B]) -> logits [B, C] on the host, where they were computed beforehand."""


def find(session: Session) -> Model:
    """The teacher as it is before anything is trained: from teacher.checkpoint, from this run's folder, or random."""
    config = session.config
    file = _file(session)
    if file is not None:
        return load_network(file, config.teacher, session.classes, config.data)
    return build_model("teacher", config.teacher, len(session.classes), config.data.image_size, config.seed)


def obtain(session: Session, model: Model) -> Taught:
    """What find() gave, trained if it still has to be, and frozen."""
    file = _file(session)
    if file is None:
        model = _train(session, model)
        session.saved = "the teacher, but no epoch of the students,"
    session.folder.forget_state("teacher")
    session.display.line("teacher: trained in this run" if file is None else f"teacher: weights from {file}")
    model = freeze(session, model)
    return Taught(
        model,
        fingerprint(model.module.state_dict()),
        answering(session.config, session.runtime, model),
        cache.find(session, model),
    )


def answering(config: Config, runtime: Runtime, model: Model) -> Frozen:
    """The teacher's answers in a run with these options."""
    return Frozen(model.module, runtime, runtime.dtype_of(config.teacher.precision), config.training.compile)


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
    fit(session, task, epochs, "teacher")
    session.save_weights(_own(session), model, task.network.result)
    session.world.equalise(task.network.result.buffers())
    return replace(model, module=task.network.result)
