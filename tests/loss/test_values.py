"""The loss, its components and its gradients, compared with the float64 oracle of eager.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import udskd
from tests.loss.helpers import eager
from tests.loss.helpers.inputs import DTYPES, OPTIONS, LossInputs, backends, device_of, make, same

Values = tuple[list[Tensor], list[Tensor]]


def evaluate(loss: Any, problem: LossInputs, upstream: Tensor, **options: Any) -> Values:
    """All outputs, and the gradients of the logits that require them, for a random grad_output."""
    out = loss(*problem.inputs, **options)
    learning = [x for x in problem.logits if x.requires_grad]
    if not out.loss.requires_grad:  # no term is computed: eager PyTorch returns a constant
        return list(out), [torch.zeros_like(x) for x in learning]
    gradients = torch.autograd.grad(out.loss, learning, upstream.to(out.loss), allow_unused=True)
    zeros = [torch.zeros_like(x) if g is None else g for x, g in zip(learning, gradients, strict=True)]
    return [x.detach() for x in out], zeros


def upstream_for(problem: LossInputs, options: dict[str, Any]) -> Tensor:
    shape = (len(problem.student_a),) if options.get("reduction") == "none" else ()
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2


def error(ours: Tensor, exact: Tensor) -> float:
    return (ours.double().cpu() - exact.cpu()).abs().max().item() if exact.numel() else 0.0


def slack(ours: Tensor, exact: Tensor) -> float:
    """What a lucky rounding of PyTorch's may not cost us: two units in the last place, or in float64 (where the oracle
    rounds, too) 1e-12."""
    largest = exact.abs().max().item() if exact.numel() else 0.0
    return (
        1e-12 * (1 + largest)
        if ours.dtype == torch.float64
        else 2 * torch.finfo(ours.dtype).eps * largest + torch.finfo(ours.dtype).tiny
    )


def errors(
    backend: str, problem: LossInputs, dtype: torch.dtype, learning: tuple[int, ...], **options: Any
) -> list[tuple[float, float, float]]:
    """For every output and gradient: our error, PyTorch's own, and the slack."""
    rounded = problem.like(dtype, device_of(backend), learning)
    exact_problem = rounded.like(torch.float64, "cpu", learning)
    upstream = upstream_for(problem, options)
    exact = evaluate(eager.dual_student_loss, exact_problem, upstream, **options)
    ours = evaluate(udskd.dual_student_loss, rounded, upstream.to(device_of(backend)), backend=backend, **options)
    theirs = evaluate(eager.dual_student_loss, rounded.like(dtype, "cpu", learning), upstream, **options)
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    assert [x.dtype for x in ours[0] + ours[1]] == [arithmetic] * len(ours[0]) + [dtype] * len(ours[1])
    assert [x.shape for x in ours[0] + ours[1]] == [x.shape for x in exact[0] + exact[1]]
    found = zip(ours[0] + ours[1], theirs[0] + theirs[1], exact[0] + exact[1], strict=True)
    return [(error(x, e), error(t, e), slack(x, e)) for x, t, e in found]


def assert_as_exact_as_eager(
    backend: str,
    problem: LossInputs | Sequence[LossInputs],
    dtype: torch.dtype,
    learning: tuple[int, ...] = (0, 1, 2),
    **options: Any,
) -> None:
    """flash-attention's rule: our error is at most twice PyTorch's own, both against float64 of the same rounded
    inputs. Several problems of few numbers, of which one may be lucky, are taken together."""
    problems = [problem] if isinstance(problem, LossInputs) else problem
    for k, each in enumerate(zip(*(errors(backend, x, dtype, learning, **options) for x in problems), strict=True)):
        ours, theirs, more = (max(numbers) for numbers in zip(*each, strict=True))
        assert ours <= 2 * theirs + more, (k, ours, theirs)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("backend", backends())
def test_every_option_agrees_with_the_oracle_in_float64(backend: str, options: dict[str, Any]) -> None:
    assert_as_exact_as_eager(backend, make(9, 13), torch.float64, **options)


@pytest.mark.slow_for(cases=lambda backend, dtype: backend == "emulated" and dtype != torch.bfloat16)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("learning", [(0, 1, 2), (1, 2)], ids=["all learn", "students learn"])
@pytest.mark.parametrize("backend", backends())
def test_error_is_at_most_twice_that_of_pytorch(
    backend: str, learning: tuple[int, ...], dtype: torch.dtype, options: dict[str, Any]
) -> None:
    assert_as_exact_as_eager(backend, make(33, 100, seed=3), dtype, learning, **options)


@pytest.mark.parametrize("classes", [2, 3, 15, 16, 17, 31, 33, 100, 511, 512, 513, 1000, 1001, 2047, 2048, 4097, 21841])
@pytest.mark.parametrize("backend", backends("cpu", "emulated", "cuda"))
def test_every_number_of_classes(backend: str, classes: int) -> None:
    problems = [make(3, classes, seed=classes + 10**5 * k) for k in range(8 if classes < 5000 else 2)]
    for learning in ((0, 1, 2), (1, 2)):
        assert_as_exact_as_eager(backend, problems, torch.float32, learning)


@pytest.mark.slow_for(cases=lambda backend, rows: backend == "emulated" and rows == 257)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 257])
@pytest.mark.parametrize("backend", backends())
def test_every_number_of_rows(backend: str, rows: int) -> None:
    problems = [make(rows, 21, seed=rows + 1000 * k) for k in range(8)]
    for learning in ((0, 1, 2), (1, 2)):
        assert_as_exact_as_eager(backend, problems, torch.float32, learning)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", backends("cpu", "cuda"))  # not emulated: millions of logits
