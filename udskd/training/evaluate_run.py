"""A trained run evaluated again: `udskd eval`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from udskd.config.schema import ROLES, STUDENTS, DataConfig, StudentConfig, TeacherConfig
from udskd.data import EvalLoader, ImageSet, Shard, open_sets
from udskd.data.manifest import describe_changes, list_images
from udskd.data.workers import Poll
from udskd.errors import CheckpointError, Interrupted
from udskd.models import loading
from udskd.progress import Display
from udskd.training.evaluation.evaluate import MAX_EVALUATION_BATCH, Evaluator, format_metrics
from udskd.training.runtime.device import Runtime
from udskd.training.runtime.distributed import StopConsensus, World, joined_processes
from udskd.training.runtime.signals import Stopped, StopRequest
from udskd.training.storage.images import compare_listings
from udskd.training.storage.run_folder import RunFolder
from udskd.training.tasks.teacher import SHAPED_TEACHER


def evaluate_run(run: Path, data_root: str | None = None) -> dict[str, Any]:
    """Evaluate a run's trained networks on its validation images, or on those of another root with the same classes.

    Returns metrics by role ("teacher" only where the run trained one). Under torchrun the processes share the images;
    the result is the same. Raises CheckpointError if the classes differ.
    """
    with joined_processes() as (world, stop):
        display = Display(silent=not world.is_rank0)
        try:
            results = _evaluate(run, data_root, world, display, stop)
        except Stopped:
            raise Interrupted("stopped before the evaluation was complete") from None
    for role, metrics in results.items() if world.is_rank0 else ():  # print() fails where the output does
        print(f"{role}: {format_metrics(metrics)}  top-5 {metrics['top5']:.2f} %  brier {metrics['brier']:.3f}")
    return results


def _evaluate(run: Path, data_root: str | None, world: World, display: Display, stop: StopRequest) -> dict[str, Any]:
    networks, loader, data, runtime = world.run_on_all_ranks(lambda: _load(run, data_root, world))
    world.run_on_all_ranks(lambda: compare_listings(data, {"val": loader.images}, world))
    if data_root is None:
        world.run_on_all_ranks(lambda: _compare_with_run(run, loader.images, display, world, stop.poll))
    evaluator = Evaluator(loader, data, runtime, display, StopConsensus(world, stop).poll)
    return {role: evaluation.metrics for role, evaluation in evaluator.evaluate(networks).items()}


def _load(
    run: Path, data_root: str | None, world: World
) -> tuple[dict[str, nn.Module], EvalLoader, DataConfig, Runtime]:
    config = RunFolder.open(run).config
    data = config.data if data_root is None else replace(config.data, root=data_root)
    files = {role: file for role in (*ROLES, SHAPED_TEACHER) if (file := run / f"{role}.safetensors").exists()}
    if not set(STUDENTS) <= files.keys():
        raise CheckpointError(f"{run} holds no trained students yet: udskd train --resume {run} continues it")
    runtime, (_, images) = Runtime.from_config(config.training, world), open_sets(data)
    options: dict[str, TeacherConfig | StudentConfig] = {
        **{"teacher": config.teacher, SHAPED_TEACHER: config.teacher},
        **{"student_a": config.student_a, "student_b": config.student_b},
    }
    networks = {
        role: runtime.place(loading.load_network(file, options[role], images.classes, data).module)
        for role, file in files.items()
    }
    size = min(config.training.batch_size, MAX_EVALUATION_BATCH)
    return networks, EvalLoader(images, data, batch_size=size, shard=Shard(world.rank, world.ranks)), data, runtime


def _compare_with_run(run: Path, images: ImageSet, display: Display, world: World, poll: Poll) -> None:
    """Display how the validation images differ from those in the run's manifest, if it has one."""
    known = RunFolder.open(run).manifest() if world.is_rank0 else None
    if known is None or "val" not in known:
        return
    known = {"val": known["val"]}
    if changes := describe_changes(known, list_images({"val": images}, known, poll=poll)):
        display.line(f"the validation images are others than in the run: {changes}")
