"""The one epoch loop, for the teacher's own training as for the students'. It knows no method by name."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from udskd.data import to_device
from udskd.errors import CheckpointError, ConfigError
from udskd.training.checkpoint import load_state, save_state
from udskd.training.evaluate import brief, evaluate
from udskd.training.network import Network
from udskd.training.runtime import derive_seed
from udskd.training.session import Session
from udskd.training.tensorboard import Board


class Task(ABC):
    """Networks to train together, and their loss for one batch."""

    title: ClassVar[str]
    event: ClassVar[str]
    """Name of the task's epochs in log.jsonl."""
    phase: ClassVar[int]
    """Keeps the random numbers (dropout) of the phases of a run apart."""
    networks: Sequence[Network]

    @abstractmethod
    def losses(self, images: Tensor, target: Tensor) -> dict[str, Tensor]:
        """ "loss" (differentiable), further scalars by name, and possibly "weight" and "entropy" [B]."""


@dataclass
class Meter:
    """Sums of the loss and its parts over an epoch, on the device until read() brings them over, once."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    weights: list[Tensor] = field(default_factory=list)
    entropies: list[Tensor] = field(default_factory=list)
    steps: int = 0

    def add(self, terms: dict[str, Tensor]) -> None:
        """Take in one step's terms without waiting for them."""
        self.steps += 1
        for name, value in terms.items():
            if name == "weight":
                self.weights.append(value.detach())
            elif name == "entropy":
                self.entropies.append(value.detach())
            else:
                value = value.detach().double()
                self.sums[name] = self.sums[name] + value if name in self.sums else value

    def read(self) -> dict[str, Any]:
        """Means over the steps: loss, components; over the images: weight {mean, p10, p90} and mean entropy."""
        names = list(self.sums)
        means = (torch.stack([self.sums[n] for n in names]) / self.steps).tolist()
        values: dict[str, Any] = dict(zip(names, means, strict=True))
        out: dict[str, Any] = {"loss": values.pop("loss"), "components": values}
        if self.weights:
            w = torch.cat(self.weights).float().cpu().numpy()
            p10, p90 = np.percentile(w, [10, 90])
            out["weight"] = {"mean": float(w.mean()), "p10": float(p10), "p90": float(p90)}
            out["entropy"] = float(torch.cat(self.entropies).double().mean())
        return out


def fit(session: Session, task: Task, epochs: int, state_file: Path) -> dict[str, dict[str, float]]:
    """Train until `epochs` are complete, continuing from state_file if it is there. Returns the metrics of the last
    epoch by role.

    After every epoch: evaluation (when due), a line in the log, the best weights of each network, then the state for
    --resume.
    """
    done, metrics = _restore(session, task, state_file, epochs)
    board = Board(session.folder.path, task.event) if session.config.training.tensorboard else None
    for epoch in range(done, epochs):
        values = train_epoch(session, task, epoch, f"{task.title} {epoch + 1}/{epochs}")
        if not math.isfinite(values["loss"]):
            raise ConfigError(
                f"the loss of {task.title} epoch {epoch + 1} is {values['loss']}: lower training.lr, "
                "lengthen training.warmup_epochs or set training.clip_grad_norm"
            )
        if (epoch + 1) % session.config.training.eval_every == 0 or epoch + 1 == epochs:
            metrics = evaluate_networks(session, task.networks)
            values |= metrics
        session.display.line(_line(task, epoch + 1, epochs, values))
        session.folder.log(task.event, epoch=epoch + 1, **values)
        if board is not None:
            board.write(epoch + 1, values)
        _save(session, task, epoch + 1, epochs, values, metrics, state_file)
    return metrics


def train_epoch(session: Session, task: Task, epoch: int, title: str) -> dict[str, Any]:
    """One pass over the training images. Nothing is read back from the device before its end."""
    runtime, loader = session.runtime, session.train
    # dropout's random numbers are a function of the epoch, as the views are
    torch.manual_seed(derive_seed(session.config.seed, task.phase, epoch))
    for network in task.networks:
        network.module.train()
    meter, images_seen, begin = Meter(), 0, time.perf_counter()
    first = epoch * loader.steps_per_epoch
    with session.display.steps(title, loader.steps_per_epoch) as advance:
        for batch in loader.epoch(epoch):
            images, target = to_device(
                batch, session.config.data, runtime.device, len(session.classes), runtime.memory_format
            )
            terms = task.losses(images, target)
            terms["loss"].backward()  # type: ignore[no-untyped-call]
            for network in task.networks:
                network.step(first + batch.step)
            meter.add(terms)
            images_seen += len(batch)
            advance()
            session.stop.poll()
    if not meter.steps:
        raise ConfigError("an epoch had no batch at all: every image of it was unreadable")
    values = meter.read()  # waits for the device, so the clock is right
    seconds = time.perf_counter() - begin
    lrs = {f"lr_{n.role.removeprefix('student_')}": n.optimizer.param_groups[0]["lr"] for n in task.networks}
    return {**lrs, "images": images_seen, "seconds": seconds, "images_per_second": images_seen / seconds, **values}


def evaluate_networks(session: Session, networks: Sequence[Network]) -> dict[str, dict[str, float]]:
    """The metrics of each network (of its average, where one is kept) by role."""
    results = {network.role: network.result for network in networks}
    return evaluate(results, session.val, session.config.data, session.runtime, session.display, session.stop)


def _restore(session: Session, task: Task, path: Path, epochs: int) -> tuple[int, dict[str, dict[str, float]]]:
    if not path.exists():
        session.folder.rewind(task.event, 0)
        return 0, {}
    state = load_state(path)
    try:
        for network in task.networks:
            network.load_state(state["networks"][network.role])
        done, metrics = int(state["epoch"]), state["metrics"]
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} does not belong to this run's networks ({reason})") from None
    session.folder.rewind(task.event, done)
    session.saved = f"{done} of {epochs} epochs of the {task.title}"
    session.display.line(f"continuing after {task.title} epoch {done} of {epochs}")
    return done, metrics


def _save(
    session: Session, task: Task, done: int, epochs: int, values: dict[str, Any], metrics: dict[str, Any], path: Path
) -> None:
    for network in task.networks:
        if network.role in values and network.is_best(values[network.role], done):
            file = session.folder.checkpoints / f"{network.role}_best.safetensors"
            session.save_weights(file, network.model, network.result)
    networks = {network.role: network.state() for network in task.networks}
    save_state(path, {"epoch": done, "metrics": metrics, "networks": networks})
    session.saved = f"{done} of {epochs} epochs of the {task.title}"


def _line(task: Task, epoch: int, epochs: int, values: dict[str, Any]) -> str:
    parts = [f"{task.title} {epoch}/{epochs}", f"loss {values['loss']:.4f}"]
    parts += [f"{n.role}: {brief(values[n.role])}" for n in task.networks if n.role in values]
    return " | ".join([*parts, f"{values['images_per_second']:.0f} images/s"])
