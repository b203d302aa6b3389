"""The training step of a recipe outside of a run: the very code that trains, with nothing evaluated, nothing saved."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from udskd import methods
from udskd.config import schema
from udskd.config.schema import ROLES, STUDENTS, Config, Stem, StudentConfig, TeacherConfig
from udskd.data import Batch, EvalLoader, ImageSet, Shard, TrainLoader, to_device
from udskd.data.loader import OnUnreadable
from udskd.models.loading import stem_of
from udskd.models.zoo import Model
from udskd.progress import Display
from udskd.training.engine.loop import train_epoch
from udskd.training.engine.session import Session
from udskd.training.engine.state import TrainState
from udskd.training.engine.step import Step
from udskd.training.engine.task import Inputs
from udskd.training.networks.trainable import build_model
from udskd.training.runtime.device import Runtime
from udskd.training.runtime.distributed import StopConsensus, World
from udskd.training.runtime.signals import StopRequest
from udskd.training.storage.run_folder import RunFolder
from udskd.training.tasks import teacher
from udskd.training.tasks.students import StudentsSetup, StudentsTask
from udskd.training.tasks.teacher import FrozenTeacher

WITHOUT = {"teacher.checkpoint": None, "training.save_every": 0.0}


class StepBenchmark:
    """A recipe's networks, newly initialised (their weights do not change how long a step takes), and their training
    on some images. A teacher's cache stands in for the teacher, as in the run, with logits of zero."""

    def __init__(self, config: Config, images: ImageSet, on_unreadable: OnUnreadable | None = None) -> None:
        """Raises ConfigError for what the device cannot do, and DataError for too few images."""
        self.config = config = schema.with_values(config, {"teacher.stem": _stem(config), **WITHOUT})
        world, training = World(), config.training
        self.runtime = Runtime.from_config(training, world)
        self.runtime.loss_backend(config.loss)
        shard, rows = Shard(parts=training.accumulate), training.batch_size
        self.loader = TrainLoader(
            images,
            config.data,
            seed=config.seed,
            batch_size=rows,
            on_unreadable=on_unreadable,
            shard=shard,
            device=self.runtime.device,
        )
        session = Session(
            config,
            RunFolder(Path("no-run"), writes=False),
            self.runtime,
            self.loader,
            EvalLoader(images, replace(config.data, loader="threads"), batch_size=rows),  # is never asked for anything
            images.classes,
            Display(silent=True),
            StopConsensus(world, StopRequest()),
        )
        self.session = session
        roles = ROLES if methods.get(config.method).uses_teacher else STUDENTS
        networks = {role: build(session, role) for role in roles}
        setup = StudentsSetup.from_config(config, len(images.classes), networks)
        self.taught = self._teacher(networks["teacher"], setup) if "teacher" in networks else None
        self.task = StudentsTask(session, setup, self.taught, networks)
        step = Step(self.task, self.runtime, shard.parts, shard.rows(self.loader.batch_size), training.cuda_graph)
        self.step = step
        self.position = TrainState(session, self.task, step, training.epochs, session.folder.path / "none")
        self.steps = 0

    def _teacher(self, model: Model, setup: StudentsSetup) -> FrozenTeacher:
        config, runtime = self.config, self.runtime
        model = teacher.freeze(self.session, model)
        classes, dtype = len(self.session.classes), runtime.dtype_of(config.teacher.precision)

        def cached(epoch: int, indices: Tensor) -> Tensor:
            return torch.zeros(len(indices), classes, dtype=dtype)

        return FrozenTeacher(
            model,
            "",
            setup.build_teacher_forward(config, runtime, model.module),
            None if config.teacher.cache is None else cached,
        )

    def batch(self) -> Batch:
        """The first part of the first step, on the device, as the loader gives it."""
        return next(iter(self.loader.epoch(0))).to(self.runtime.device)

    def inputs(self, batch: Batch) -> Inputs:
        """The same, normalised."""
        classes, runtime = len(self.session.classes), self.runtime
        images, target = to_device(batch, self.config.data, runtime.device, classes, runtime.memory_format)
        cached = None if self.taught is None or self.taught.cache is None else self.taught.cache(0, batch.indices)
        return Inputs(images, target, None if cached is None else runtime.copy_async(cached))

    def train_step(self, inputs: Inputs) -> None:
        """One step, whose parts all have the same images."""
        for trained in self.task.trained:
            trained.module.train()
        for part in range(self.loader.shard.parts):
            self.step.run(inputs, part, self.steps)
        self.steps += 1

    def train_epoch(self) -> int:
        """One epoch, loader and all, by the loop of `udskd train`; how many images it had."""
        train_epoch(self.session, self.task, self.step, self.position)
        images = self.position.meter.rows
        self.position.next_epoch()
        return images

    def close(self) -> None:
        """End the loaders' threads or processes."""
        self.session.train.close()
        self.session.val.close()


def _stem(config: Config) -> Stem:
    """The stem that the run's teacher has: that of its weights, where they are there already."""
    file = Path(config.teacher.checkpoint or "")
    return stem_of(file, config.teacher) if config.teacher.checkpoint and file.exists() else config.teacher.stem


def build(session: Session, role: str) -> Model:
    """One of the networks, with random weights."""
    config = session.config
    roles: dict[str, TeacherConfig | StudentConfig] = {
        "teacher": config.teacher,
        "student_a": config.student_a,
        "student_b": config.student_b,
    }
    options = roles[role]
    return build_model(role, options, len(session.classes), config.data.image_size, config.seed)


def seconds(work: Callable[[], object], runtime: Runtime, budget: float, warm_up: int = 1) -> float:
    """The least time that a work took, in seconds: of as many runs as a time budget allows, and always of one.

    The least, because whatever else the machine does can only add to it. Of a work for which there is hardly time, a
    warm-up counts as well; but not on a GPU, where libraries load kernels and choose among them at first.
    """
    hurried = runtime.device.type != "cuda"

    def once() -> float:
        begin = time.perf_counter()
        work()
        runtime.synchronize()
        return time.perf_counter() - begin

    begin, best = time.perf_counter(), float("inf")
    for _ in range(warm_up):
        best = once()
        if hurried and time.perf_counter() - begin + best > budget:
            return best
    best = once()
    while time.perf_counter() - begin + best < budget:
        best = min(best, once())
    return best
