"""What `python -m bench.step` times: udskd's training in its variants and the plain loop, as a whole and in parts."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import memory, plain_pytorch
from bench.plain_pytorch import PlainLoop
from bench.timing import TimedLoop, repeat
from udskd.config import schema
from udskd.config.schema import ROLES, STUDENTS, Config
from udskd.data import open_sets
from udskd.doctor.step_benchmark import StepBenchmark
from udskd.errors import DataError
from udskd.training.engine.task import Inputs
from udskd.training.networks.trainable import build_model

LAYOUTS = {"plain": torch.contiguous_format, "plain, channels_last": torch.channels_last}
LEARNING_RATE = 1e-3  # so low that the many updates of one batch leave all weights finite


@dataclass(frozen=True)
class TrainingLoop:
    """One implementation of training, which has already run once."""

    name: str
    parts: Mapping[str, TimedLoop]
    """The step and its parts."""
    peak_bytes: int | None
    """Memory of a step beyond weights and batch; None where a CUDA graph hides it."""
    source: str
    """Where an epoch's images come from."""
    train_epoch: Callable[[], int]
    """Trains for one epoch; returns the number of images."""


# --- udskd ------------------------------------------------------------------------------------------------------------


def config_of(options: argparse.Namespace, root: Path, **changed: Any) -> Config:
    """The recipe of all implementations."""
    values = {
        "data.root": str(root),
        "data.image_size": options.image_size,
        "data.workers": options.workers,
        "teacher.model": options.teacher,
        "student_a.model": options.student_a,
        "student_b.model": options.student_b,
        **{f"{role}.stem": options.stem for role in ROLES},
        "training.batch_size": options.batch,
        "training.device": options.device,
        "training.lr": LEARNING_RATE,
        **changed,
    }
    return schema.with_values(Config(), values)


