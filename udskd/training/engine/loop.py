"""The one epoch loop, for the teacher's own training as for the students'. It knows no method by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from udskd.data import Batch, to_device
from udskd.errors import ConfigError
from udskd.training.engine.meter import read
from udskd.training.engine.session import Session
from udskd.training.engine.state import TrainState
from udskd.training.engine.step import Step
from udskd.training.engine.task import Inputs, Task
from udskd.training.evaluation.evaluate import evaluate, format_metrics
from udskd.training.networks.trainable import Network
from udskd.training.runtime.signals import Stopped
from udskd.training.storage.loggers import Board


def fit(session: Session, task: Task, epochs: int, name: str) -> dict[str, dict[str, float]]:
    """Train until `epochs` are complete, continuing from checkpoints/NAME.pt if it is there. Returns the metrics of the
    last epoch by role.

    After every epoch: evaluation (when due), a line in the log, the best weights of each network, then the state for
    --resume, which is also saved every training.save_every minutes and when the run is stopped.
    """
    training, shard = session.config.training, session.train.shard
    rows = shard.rows(session.train.batch_size)
    step = Step(task, session.runtime, shard.parts, rows, training.cuda_graph)
    state = TrainState.restored(session, task, step, epochs, name)
    writes = training.tensorboard and session.world.is_rank0
    board = Board(session.folder.path, task.event) if writes else None
    try:
        while state.epoch < epochs:
            _epoch(session, task, step, state, board)
    except Stopped:
        state.save()
        raise
    return state.metrics


def _epoch(session: Session, task: Task, step: Step, state: TrainState, board: Board | None) -> None:
    """The rest of the epoch that we are in."""
    epoch, epochs = state.epoch + 1, state.epochs
    train_epoch(session, task, step, state)
    values = _values(session, task, state)
    if not math.isfinite(values["loss"]):
        raise ConfigError(
            f"the loss of {task.title} epoch {epoch} is {values['loss']}: lower training.lr, "
            "lengthen training.warmup_epochs or set training.clip_grad_norm"
        )
    if epoch % session.config.training.eval_every == 0 or epoch == epochs:
        state.metrics = evaluate_networks(session, task.networks)
        values |= state.metrics
        _refuse_not_finite(task, epoch, state.metrics)
    session.display.line(_line(task, epoch, epochs, values))
    session.folder.log(task.event, epoch=epoch, **values)
    if board is not None:
        board.write(epoch, values)
    for network in task.networks:
        if network.role in values and network.is_best(values[network.role], epoch):
            file = session.folder.checkpoints / f"{network.role}_best.safetensors"
            session.save_weights(file, network.model, network.result)
    state.next_epoch()
    state.save()


def _refuse_not_finite(task: Task, epoch: int, metrics: dict[str, dict[str, float]]) -> None:
    """ConfigError for a network whose weights the last update, or whose statistics or average an earlier one ruined."""
    for role, values in metrics.items():
        if not math.isfinite(values["nll"]):
            raise ConfigError(
                f"the answers of {role} are not finite after {task.title} epoch {epoch}: lower training.lr, "
                "lengthen training.warmup_epochs or set training.clip_grad_norm"
            )


def train_epoch(session: Session, task: Task, step: Step, state: TrainState) -> None:
    """The steps of an epoch from state.step on. Nothing is read back from the device before its end."""
    loader, runtime = session.train, session.runtime
    for trained in task.trained:
        trained.module.train()
    first, parts = state.epoch * loader.steps_per_epoch, loader.shard.parts
    title = f"{task.title} {state.epoch + 1}/{state.epochs}"
    with (
        session.display.steps(title, loader.steps_per_epoch, state.step) as advance,
        closing(runtime.prefetch(loader.epoch(state.epoch, state.step))) as batches,
    ):
        for batch in batches:
            number = first + batch.step
            if batch.part == 0:  # random numbers are a function of the step, as the views are
                runtime.seed(session.config.seed, task.phase, number)
                task.set_epoch(number / loader.steps_per_epoch)
            terms = step.run(_inputs(session, task, batch, state.epoch), batch.part, number)
            if terms:
                state.meter.add(terms, len(batch))
            if batch.part == parts - 1:
                state.step = batch.step + 1
                advance()
                if session.consensus.poll(state.save_is_due()):
                    state.save()
    runtime.synchronize()  # so that the clock is right
    state.lap()


def _inputs(session: Session, task: Task, batch: Batch, epoch: int) -> Inputs:
    runtime, config = session.runtime, session.config.data
    images, target = to_device(batch, config, runtime.device, len(session.classes), runtime.memory_format)
    logits = task.teacher_logits(epoch, batch.indices)
    return Inputs(images, target, None if logits is None else runtime.copy_async(logits))


def _values(session: Session, task: Task, state: TrainState) -> dict[str, Any]:
    """The epoch's numbers, over all processes."""
    states = session.world.gather(state.meter.state())
    images = sum(state["rows"] for state in states)
    if not images:
        raise ConfigError("an epoch had no batch at all: every image of it was unreadable")
    last = (state.epoch + 1) * session.train.steps_per_epoch - 1
    lrs = {f"lr_{n.role.removeprefix('student_')}": n.schedule.lr(last) for n in task.networks}
    seconds = state.seconds
    return {**lrs, "images": images, "seconds": seconds, "images_per_second": images / seconds, **read(states)}


def evaluate_networks(session: Session, networks: Sequence[Network]) -> dict[str, dict[str, float]]:
    """The metrics of each network (of its average, where one is kept) by role."""
    results = {network.role: network.result for network in networks}
    poll = session.consensus.poll
    return evaluate(results, session.val, session.config.data, session.runtime, session.display, poll)


def _line(task: Task, epoch: int, epochs: int, values: dict[str, Any]) -> str:
    parts = [f"{task.title} {epoch}/{epochs}", f"loss {values['loss']:.4f}"]
    parts += [f"{n.role}: {format_metrics(values[n.role])}" for n in task.networks if n.role in values]
    return " | ".join([*parts, f"{values['images_per_second']:.0f} images/s"])
