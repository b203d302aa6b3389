"""How far a phase of a run is, to the step; saved, restored, and put into words."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from udskd.errors import CheckpointError
from udskd.training.engine.meter import Meter
from udskd.training.engine.session import Session
from udskd.training.engine.step import Step
from udskd.training.engine.task import Task
from udskd.training.storage.checkpoint import load_state, previous, save_state
from udskd.training.storage.run_folder import RunFolder


@dataclass
class TrainState:
    """Epochs done, steps done in the next one, and what has been summed up in it."""

    session: Session
    task: Task
    stepper: Step
    epochs: int
    path: Path
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    """Training time in this epoch, without what is done between epochs."""
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)
    _since: float = field(default_factory=time.perf_counter)
    _saved_at: float = field(default_factory=time.monotonic)

    @staticmethod
    def restored(session: Session, task: Task, stepper: Step, epochs: int, name: str) -> TrainState:
        """Where checkpoints/NAME.pt says we are, or the beginning. CheckpointError if damaged or another run's."""
        position = TrainState(session, task, stepper, epochs, session.folder.checkpoints / f"{name}.pt")
        state = session.world.run_on_all_ranks(lambda: _find(position.path, session))
        if state is not None:
            position._restore(state)
            session.saved = position.words()
            session.display.line(f"continuing after {session.saved}")
        session.folder.truncate_log(task.event, position.epoch)
        position._since = time.perf_counter()
        return position

    def next_epoch(self) -> None:
        """The epoch is complete, evaluated and logged."""
        self.epoch, self.step, self.seconds, self.meter = self.epoch + 1, 0, 0.0, Meter()
        self._since = time.perf_counter()

    def lap(self) -> None:
        """Add the time since the last lap to the epoch's."""
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now

    def save_is_due(self) -> bool:
        """Whether the last save is training.save_every minutes ago."""
        minutes = self.session.config.training.save_every
        return minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def save(self) -> None:
        """Write the state; all processes must call it."""
        self.lap()
        world, folder, train = self.session.world, self.session.folder, self.session.train
        # a copy, since a thread that makes batches ahead may find more
        meters, found = zip(*world.gather((self.meter.state(), dict(train.unreadable))), strict=True)
        unreadable = {image: complaint for theirs in found for image, complaint in theirs.items()}
        for image, (name, reason) in unreadable.items():
            folder.log_unreadable(image, name, reason)  # what another process found is news here
        if world.is_rank0:
            save_state(self.path, {**self._numbers(), "meters": list(meters), **self._weights()})
        self.session.saved = self.words()
        self._saved_at = time.monotonic()
        train.refuse_too_many(unreadable)

    def words(self) -> str:
        """What is complete, for messages."""
        epochs = f"{self.epoch} of {self.epochs} epochs of the {self.task.title}"
        steps = self.session.train.steps_per_epoch
        return epochs if self.step == 0 else f"{epochs} and {self.step} of {steps} steps of the next"

    def _numbers(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "metrics": self.metrics,
            "processes": self.session.world.ranks,
            "belongs_to": self.task.fingerprints(),
        }

    def _weights(self) -> dict[str, Any]:
        networks = {trained.role: trained.state() for trained in self.task.trained}
        return {"networks": networks, "scaler": self.stepper.state()}

    def _restore(self, state: dict[str, Any]) -> None:
        world, device = self.session.world, self.session.runtime.device
        try:
            self.epoch, self.step, self.metrics = int(state["epoch"]), int(state["step"]), state["metrics"]
            self.seconds = float(state["seconds"])
            for trained in self.task.trained:
                trained.load_state(state["networks"][trained.role])
            self.stepper.load_state(state["scaler"])
            mine = state["meters"][world.rank :: world.ranks]  # of another number of processes, all find a place
            self.meter = Meter.joined([Meter.from_state(meter, device) for meter in mine])
            theirs, processes = state["belongs_to"], int(state["processes"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{self.path} does not belong to this run's networks ({reason})") from None
        for what, mark in self.task.fingerprints().items():
            if theirs.get(what) != mark:
                raise CheckpointError(f"{self.path} was trained with another {what}: put that one back, or start anew")
        if processes != world.ranks:
            line = f"processes: {processes} before, {world.ranks} from here on; batch-norm sees other groups of images"
            self.session.display.line(line)


def _find(path: Path, session: Session) -> dict[str, Any] | None:
    """The last state that is there, if any."""
    if not path.exists() and not previous(path).exists():
        return None
    if not path.exists():  # we were killed between the two renames of a save
        return load_state(previous(path))
    try:
        return load_state(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_offer(previous(path), session)}") from None


def restore_previous(folder: RunFolder) -> None:
    """Put the state before the last one in the last one's place. CheckpointError if there is none."""
    for name in ("students", "teacher_shaped", "teacher"):
        path = folder.checkpoints / f"{name}.pt"
        if previous(path).exists():
            load_state(previous(path))
            try:
                os.replace(previous(path), path)
            except OSError as error:
                raise CheckpointError(f"cannot replace {path}: {error.strerror or error}") from error
            return
    raise CheckpointError(f"{folder.path} has no state before the last one: leave --previous out")


def _offer(path: Path, session: Session) -> str:
    try:
        state = load_state(path)
    except CheckpointError:
        return "; there is no intact one before it, so this run cannot be continued"
    where = f"after {state['epoch']} epochs and {state['step']} steps"
    return f"; the one before it, {where}, is intact: udskd train --resume {session.folder.path} --previous"
