"""Every method through the training loop: what it trains beside the students, and how it continues."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.helpers.runs import events, on_call, outcome
from tests.training.helpers.variants import VARIANTS, module_weights, options, run_of, step_benchmark
from udskd import methods
from udskd.config.schema import Config
from udskd.errors import Interrupted
from udskd.models.checkpoints import load_weights
from udskd.training import train
from udskd.training.storage.checkpoint import load_state
from udskd.training.tasks.students import StudentsTask


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_was_stopped_and_continued_ends_bit_identical(
    variant: str, config: Config, teacher_weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(config, {**VARIANTS[variant], "teacher.checkpoint": teacher_weights})
    straight = replace(config, output=str(tmp_path / "straight"))
    summary = train(straight)
    assert all(math.isfinite(summary[role]["nll"]) for role in ("student_a", "student_b"))
    with monkeypatch.context() as patch:
        on_call(patch, StudentsTask, "losses", 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            train(config)
    torch.manual_seed(4321)
    train(config, resume=run_of(config))
    assert outcome(run_of(config)) == outcome(run_of(straight))


@pytest.mark.parametrize(("method", "parts"), [("akd", {"alpha", "context"}), ("sdkd", {"fusion_a", "fusion_b"})])
def test_what_a_method_trains_is_in_the_state_but_not_among_the_students(
    method: str, parts: set[str], config: Config, teacher_weights: str
) -> None:
    config = options(config, {"method": method, "teacher.checkpoint": teacher_weights})
    train(config)
    state = load_state(run_of(config) / "checkpoints" / "students.pt")
    assert state["networks"].keys() == {"student_a", "student_b"} | parts
    names = load_weights(run_of(config) / "student_a.safetensors")[0].keys()
    assert names == load_weights(Path(teacher_weights))[0].keys()


def test_the_parts_of_a_method_learn(config: Config, teacher_weights: str) -> None:
    config = options(config, {"method": "sdkd", "teacher.checkpoint": teacher_weights, "training.epochs": 1})
    first = module_weights(step_benchmark(config), "fusion_a")
    train(config)
    state = load_state(run_of(config) / "checkpoints" / "students.pt")["networks"]["fusion_a"]["model"]
    changed = [name for name, value in first.items() if not torch.equal(value, state[name])]
    assert any("scale" in name for name in changed)


def test_a_parts_learning_rate_is_its_own(config: Config) -> None:
    values = {"method": "sdkd", "target.shape": "context", "akd.lr": 0.001, "sdkd.lr": 0.5}
    rates = {part.role: part.schedule.peak for part in step_benchmark(options(config, values)).task.method_modules}
    assert rates == {"context": 0.001, "fusion_a": 0.5, "fusion_b": 0.5}


def test_a_method_of_ones_own_may_keep_the_teachers_logits(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Products(methods.Method):
        name = "products"

        def loss(self, answers: methods.Answers) -> dict[str, Tensor]:
            assert answers.teacher is not None
            zero = torch.zeros(())
            students = answers.student_a + answers.student_b
            return {"loss": (answers.teacher * students).mean(), **dict.fromkeys(methods.COMPONENTS, zero)}

    monkeypatch.setitem(methods._METHODS, "products", Products)
    train(options(config, {"method": "products", "training.epochs": 1}))


def test_weights_do_not_depend_on_what_a_method_has_beside_them(config: Config, teacher_weights: str) -> None:
    """The students of sdkd begin as those of kd do."""
    weights = [
        step_benchmark(options(config, {"method": method})).task.networks[0].module.state_dict()
        for method in ("kd", "sdkd", "akd")
    ]
    assert all(torch.equal(value, other[name]) for other in weights[1:] for name, value in weights[0].items())


def test_a_step_of_any_method_can_be_timed(config: Config) -> None:
    for method in methods.names():
        benchmark = step_benchmark(options(config, {"method": method}))
        benchmark.train_step(benchmark.inputs(benchmark.batch()))
        benchmark.close()


def test_a_parts_learning_rate_follows_its_schedule(config: Config) -> None:
    benchmark = step_benchmark(options(config, {"method": "sdkd", "training.warmup_epochs": 1.0}))
    benchmark.train_step(benchmark.inputs(benchmark.batch()))
    for part in benchmark.task.method_modules:
        assert part.schedule.lr(0) < part.schedule.peak
        assert {group["lr"] for group in part.optimizer.param_groups} == {part.schedule.lr(0)}


def test_a_method_is_told_how_far_the_run_is(config: Config, teacher_weights: str) -> None:
    values = {"method": "dkd", "dkd.ramp_epochs": 1.0, "training.epochs": 2, "teacher.checkpoint": teacher_weights}
    train(options(config, values))
    first, second = events(run_of(config), "epoch")
    for event, full in ((first, False), (second, True)):
        terms = event["components"]
        ce, kd = (terms[f"{name}_a"] + terms[f"{name}_b"] for name in ("ce", "kd"))
        assert kd > 0.01
        assert (event["loss"] == pytest.approx(ce + kd, rel=1e-4)) == full


def test_what_is_not_to_be_seen_leaves_no_trace_in_a_part(config: Config) -> None:
    """A process whose images could not be read takes part with blanks."""
    benchmark = step_benchmark(options(config, {"method": "akd"}))
    (alpha,) = (part.module for part in benchmark.task.method_modules if part.role == "alpha")
    benchmark.train_step(benchmark.inputs(benchmark.batch()))
    before = {name: buffer.clone() for name, buffer in alpha.named_buffers()}
    with benchmark.step._keep_buffers():
        benchmark.task.losses(benchmark.inputs(benchmark.batch()).zeros(4))
        assert any(not torch.equal(before[name], buffer) for name, buffer in alpha.named_buffers())
    assert all(torch.equal(before[name], buffer) for name, buffer in alpha.named_buffers())
