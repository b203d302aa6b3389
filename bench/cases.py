"""Who trains in `python -m bench.step`: udskd's own step in its variants, and the plain loop; as works to be timed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import memory
from bench.plain import Plain
from bench.timing import Work
from udskd.config import schema
from udskd.config.schema import ROLES, STUDENTS, Config
from udskd.data import open_sets
from udskd.doctor.step_benchmark import StepBenchmark
from udskd.errors import DataError
from udskd.training.engine.task import Inputs
from udskd.training.networks.trainable import build_model

LAYOUTS = {"plain": torch.contiguous_format, "plain, channels_last": torch.channels_last}
LEARNING_RATE = 1e-3  # so low that no network leaves the numbers that it began with


@dataclass
class Subjects:
    """Who trains, in the order in which they were made ready."""

    trials: dict[str, StepBenchmark] = field(default_factory=dict)
    plains: dict[str, Plain] = field(default_factory=dict)
    works: dict[tuple[str, str], Work] = field(default_factory=dict)
    """By part and name."""
    peaks: dict[str, int | None] = field(default_factory=dict)
    """Bytes that a step takes beyond weights and batch."""


# --- ours -------------------------------------------------------------------------------------------------------------


def config_of(options: argparse.Namespace, root: Path, **changed: Any) -> Config:
    """The recipe of all that is measured."""
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


def ours(trial: StepBenchmark, inputs: Inputs, parts: bool) -> dict[str, Work]:
    """The step, and what it consists of."""
    assert trial.taught is not None
    frozen, batch = trial.taught.forward, trial.batch()
    out = {"step": repeated(lambda: trial.train_step(inputs))}
    if not parts:
        return out
    out["uint8 to normalised float32"] = repeated(lambda: trial.inputs(batch))
    out["teacher"] = repeated(lambda: frozen(inputs.images))
    for network in trial.task.networks:
        out[network.role] = repeated(backward(network.forward, inputs.images, trial.runtime.autocast))
    answers = trial.task.answers(inputs)  # with gradients: under no_grad, networks would be compiled once more
    a, b = (x.detach().requires_grad_() for x in (answers.student_a, answers.student_b))
    answers = replace(answers, student_a=a, student_b=b)
    out["loss"] = repeated(lambda: torch.autograd.grad(trial.task.method.loss(answers)["loss"], (a, b)))
    out["update"] = repeated(moved((trained.module for trained in trial.task.trained), trial.step.update))
    return out


def repeated(once: Callable[[], object]) -> Work:
    def work(times: int) -> None:
        for _ in range(times):
            once()

    return work


def moved(modules: Iterable[nn.Module], update: Callable[[], object]) -> Callable[[], object]:
    """An update by gradients that are always there, and 0."""
    gradients = [(p, torch.zeros_like(p)) for module in modules for p in module.parameters() if p.requires_grad]

    def once() -> object:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        return update()

    return once


def backward(forward: Callable[[Tensor], Tensor], batch: Tensor, autocast: Callable[[], Any]) -> Callable[[], object]:
    """A student's pass there and back, with gradients that nobody keeps."""
    parameters = [p for p in forward.parameters() if p.requires_grad]  # type: ignore[attr-defined]

    def once() -> object:
        with autocast():
            logits = forward(batch)
        return torch.autograd.grad(logits.float().square().mean(), parameters)

    return once


# --- the plain loop ---------------------------------------------------------------------------------------------------


def theirs(plainly: Plain, inputs: Inputs) -> dict[str, Work]:
    batch, labels = inputs.images.to(memory_format=plainly.layout), inputs.target
    students = zip(STUDENTS, plainly.students, strict=True)
    with torch.no_grad(), plainly.autocast():
        said = [network(batch) for network in (plainly.teacher, *plainly.students)]
    a, b = (x.detach().requires_grad_() for x in said[1:])
    return {
        "step": repeated(lambda: plainly.step(batch, labels)),
        "teacher": repeated(lambda: plainly.answers(batch)),
        **{role: repeated(backward(student, batch, plainly.autocast)) for role, student in students},
        "loss": repeated(lambda: torch.autograd.grad(plainly.loss_of(said[0], a, b, labels), (a, b))),
        "update": repeated(moved(plainly.students, plainly.update)),
    }


def plain_loop(config: Config, classes: int, trial: StepBenchmark, layout: torch.memory_format) -> Plain:
    """The same networks with the same weights at the start."""
    size, seed = config.data.image_size, config.seed
    roles = {"teacher": config.teacher, "student_a": config.student_a, "student_b": config.student_b}
    modules = [build_model(role, options, classes, size, seed).module for role, options in roles.items()]
    runtime = trial.runtime
    return Plain(*modules, config, runtime.device, runtime.dtype, layout)


# --- all of them -----------------------------------------------------------------------------------------------------


def variants(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Ours by name: how training's options differ."""
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


def get_ready(stack: ExitStack, root: Path, options: argparse.Namespace, end: float) -> Subjects:
    """Everybody, each after a first step; a variant that cannot run here, or not in time, is named and left out."""
    subjects, (train, _) = Subjects(), open_sets(config_of(options, root).data)
    if len(train) < options.batch:
        raise DataError(f"an epoch of {len(train)} images has none of the {options.batch} that a step takes")
    mode = "resident" if options.device == "cuda" else "threads"
    for name, training in variants(options).items():
        if time.monotonic() > end:
            print(f"no time left for {name}", flush=True)
            continue
        try:
            config = schema.with_values(config_of(options, root, **training), {"data.loader": mode})
            trial = StepBenchmark(config, train)
            stack.callback(trial.close)
            works = ours(trial, trial.inputs(trial.batch()), parts="training.cuda_graph" not in training)
            add(subjects, name, works, options.device, graph="training.cuda_graph" in training)
        except Exception as failure:
            if name == "udskd":
                raise
            print(f"skipped: {name}: {(str(failure).strip() or type(failure).__name__).splitlines()[0]}", flush=True)
            continue
        subjects.trials[name] = trial
        if name == "udskd":
            for plain_name, layout in LAYOUTS.items():
                plainly = plain_loop(config, len(train.classes), trial, layout)
                add(subjects, plain_name, theirs(plainly, trial.inputs(trial.batch())), options.device)
                subjects.plains[plain_name] = plainly
    return subjects


def add(subjects: Subjects, name: str, works: Mapping[str, Work], device: str, graph: bool = False) -> None:
    """Takes in works that have run, and the memory that a step needs."""
    for work in works.values():
        work(4 if graph else 1)  # a graph is captured at its fourth step
    subjects.peaks[name] = None if graph else memory.peak(works["step"], device)
    subjects.works |= {(part, name): work for part, work in works.items()}
    print(f"ready: {name}", flush=True)
