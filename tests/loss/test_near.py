"""Accuracy where it is hard: confident rows, networks that nearly agree or are far apart, extreme temperatures.

As in test_values.py, our error is at most twice PyTorch's own, both against float64 of the same inputs; but here of
every quantity the largest error over many rows, so that nothing depends on one lucky number, and for 16-bit logits
against PyTorch in float32, which only rounds the gradients.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

import udskd
from tests.loss.helpers import eager, forms
from tests.loss.helpers.inputs import LossInputs, backends, device_of

NATIVE = backends("cpu", "emulated", "cuda")
# Without a fused multiply-add, and with four places to a vector, rounding adds up to somewhat more than PyTorch's,
# which uses whatever the processor has.
WITHOUT_FMA = 1.5 if udskd.build_info()["simd"] == "baseline" else 1.0
LENIENCE = {"cpu": WITHOUT_FMA, "emulated": WITHOUT_FMA, "cuda": 1.0}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"temperature": 1.0}, {"temperature": 2.5, "peer_temperature": 1.5})
NAMES = ("loss", "ce_a", "ce_b", "kd_a", "kd_b", "peer_a", "peer_b", "weight", "entropy")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(classes: int) -> int:
    return 64 if classes == 1000 else 128


def noise(classes: int, seed: int) -> Tensor:
    return torch.randn(rows(classes), classes, generator=generator(seed), dtype=torch.float64)


def labels(classes: int) -> Tensor:
    return torch.randint(0, classes, (rows(classes),), generator=generator(9))


def confident(classes: int, p: float) -> LossInputs:
    """Every network is right with probability p or more."""
    right = p + (1 - p) / 2 * torch.rand(rows(classes), 1, generator=generator(1), dtype=torch.float64)
    target = labels(classes)
    others = torch.rand(rows(classes), classes, generator=generator(2), dtype=torch.float64)
    others = others.scatter(1, target[:, None], 0.0)
    sure = (others / others.sum(1, keepdim=True) * (1 - right)).scatter(1, target[:, None], right).log()
    return LossInputs(sure, sure * 1.1, sure * 0.9, target)


def near(classes: int, apart: float) -> LossInputs:
    """Three networks whose logits differ by about `apart`."""
    teacher = 3 * noise(classes, 1)
    return LossInputs(
        teacher, teacher + apart * noise(classes, 2), teacher + apart * noise(classes, 3), labels(classes)
    )


def far(classes: int, network: int = 0, offset: float = 0.0, seed: int = 0) -> LossInputs:
    """Unrelated networks, one of them offset."""
    logits = [3 * noise(classes, 100 * seed + k) for k in (1, 2, 3)]
    logits[network] = logits[network] + offset
    return LossInputs(*logits, labels(classes))


def measure(
    loss: Any, problem: LossInputs, learning: tuple[int, ...], reduction: str, **options: Any
) -> dict[str, Tensor]:
    """Every component of every row, where rows are not reduced, and the gradients of the logits that learn."""
    out = loss(*problem.inputs, reduction=reduction, **options)
    gradients = torch.autograd.grad(out.loss.sum(), [problem.logits[k] for k in learning])
    components = dict(zip(NAMES, out, strict=True)) if reduction == "none" else {}
    return components | {f"gradient of {('teacher', 'a', 'b')[k]}": x for k, x in zip(learning, gradients, strict=True)}


def errors(
    backend: str, problem: LossInputs, dtype: torch.dtype, learning: tuple[int, ...], **options: Any
) -> Iterable[tuple[str, float, float]]:
    """For every quantity in every form: its name, our largest error, and the largest allowed error."""
    if backend == "emulated" and 0 in learning:  # a block for each row, of whose threads each takes a microsecond
        problem = LossInputs(*(x[:48] for x in problem.logits), problem.target[:48])  # type: ignore[index]
    rounded = problem.like(dtype)
    exact = measure(eager.dual_student_loss, rounded.like(torch.float64, None, learning), learning, "none", **options)
    theirs = measure(eager.dual_student_loss, rounded.like(torch.float32, None, learning), learning, "none", **options)
    for form, reduction in (("recompute", "none"), ("fused", "sum")):
        if form == "fused" and dtype == torch.float16:
            continue
        with forms.only(form):  # type: ignore[arg-type]
            moved = rounded.like(None, device_of(backend), learning)
            ours = measure(udskd.dual_student_loss, moved, learning, reduction, backend=backend, **options)
        for name, x in ours.items():
            x = x.cpu()
            as_ours = theirs[name].to(x.dtype).double()
            slack = 2 * torch.finfo(torch.float32).eps * exact[name].abs().max().item() + torch.finfo(x.dtype).tiny
            own = (x.double() - exact[name]).abs().max().item()
            yield f"{name}, {form}", own, 2 * (as_ours - exact[name]).abs().max().item() + slack


def assert_as_exact(
    backend: str, problem: LossInputs, learning: tuple[int, ...] = (1, 2), more: float = 1.0, **options: Any
) -> None:
    for dtype in DTYPES:
        for name, own, allowed in errors(backend, problem, dtype, learning, **options):
            assert own <= more * LENIENCE[backend] * allowed, (name, dtype, own, allowed, options)


@pytest.mark.slow_for(cases=lambda backend, classes: backend == "emulated" and classes != 10)
@pytest.mark.parametrize("classes", [10, 100, 1000])
@pytest.mark.parametrize("backend", NATIVE)
def test_confident_rows(backend: str, classes: int) -> None:
    for p in (0.9, 0.99, 0.999, 1 - 1e-7):
        for options in OPTIONS:
            assert_as_exact(backend, confident(classes, p), **options)


@pytest.mark.slow_for(cases=lambda backend: backend == "emulated")
@pytest.mark.parametrize("classes", [10, 100, 1000])
@pytest.mark.parametrize("backend", NATIVE)
def test_networks_that_nearly_agree(backend: str, classes: int) -> None:
    for apart in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        for options in OPTIONS:
            assert_as_exact(backend, near(classes, apart), **options)


@pytest.mark.slow_for(cases=lambda backend: backend == "emulated")
@pytest.mark.parametrize("classes", [10, 100, 1000])
@pytest.mark.parametrize("backend", NATIVE)
def test_one_network_far_from_the_others(backend: str, classes: int) -> None:
    for seed in (0, 1):
        for network, offset in ((0, 0.0), (0, 1e4), (1, -1e4), (2, 1e4)):
            assert_as_exact(backend, far(classes, network, offset, seed), temperature=1.0)
            assert_as_exact(backend, far(classes, network, offset, seed))


@pytest.mark.slow_for(cases=lambda backend, classes: backend == "emulated" and classes != 10)
@pytest.mark.parametrize("classes", [10, 100, 1000])
@pytest.mark.parametrize("backend", NATIVE)
def test_temperatures_from_a_twentieth_to_a_thousand(backend: str, classes: int) -> None:
    for temperature, other, unsure in itertools.product((0.05, 1e3), repeat=3):
        options = {"peer_temperature": other, "uncertainty_temperature": unsure}
        assert_as_exact(backend, far(classes), temperature=temperature, **options)


@pytest.mark.slow_for(cases=lambda backend, classes: backend == "emulated" and classes != 10)
@pytest.mark.parametrize("classes", [10, 100, 1000])
@pytest.mark.parametrize("backend", NATIVE)
def test_smoothed_labels(backend: str, classes: int) -> None:
    for seed in (0, 1):
        for smoothing in (0.1, 0.5, 0.9):
            assert_as_exact(backend, far(classes, seed=seed), label_smoothing=smoothing)


@pytest.mark.slow_for(cases=lambda backend: backend == "emulated")
@pytest.mark.parametrize("classes", [10, 100, 1000])
@pytest.mark.parametrize("backend", NATIVE)
def test_gradients_into_what_is_learned_from(backend: str, classes: int) -> None:
    for problem in (confident(classes, 1 - 1e-7), confident(classes, 0.99), near(classes, 0.1), far(classes)):
        for options in OPTIONS:
            # p (log(p / q) - KL) at temperature 1 multiplies what log(p / q) was rounded by: 2.2 times PyTorch's error
            assert_as_exact(backend, problem, (0, 1, 2), more=1.25, detach_peer=False, **options)


@pytest.mark.slow_for(cases=lambda backend: backend == "emulated")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", NATIVE)
def test_where_an_error_is_more_than_twice_that_of_pytorch_it_is_not_sixteen_times(
    backend: str, dtype: torch.dtype
) -> None:
    for problem in (confident(1000, 1 - 1e-7), confident(1000, 0.99), near(1000, 0.1), far(1000)):
        for options in ({"label_smoothing": 0.1, "peer_temperature": 2.5}, {"temperature": 1.0}):
            for name, own, allowed in errors(backend, problem, dtype, (0, 1, 2), detach_peer=False, **options):
                assert own <= 8 * allowed, name


@pytest.mark.parametrize("classes", [10, 100, 1000])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("backend", NATIVE)
def test_small_divergences_have_small_relative_errors(backend: str, temperature: float, classes: int) -> None:
    problem = near(classes, 1.5e-3).like(torch.float32)
    given = {"temperature": temperature, "reduction": "none", "uncertainty": "none"}
    exact = eager.dual_student_loss(*problem.like(torch.float64).inputs, **given)
    moved = problem.like(device=device_of(backend))
    ours = udskd.dual_student_loss(*moved.inputs, backend=backend, **given)
    theirs = eager.dual_student_loss(*problem.inputs, **given)
    assert 1e-7 < exact.kd_a.mean() < 1e-5
    for name in ("kd_a", "kd_b", "peer_a", "peer_b"):
        x, own, other = (getattr(out, name).double().cpu() for out in (exact, ours, theirs))
        assert ((own - x) / x).abs().max() < 1e-3
        assert ((other - x) / x).abs().max() > 0.1