def test_a_batch_too_large_for_caches_has_the_gradients_of_its_parts(backend: str, dtype: torch.dtype) -> None:
    rows, classes = 16 * 264, 1001  # parts of sixteen rows have the alignment of the whole
    g, device = torch.Generator().manual_seed(0), device_of(backend)
    logits = [torch.randn(rows, classes, generator=g).to(device, dtype).requires_grad_() for _ in range(3)]
    labels = torch.randint(0, classes, (rows,), generator=g).to(device)
    loss = udskd.dual_student_loss(*logits, labels, reduction="sum", backend=backend).loss
    whole = torch.autograd.grad(loss, logits[1:])
    for begin in range(0, rows, rows // 8):
        part = [x.detach()[begin : begin + rows // 8].requires_grad_() for x in logits]
        each = udskd.dual_student_loss(*part, labels[begin : begin + rows // 8], reduction="sum", backend=backend).loss
        for x, y in zip(torch.autograd.grad(each, part[1:]), whole, strict=True):
            same(backend, x, y[begin : begin + rows // 8])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("backend", backends())
def test_ignored_rows_count_for_nothing(backend: str, reduction: str, normalized: bool) -> None:
    assert_as_exact_as_eager(
        backend, make(12, 10, ignored=5), torch.float64, reduction=reduction, normalize_weights=normalized
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", backends())
def test_target_as_probabilities(backend: str, dtype: torch.dtype, smoothing: float) -> None:
    assert_as_exact_as_eager(backend, make(8, 11, target="soft"), dtype, label_smoothing=smoothing)


@pytest.mark.parametrize(
    "missing",
    [
        {"teacher": False},
        {"two": False},
        {"target": None},
        {"teacher": False, "two": False},
        {"two": False, "target": None},
    ],
)
@pytest.mark.parametrize("backend", backends())
def test_without_teacher_peer_or_target(backend: str, missing: dict[str, Any]) -> None:
    assert_as_exact_as_eager(backend, make(6, 9, **missing), torch.float64)


@pytest.mark.parametrize("teacher_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("student_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", backends())
def test_the_teacher_may_have_another_dtype(
    backend: str, teacher_dtype: torch.dtype, student_dtype: torch.dtype
) -> None:
    problem, device = make(5, 12).like(student_dtype, device_of(backend)), device_of(backend)
    assert problem.teacher is not None
    teacher = problem.teacher.detach().to(teacher_dtype).requires_grad_()
    out = udskd.dual_student_loss(teacher, *problem.inputs[1:], backend=backend)
    exact_problem = problem.like(torch.float64)
    exact = eager.dual_student_loss(teacher.detach().double().to(device), *exact_problem.inputs[1:])
    wide = torch.float64 in (teacher_dtype, student_dtype)
    assert out.loss.dtype == (torch.float64 if wide else torch.float32)
    torch.testing.assert_close(out.loss.double(), exact.loss, rtol=1e-12 if wide else 2e-6, atol=0)
    gradients = torch.autograd.grad(out.loss, [teacher, problem.student_a])
    assert [g.dtype for g in gradients] == [teacher_dtype, student_dtype]


@pytest.mark.parametrize("backend", backends())
def test_given_weights_are_taken_as_they_are(backend: str) -> None:
    weight = torch.tensor([0.0, 0.5, 2.0, 7.0], dtype=torch.float64)
    for trust in ("confident", "uncertain"):
        problem = make(4, 6).like(device=device_of(backend))
        out = udskd.dual_student_loss(
            *problem.inputs, uncertainty=weight.to(device_of(backend)), trust=trust, backend=backend
        )  # type: ignore[arg-type]
        assert torch.equal(out.weight.cpu(), weight)
        assert_as_exact_as_eager(
            backend, make(4, 6), torch.float64, uncertainty=weight.to(device_of(backend)), trust=trust
        )


@pytest.mark.parametrize("backend", backends())
@given(
    rows=st.integers(1, 9),
    classes=st.integers(2, 70),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([0.01, 1.0, 10.0, 60.0]),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 3.0, 4.0, 7.3, 20.0]),
    peer_temperature=st.sampled_from([None, 1.0, 5.0]),
    uncertainty=st.sampled_from(["entropy", "max_prob", "margin", "none"]),
    trust=st.sampled_from(["confident", "uncertain"]),
    uncertainty_temperature=st.sampled_from([1.0, 3.0]),
    normalize_weights=st.booleans(),
    detach_peer=st.booleans(),
    label_smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    target=st.sampled_from([None, "hard", "soft"]),
    teacher=st.booleans(),
    two=st.booleans(),
)
def test_any_combination_agrees_in_float64(
    backend: str,
    rows: int,
    classes: int,
    seed: int,
    scale: float,
    target: str | None,
    teacher: bool,
    two: bool,
    **options: Any,
) -> None:
    problem = make(rows, classes, seed=seed, scale=scale, target=target, teacher=teacher, two=two)
    if options["normalize_weights"] and teacher:  # a batch whose weights are all but 0 has no meaningful mean
        assert problem.teacher is not None
        weight, _ = eager.teacher_weight(
            problem.teacher, options["uncertainty"], options["trust"], options["uncertainty_temperature"]
        )
        options["normalize_weights"] = bool(weight.mean() > 1e-6)
    assert_as_exact_as_eager(backend, problem, torch.float64, **options)
