"""The loop over epochs, for the teacher's own training and for the students'. It depends on no method."""

from __future__ import annotations

import math
from contextlib import closing
from typing import Any, NamedTuple

from udskd.errors import ConfigError
from udskd.training.engine.epoch import EpochTrainer
from udskd.training.engine.meter import means
from udskd.training.engine.session import Session
from udskd.training.engine.state import StateFile
from udskd.training.engine.task import Task
from udskd.training.evaluation.evaluate import Evaluation, format_metrics
from udskd.training.runtime.signals import Stopped
from udskd.training.storage.loggers import TensorBoardLogger

MetricsByRole = dict[str, dict[str, float]]
"""The metrics of each role, by name."""
REMEDY = "lower training.lr, lengthen training.warmup_epochs or set training.clip_grad_norm"


class Fitted(NamedTuple):
    """What fit() measured in the last epoch."""

    metrics: MetricsByRole
    evaluations: dict[str, Evaluation]
    """By role; {} if an earlier process completed the last epoch."""


def fit(session: Session, task: Task, epochs: int, name: str) -> Fitted:
    """Train until `epochs` are complete, continuing from checkpoints/NAME.pt if it exists.

    Each epoch ends with: evaluation (when due), a line in the log, the best weights of each network, the train state.
    The train state is also saved every training.save_every minutes and when a signal stops the run.
    """
    return _Fit(session, task, epochs, name).run()


class _Fit:
    def __init__(self, session: Session, task: Task, epochs: int, name: str) -> None:
        training = session.config.training
        self._session, self._task, self._epochs = session, task, epochs
        self._trainer = EpochTrainer(session.runtime, session.train, task, training.cuda_graph)
        self._file = StateFile(session, task, self._trainer.step, epochs, name)
        self._state = self._file.restore()
        self._evaluations: dict[str, Evaluation] = {}
        writes = training.tensorboard and session.world.is_rank0
        self._tensorboard = TensorBoardLogger(session.folder.path, task.event) if writes else None

    def run(self) -> Fitted:
        try:
            while self._state.epoch < self._epochs:
                self._train_epoch()
                self._end_epoch(self._state.epoch + 1)
        except Stopped:
            self._file.save(self._state)
            raise
        return Fitted(self._state.metrics, self._evaluations)

    def _train_epoch(self) -> None:
        """The steps of the current epoch that are left."""
        session, state = self._session, self._state
        title = f"{self._task.title} {state.epoch + 1}/{self._epochs}"
        steps = self._trainer.run(state.epoch, state.step, state.meter)
        with session.display.steps(title, session.train.steps_per_epoch, state.step) as advance, closing(steps):
            for done in steps:
                state.step = done
                advance()
                if session.consensus.poll(self._file.is_due()):
                    self._file.save(state)
        state.add_elapsed_time()

    def _end_epoch(self, epoch: int) -> None:
        """Evaluate, log and save. epoch: counted from 1."""
        session, task, state = self._session, self._task, self._state
        values = self._values(epoch)
        if not math.isfinite(values["loss"]):
            raise ConfigError(f"the loss of {task.title} epoch {epoch} is {values['loss']}: {REMEDY}")
        if epoch % session.config.training.eval_every == 0 or epoch == self._epochs:
            self._evaluations = self._evaluate(epoch)
            state.metrics = {role: evaluation.metrics for role, evaluation in self._evaluations.items()}
            values |= state.metrics
        session.display.line(self._line(epoch, values))
        session.folder.log(task.event, epoch=epoch, **values)
        if self._tensorboard is not None:
            self._tensorboard.write(epoch, values)
        self._save_best(epoch, values)
        state.start_next_epoch()
        self._file.save(state)

    def _values(self, epoch: int) -> dict[str, Any]:
        """The epoch's numbers, over all processes."""
        states = self._session.world.gather(self._state.meter.state())
        images, seconds = sum(state["rows"] for state in states), self._state.seconds
        if not images:
            raise ConfigError("an epoch had no batch at all: every image of it was unreadable")
        last = epoch * self._session.train.steps_per_epoch - 1
        lrs = {f"lr_{n.role.removeprefix('student_')}": n.schedule.lr(last) for n in self._task.networks}
        return {**lrs, "images": images, "seconds": seconds, "images_per_second": images / seconds, **means(states)}

    def _evaluate(self, epoch: int) -> dict[str, Evaluation]:
        """The result of each network (of its average, where one is kept) by role. ConfigError if the last update, or an
        earlier one through batch-norm's statistics or the average, left values that are not finite."""
        evaluations = self._session.evaluator.evaluate({n.role: n.result for n in self._task.networks})
        for role, evaluation in evaluations.items():
            if not math.isfinite(evaluation.metrics["nll"]):
                where = f"the logits of {role} are not finite after {self._task.title} epoch {epoch}"
                raise ConfigError(f"{where}: {REMEDY}")
        return evaluations

    def _line(self, epoch: int, values: dict[str, Any]) -> str:
        parts = [f"{self._task.title} {epoch}/{self._epochs}", f"loss {values['loss']:.4f}"]
        parts += [f"{n.role}: {format_metrics(values[n.role])}" for n in self._task.networks if n.role in values]
        return " | ".join([*parts, f"{values['images_per_second']:.0f} images/s"])

    def _save_best(self, epoch: int, values: dict[str, Any]) -> None:
        for network in self._task.networks:
            if network.role in values and network.is_best(values[network.role], epoch):
                file = self._session.folder.checkpoints / f"{network.role}_best.safetensors"
                self._session.save_weights(file, network.model, network.result)
