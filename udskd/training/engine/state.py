"""The train state: what a run saves so that it continues exactly, bit for bit, after it was stopped or killed.

checkpoints/NAME.pt holds, for one phase of a run (the teacher, its stage, or the students):
- the counts of complete epochs and of complete steps in the next one;
- of each network and each part of a method: weights, buffers, momentum, the average of the weights, the best metrics;
- the loss scale of fp16;
- the sums of the metrics over the incomplete epoch, of each process;
- fingerprints of what the phase was trained with (the teacher's weights), which must not have changed.

No random state is saved, because every random number is a function of the step. A view (crop, flip, colours, mixup) is
a function of (seed, epoch, image), the order of the images one of (seed, epoch), the learning rate one of the step, and
dropout is reseeded before each step from (seed, phase, step, rank).

Three more parts keep a continued run exact: RunFolder.truncate_log removes what was logged after the saved state;
Runtime.data_parallel fixes the order in which gradients are summed; setup.check_options and storage/images.py refuse
other options and other images.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
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
    """How far a phase is, and what was measured in its incomplete epoch."""

    epoch: int = 0
    """Complete epochs."""
    step: int = 0
    """Complete steps of the next epoch."""
    seconds: float = 0.0
    """Training time of this epoch, without evaluation."""
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    """The metrics of the last evaluation, by role and name."""
    meter: Meter = field(default_factory=Meter)
    _since: float = field(default_factory=time.perf_counter)

    def start_next_epoch(self) -> None:
        """Count the current epoch as complete."""
        self.epoch, self.step, self.seconds, self.meter = self.epoch + 1, 0, 0.0, Meter()
        self._since = time.perf_counter()

    def add_elapsed_time(self) -> None:
        """Add the time since the last call, or since the start of the epoch, to `seconds`."""
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now


class StateFile:
    """checkpoints/NAME.pt of a run: saves and restores the train state of a phase."""

    def __init__(self, session: Session, task: Task, step: Step, epochs: int, name: str) -> None:
        self._session, self._task, self._step, self._epochs = session, task, step, epochs
        self._path = session.folder.checkpoints / f"{name}.pt"
        self._saved_at = time.monotonic()

    def restore(self) -> TrainState:
        """The saved state, loaded into the task and the step, or the initial state. The log is truncated to it.

        Raises CheckpointError if the file is damaged or belongs to another run.
        """
        session, state = self._session, TrainState()
        saved = session.world.run_on_all_ranks(self._load)
        if saved is not None:
            state = self._restored(saved)
            session.saved = self._progress(state)
            session.display.line(f"continuing after {session.saved}")
        session.folder.truncate_log(self._task.event, state.epoch)
        return state

    def is_due(self) -> bool:
        """Whether the last save is training.save_every minutes ago."""
        minutes = self._session.config.training.save_every
        return minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def save(self, state: TrainState) -> None:
        """Write the state. All processes must call it.

        Raises DataError if the processes together found more images unreadable than data.max_unreadable allows.
        """
        state.add_elapsed_time()
        session, train = self._session, self._session.train
        # a copy of `unreadable`, because the loader's threads may add to it meanwhile
        meters, by_rank = zip(*session.world.gather((state.meter.state(), dict(train.unreadable))), strict=True)
        unreadable = {image: entry for entries in by_rank for image, entry in entries.items()}
        for image, (name, reason) in unreadable.items():
            session.folder.log_unreadable(image, name, reason)
        if session.world.is_rank0:
            save_state(self._path, self._to_dict(state, list(meters)))
        session.saved = self._progress(state)
        self._saved_at = time.monotonic()
        train.refuse_too_many(unreadable)

    def _progress(self, state: TrainState) -> str:
        """What is complete, for messages."""
        epochs = f"{state.epoch} of {self._epochs} epochs of the {self._task.title}"
        steps = self._session.train.steps_per_epoch
        return epochs if state.step == 0 else f"{epochs} and {state.step} of {steps} steps of the next"

    def _to_dict(self, state: TrainState, meters: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "epoch": state.epoch,
            "step": state.step,
            "seconds": state.seconds,
            "metrics": state.metrics,
            "processes": self._session.world.ranks,
            "belongs_to": self._task.fingerprints(),
            "meters": meters,
            "networks": {trained.role: trained.state() for trained in self._task.trained},
            "scaler": self._step.state(),
        }

    def _restored(self, saved: dict[str, Any]) -> TrainState:
        """The train state in a file's values. The weights and the loss scale are loaded into the task and the step."""
        session = self._session
        world, device = session.world, session.runtime.device
        try:
            for trained in self._task.trained:
                trained.load_state(saved["networks"][trained.role])
            self._step.load_state(saved["scaler"])
            # with another number of processes than before, each meter is still counted once
            meters = [Meter.from_state(meter, device) for meter in saved["meters"][world.rank :: world.ranks]]
            fingerprints, processes = saved["belongs_to"], int(saved["processes"])
            state = TrainState(
                int(saved["epoch"]), int(saved["step"]), float(saved["seconds"]), saved["metrics"], Meter.merged(meters)
            )
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise CheckpointError(f"{self._path} does not belong to this run's networks ({reason})") from None
        self._check_fingerprints(fingerprints)
        if processes != world.ranks:
            line = f"processes: {processes} before, {world.ranks} from here on; batch-norm sees other groups of images"
            session.display.line(line)
        return state

    def _check_fingerprints(self, saved: dict[str, str]) -> None:
        for what, fingerprint in self._task.fingerprints().items():
            if saved.get(what) != fingerprint:
                raise CheckpointError(f"{self._path} was trained with another {what}: put that one back, or start anew")

    def _load(self) -> dict[str, Any] | None:
        """The values of the last file, if there is one."""
        path, earlier = self._path, previous(self._path)
        if not path.exists():  # a kill between the two renames of a save leaves only the previous file
            return load_state(earlier) if earlier.exists() else None
        try:
            return load_state(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}{self._offer_previous()}") from None

    def _offer_previous(self) -> str:
        try:
            saved = load_state(previous(self._path))
        except CheckpointError:
            return "; there is no intact one before it, so this run cannot be continued"
        where = f"after {saved['epoch']} epochs and {saved['step']} steps"
        return f"; the one before it, {where}, is intact: udskd train --resume {self._session.folder.path} --previous"


def restore_previous(folder: RunFolder) -> None:
    """Put the previous train state in the place of the last one. CheckpointError if there is none."""
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
