"""The steps of one epoch, from a loader's batches to updated weights. `udskd train`, `udskd doctor` and the benchmarks
run this same code."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

from udskd.data import Batch, TrainLoader, normalize_batch
from udskd.training.engine.meter import Meter
from udskd.training.engine.step import Step
from udskd.training.engine.task import Inputs, Task
from udskd.training.runtime.device import Runtime


class EpochTrainer:
    """Trains a task on the batches of a loader. It neither evaluates nor writes files."""

    def __init__(self, runtime: Runtime, loader: TrainLoader, task: Task, cuda_graph: bool = False) -> None:
        self.runtime, self.loader, self.task = runtime, loader, task
        parts, rows = loader.shard.parts, loader.shard.rows(loader.batch_size)
        self.step = Step(task, runtime, parts, rows, cuda_graph)

    def run(self, epoch: int, first_step: int, meter: Meter) -> Generator[int]:
        """Train the steps of an epoch from first_step on. Yields the number of complete steps after each of them.

        The terms of the loss are added to the meter. Nothing is read back from the device before the epoch ends.
        """
        loader, runtime, task = self.loader, self.runtime, self.task
        for trained in task.trained:
            trained.module.train()
        with closing(runtime.prefetch(loader.epoch(epoch, first_step))) as batches:
            for batch in batches:
                number = epoch * loader.steps_per_epoch + batch.step
                if batch.part == 0:
                    runtime.seed(loader.seed, task.phase, number)
                    task.set_epoch(number / loader.steps_per_epoch)
                terms = self.step.run(self.inputs(batch, epoch), batch.part, number)
                if terms:
                    meter.add(terms, len(batch))
                if batch.part == loader.shard.parts - 1:
                    yield batch.step + 1
        runtime.synchronize()  # the caller measures the time of the whole epoch

    def inputs(self, batch: Batch, epoch: int) -> Inputs:
        """The batch on the device: normalised images, target, and the teacher's logits where they are cached."""
        runtime, loader = self.runtime, self.loader
        classes = len(loader.images.classes)
        images, target = normalize_batch(batch, loader.config, runtime.device, classes, runtime.memory_format)
        logits = self.task.teacher_logits(epoch, batch.indices)
        return Inputs(images, target, None if logits is None else runtime.copy_async(logits))