def variants(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The options in which each variant of udskd's training differs from the first."""
    out: dict[str, dict[str, Any]] = {"udskd": {}}
    if options.device == "cpu":
        out["udskd, teacher in bf16"] = {"teacher.precision": "bf16"}
    if options.graph:
        out["udskd, graph"] = {"training.cuda_graph": True}
    if options.compile:
        out["udskd, compiled"] = {"training.compile": True}
    if options.graph and options.compile:
        out["udskd, compiled, graph"] = {"training.compile": True, "training.cuda_graph": True}
    return out


def udskd_parts(benchmark: StepBenchmark, inputs: Inputs) -> dict[str, TimedLoop]:
    """The parts of udskd's step; they share their weights with it."""
    assert benchmark.taught is not None
    batch, parts = benchmark.batch(), dict[str, TimedLoop]()
    parts["uint8 to normalised float32"] = repeat(lambda: benchmark.inputs(batch))
    parts["teacher"] = repeat(partial(benchmark.taught.forward, inputs.images))
    for network in benchmark.task.networks:
        parts[network.role] = repeat(forward_backward(network.forward, inputs.images, benchmark.runtime.autocast))
    answers = benchmark.task.answers(inputs)  # with gradients: torch.compile would compile again for no_grad
    a, b = (x.detach().requires_grad_() for x in (answers.student_a, answers.student_b))
    answers = replace(answers, student_a=a, student_b=b)
    parts["loss"] = repeat(lambda: torch.autograd.grad(benchmark.task.method.loss(answers)["loss"], (a, b)))
    modules = (trained.module for trained in benchmark.task.trained)
    parts["update"] = repeat(with_zero_gradients(modules, benchmark.step.update))
    return parts


def udskd_loop(name: str, benchmark: StepBenchmark, options: argparse.Namespace) -> TrainingLoop:
    """A variant after its first steps; only its step if that is a CUDA graph."""
    inputs, graph = benchmark.inputs(benchmark.batch()), benchmark.config.training.cuda_graph
    parts = {"step": repeat(partial(benchmark.train_step, inputs))} | ({} if graph else udskd_parts(benchmark, inputs))
    warm_up(parts, times=4 if graph else 1)  # the fourth step captures the graph
    peak = None if graph else memory.peak_bytes(parts["step"], options.device)
    print(f"ready: {name}", flush=True)
    return TrainingLoop(name, parts, peak, benchmark.config.data.loader, benchmark.train_epoch)


# --- the plain loop ---------------------------------------------------------------------------------------------------


def plain_parts(plain: PlainLoop, inputs: Inputs) -> dict[str, TimedLoop]:
    batch, labels = inputs.images.to(memory_format=plain.layout), inputs.target
    students = zip(STUDENTS, plain.students, strict=True)
    with torch.no_grad(), plain.autocast():
        teacher, *logits = [network(batch) for network in (plain.teacher, *plain.students)]
    a, b = (x.detach().requires_grad_() for x in logits)
    return {
        "step": repeat(lambda: plain.step(batch, labels)),
        "teacher": repeat(lambda: plain.teacher_logits(batch)),
        **{role: repeat(forward_backward(student, batch, plain.autocast)) for role, student in students},
        "loss": repeat(lambda: torch.autograd.grad(plain.loss_of(teacher, a, b, labels), (a, b))),
        "update": repeat(with_zero_gradients(plain.students, plain.update)),
    }


def make_plain(config: Config, classes: int, benchmark: StepBenchmark, layout: torch.memory_format) -> PlainLoop:
    """The plain loop with the same networks and initial weights."""
    size, seed = config.data.image_size, config.seed
    roles = {"teacher": config.teacher, "student_a": config.student_a, "student_b": config.student_b}
    modules = [build_model(role, options, classes, size, seed).module for role, options in roles.items()]
    return PlainLoop(*modules, config, benchmark.runtime.device, benchmark.runtime.dtype, layout)


def plain_loops(benchmark: StepBenchmark, images: int, classes: int, options: argparse.Namespace) -> list[TrainingLoop]:
    """The plain loop in each layout, after a first step; both take their epochs from one loader."""
    data, loops = benchmark.config.data, []
    batches = plain_pytorch.loader(data, range(images), options.batch, options.workers, options.device)
    for name, layout in LAYOUTS.items():
        plain = make_plain(benchmark.config, classes, benchmark, layout)
        parts = plain_parts(plain, benchmark.inputs(benchmark.batch()))
        warm_up(parts)
        peak = memory.peak_bytes(parts["step"], options.device)
        loops.append(TrainingLoop(name, parts, peak, "files", partial(plain.epoch, batches)))
        print(f"ready: {name}", flush=True)
    return loops


# --- both -------------------------------------------------------------------------------------------------------------


def warm_up(parts: Mapping[str, TimedLoop], times: int = 1) -> None:
    for loop in parts.values():
        loop(times)


def with_zero_gradients(modules: Iterable[nn.Module], update: Callable[[], object]) -> Callable[[], object]:
    """An update for which every parameter has a gradient of zeros."""
    gradients = [(p, torch.zeros_like(p)) for module in modules for p in module.parameters() if p.requires_grad]

    def once() -> object:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        return update()

    return once


def forward_backward(
    forward: Callable[[Tensor], Tensor], batch: Tensor, autocast: Callable[[], Any]
) -> Callable[[], object]:
    """The forward and backward pass of a student, whose gradients are discarded."""
    parameters = [p for p in forward.parameters() if p.requires_grad]  # type: ignore[attr-defined]

    def once() -> object:
        with autocast():
            logits = forward(batch)
        return torch.autograd.grad(logits.float().square().mean(), parameters)

    return once


def prepare(stack: ExitStack, root: Path, options: argparse.Namespace, end: float) -> list[TrainingLoop]:
    """All implementations, each after a first step.

    A variant that fails here, or would begin after `end` (time.monotonic()), is reported and left out.
    """
    train, _ = open_sets(config_of(options, root).data)
    if len(train) < options.batch:
        raise DataError(f"an epoch of {len(train)} images is smaller than one batch of {options.batch}")
    first, *others = variants(options)

    def make_benchmark(name: str) -> StepBenchmark:
        mode = "resident" if options.device == "cuda" else "threads"
        benchmark = StepBenchmark(config_of(options, root, **variants(options)[name], **{"data.loader": mode}), train)
        stack.callback(benchmark.close)
        return benchmark

    benchmark = make_benchmark(first)
    loops = [udskd_loop(first, benchmark, options), *plain_loops(benchmark, len(train), len(train.classes), options)]
    for name in others:
        if time.monotonic() > end:
            print(f"no time left for {name}", flush=True)
            continue
        try:
            loops.append(udskd_loop(name, make_benchmark(name), options))
        except Exception as failure:
            print(f"skipped: {name}: {(str(failure).strip() or type(failure).__name__).splitlines()[0]}", flush=True)
    return loops
