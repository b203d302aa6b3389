"""The training step of a recipe outside of a run: the code that trains, without evaluation and without files."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from udskd import methods
from udskd.config import schema
from udskd.config.schema import ROLES, STUDENTS, Config, Stem, StudentConfig, TeacherConfig
from udskd.data import Batch, ImageSet, Shard, TrainLoader
from udskd.data.loader import OnUnreadable
from udskd.models.loading import stem_of
from udskd.models.zoo import Model
from udskd.training.engine.epoch import EpochTrainer
from udskd.training.engine.meter import Meter
from udskd.training.engine.task import Inputs
from udskd.training.networks.trainable import build_model
from udskd.training.runtime.device import Runtime
from udskd.training.tasks import teacher
from udskd.training.tasks.students import StudentsSetup, StudentsTask
from udskd.training.tasks.teacher import FrozenTeacher


class StepBenchmark:
    """The step of a recipe's method on the given images.

    The networks have random weights, also the teacher, because weights do not change how long a step takes. A teacher's
    cache replaces the teacher as in the run, with logits of zero.
    """

    def __init__(self, config: Config, images: ImageSet, on_unreadable: OnUnreadable | None = None) -> None:
        """Raises ConfigError for what the device cannot do, and DataError for too few images."""
        self.config = config = schema.with_values(config, {"teacher.stem": _stem(config), "teacher.checkpoint": None})
        self.runtime = Runtime.from_config(config.training)
        self.runtime.loss_backend(config.loss)
        self.loader = TrainLoader(
            images,
            config.data,
            seed=config.seed,
            batch_size=config.training.batch_size,
            on_unreadable=on_unreadable,
            shard=Shard(parts=config.training.accumulate),
            device=self.runtime.device,
        )
        models = self._models()
        setup = StudentsSetup.from_config(config, self._classes, models)
        self.taught = self._teacher(models["teacher"], setup) if "teacher" in models else None
        self.task = StudentsTask(config, self.runtime, self.loader.steps_per_epoch, setup, self.taught, models)
        self.trainer = EpochTrainer(self.runtime, self.loader, self.task, config.training.cuda_graph)
        self.step = self.trainer.step
        self._steps = self._epochs = 0

    @property
    def _classes(self) -> int:
        return len(self.loader.images.classes)

    def _models(self) -> dict[str, Model]:
        config = self.config
        options: dict[str, TeacherConfig | StudentConfig] = {
            "teacher": config.teacher,
            "student_a": config.student_a,
            "student_b": config.student_b,
        }
        roles = ROLES if methods.get(config.method).uses_teacher else STUDENTS
        size, seed = config.data.image_size, config.seed
        return {role: build_model(role, options[role], self._classes, size, seed) for role in roles}

    def _teacher(self, model: Model, setup: StudentsSetup) -> FrozenTeacher:
        config, runtime, classes = self.config, self.runtime, self._classes
        model = teacher.freeze(runtime, model)
        dtype = runtime.dtype_of(config.teacher.precision)

        def cached(epoch: int, indices: Tensor) -> Tensor:
            return torch.zeros(len(indices), classes, dtype=dtype)

        cache = None if config.teacher.cache is None else cached
        return FrozenTeacher(model, "", setup.build_teacher_forward(config, runtime, model.module), cache)

    def batch(self) -> Batch:
        """The first part of the first step as the loader gives it, on the device."""
        return next(iter(self.loader.epoch(0))).to(self.runtime.device)

    def inputs(self, batch: Batch) -> Inputs:
        """The inputs that the step makes of a batch."""
        return self.trainer.inputs(batch, 0)

    def train_step(self, inputs: Inputs) -> None:
        """One step. All its parts have the same images."""
        for trained in self.task.trained:
            trained.module.train()
        for part in range(self.loader.shard.parts):
            self.step.run(inputs, part, self._steps)
        self._steps += 1

    def train_epoch(self) -> int:
        """One epoch from the loader's first batch on. Returns how many images it had."""
        meter = Meter()
        for _ in self.trainer.run(self._epochs, 0, meter):
            pass
        self._epochs += 1
        return meter.rows

    def close(self) -> None:
        """End the loader's threads or processes."""
        self.loader.close()


def _stem(config: Config) -> Stem:
    """The stem of the teacher in the run: that of its weights, where the file exists."""
    file = Path(config.teacher.checkpoint or "")
    return stem_of(file, config.teacher) if config.teacher.checkpoint and file.exists() else config.teacher.stem


def seconds(work: Callable[[], object], runtime: Runtime, budget: float, warm_up: int = 1) -> float:
    """The minimum time of `work` in seconds, over as many calls as the budget (in seconds) allows, at least one.

    The minimum, because other work of the machine can only add to it. If a warm-up call uses up the budget, its time is
    returned; but not on a GPU, where libraries load and choose kernels in the first calls.
    """
    warm_up_counts = runtime.device.type != "cuda"

    def once() -> float:
        begin = time.perf_counter()
        work()
        runtime.synchronize()
        return time.perf_counter() - begin

    begin, best = time.perf_counter(), float("inf")
    for _ in range(warm_up):
        best = once()
        if warm_up_counts and time.perf_counter() - begin + best > budget:
            return best
    best = once()
    while time.perf_counter() - begin + best < budget:
        best = min(best, once())
    return best
