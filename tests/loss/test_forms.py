"""The two forms of the gradients, fused with the loss and recomputed from the logits, agree with each other and with
the oracle, whatever happens to the graph, its inputs and its gradients between the passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import udskd
from tests.loss.helpers import forms
from tests.loss.helpers.inputs import OPTIONS, LossInputs, agree, backends, can_fuse, device_of, make, same
from tests.loss.test_values import assert_as_exact_as_eager

FORMS = ("fused", "recompute")
REDUCED = {name: options for name, options in OPTIONS.items() if options.get("reduction") != "none"}
DTYPES = (torch.float64, torch.float32, torch.bfloat16)  # what the fused form takes
NATIVE = backends("cpu", "emulated", "cuda")


def put(
    backend: str, rows: int = 7, classes: int = 10, dtype: torch.dtype = torch.float32, **options: Any
) -> LossInputs:
    """Inputs on a backend's device; few rows for the emulator, which is slow."""
    rows = min(rows, 9) if backend == "emulated" else rows
    return make(rows, classes, dtype=dtype, **options).like(device=device_of(backend))


def loss_of(backend: str, form: Any, problem: LossInputs, **options: Any) -> Tensor:
    with forms.only(form):
        return udskd.dual_student_loss(*problem.inputs, backend=backend, **options).loss  # type: ignore[arg-type]


def gradients(
    backend: str, form: Any, problem: LossInputs, upstream: float = 1.0, **options: Any
) -> tuple[Tensor, ...]:
    loss = loss_of(backend, form, problem, **options)
    return torch.autograd.grad(loss, problem.logits, torch.full_like(loss, upstream))


def fusable(backend: str) -> list[dict[str, Any]]:
    return [options for options in REDUCED.values() if can_fuse(backend, options)]


@pytest.mark.slow_for(cases=lambda backend, dtype: backend == "emulated" and dtype != torch.float32)
@pytest.mark.parametrize("options", REDUCED.values(), ids=REDUCED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", NATIVE)
def test_each_form_is_as_exact_as_pytorch(backend: str, form: Any, dtype: torch.dtype, options: dict[str, Any]) -> None:
    if form == "fused" and not can_fuse(backend, options):
        pytest.skip("not in this form on a GPU")
    with forms.only(form):
        assert_as_exact_as_eager(backend, make(33, 100, seed=3), dtype, **options)


@pytest.mark.slow_for(cases=lambda backend, dtype: backend == "emulated" and dtype != torch.float32)
@pytest.mark.parametrize("shape", [(33, 100), (5, 3), (3, 2100)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", NATIVE)
def test_the_forms_agree(backend: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    made = put(backend, *shape, dtype=dtype, ignored=1)
    for options in fusable(backend):
        same(backend, *(loss_of(backend, form, made, **options).detach() for form in FORMS))
        for upstream in (1.0, -1.0, 0.0):
            for x, y in zip(*(gradients(backend, form, made, upstream, **options) for form in FORMS), strict=True):
                same(backend, x, y)


@pytest.mark.slow_for(cases=lambda backend, dtype: backend == "emulated" and dtype != torch.float32)
@pytest.mark.parametrize("upstream", [2.5, -0.3, 65536.0, 1e-6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", NATIVE)
def test_the_forms_agree_under_any_upstream_gradient(backend: str, dtype: torch.dtype, upstream: float) -> None:
    made = put(backend, 33, 100, dtype=dtype)
    for options in fusable(backend):
        for x, y in zip(*(gradients(backend, form, made, upstream, **options) for form in FORMS), strict=True):
            agree(backend, x, y)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", NATIVE)
def test_an_upstream_gradient_of_zero_gives_zero(backend: str, form: Any) -> None:
    assert all((x == 0).all() for x in gradients(backend, form, put(backend), 0.0))


@pytest.mark.parametrize(
    "scaled",
    [lambda x: x * 3, lambda x: x.double() * 3, lambda x: x.expand(5)[:3].sum(), lambda x: (x + x) + x.clone()],
    ids=["float", "in float64", "expanded", "added"],
)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", NATIVE)
def test_what_is_done_to_the_loss_reaches_the_gradients(
    backend: str, form: Any, scaled: Callable[[Tensor], Tensor]
) -> None:
    made = put(backend)
    scaled(loss_of(backend, form, made)).backward()
    for x, y in zip(made.logits, gradients(backend, form, made, 3.0), strict=True):
        assert torch.equal(x.grad, y)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", NATIVE)
def test_a_retained_graph_takes_any_upstream_gradient_each_time(backend: str, form: Any) -> None:
    made = put(backend)
    loss, passes = loss_of(backend, form, made), (2.5, 1.0, -0.5, 2.5)
    given = [torch.autograd.grad(loss, made.logits, torch.full_like(loss, x), retain_graph=True) for x in passes]
    for upstream, got in zip(passes, given, strict=True):  # read after the last: no pass may change what another gave
        for x, y in zip(got, gradients(backend, form, made, upstream), strict=True):
            agree(backend, x, y)
    for x, y in zip(given[0], given[-1], strict=True):
        same(backend, x, y)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", NATIVE)
def test_a_returned_gradient_belongs_to_the_caller(backend: str, form: Any) -> None:
    made = put(backend)
    expected, loss = gradients(backend, form, made), loss_of(backend, form, made)
    for _ in range(3):
        got = torch.autograd.grad(loss, made.logits, retain_graph=True)
        for x, y in zip(got, expected, strict=True):
            same(backend, x, y)
            x.fill_(torch.nan)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", NATIVE)
def test_backward_accumulates(backend: str, form: Any) -> None:
    made = put(backend)
    loss, expected = loss_of(backend, form, made), gradients(backend, form, made)
    for times in (1, 2, 3):
        loss.backward(retain_graph=True)
        for x, y in zip(made.logits, expected, strict=True):
            agree(backend, x.grad, times * y)  # type: ignore[arg-type]


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", NATIVE)
def test_the_gradients_of_some_are_those_of_all(backend: str, form: Any, wanted: tuple[int, ...]) -> None:
    made = put(backend)
    for options in ({}, {"detach_peer": False, "label_smoothing": 0.1}):
        everything = gradients(backend, form, made, **options)
        some = LossInputs(*(x.detach().requires_grad_(k in wanted) for k, x in enumerate(made.logits)), made.target)
        loss_of(backend, form, some, **options).backward()
        assert [x.grad is not None for x in some.logits] == [k in wanted for k in range(3)]
        one_by_one = loss_of(backend, form, made, **options)
        for k in wanted:
            same(backend, some.logits[k].grad, everything[k])  # type: ignore[arg-type]
            same(backend, torch.autograd.grad(one_by_one, made.logits[k], retain_graph=True)[0], everything[k])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", NATIVE)
def test_one_tensor_in_several_roles_gets_the_sum_of_its_gradients(backend: str, form: Any) -> None:
    made = put(backend)
    teacher, student = made.logits[:2]
    expected = gradients(backend, form, LossInputs(teacher, student, student.detach().requires_grad_(), made.target))
    both = gradients(backend, form, LossInputs(None, student, student, made.target), kd_weight=0.0)[0]
    one = gradients(backend, form, LossInputs(None, student, None, made.target))[0]
    agree(backend, both, 2 * one)
    loss = loss_of(backend, form, LossInputs(teacher, student, student, made.target))
    twice = torch.autograd.grad(loss, [teacher, student])
    agree(backend, twice[0], expected[0])
    agree(backend, twice[1], expected[1] + expected[2])


@pytest.mark.parametrize("retained", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", NATIVE)
def test_a_second_derivative_is_refused(backend: str, form: Any, retained: bool) -> None:
    made = put(backend)
    loss, expected = loss_of(backend, form, made), gradients(backend, form, made)
    if retained:
        torch.autograd.grad(loss, made.logits, retain_graph=True)
    first = torch.autograd.grad(loss, made.logits, create_graph=True)
    for x, y in zip(first, expected, strict=True):
        same(backend, x.detach(), y)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        sum(x.square().sum() for x in first).backward()


@pytest.mark.parametrize("backend", NATIVE)
def test_the_fused_form_does_not_read_the_logits_again(backend: str) -> None:
    made = put(backend)
    expected, (t, a, b) = gradients(backend, "fused", made), (x * 1 for x in made.logits)
    loss = loss_of(backend, "fused", LossInputs(t, a, b, made.target))
    for x in (t, a, b):
        x.detach().zero_()
    assert all(torch.equal(x, y) for x, y in zip(torch.autograd.grad(loss, [t, a, b]), expected, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", NATIVE)
def test_logits_that_changed_before_they_are_looked_at_again_are_an_error(backend: str, form: Any) -> None:
    made = put(backend)
    loss = loss_of(backend, form, made)
    if form == "fused":
        torch.autograd.grad(loss, made.logits, retain_graph=True)
    with torch.no_grad():
        made.student_a.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, made.logits)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", NATIVE)
def test_checkpointing_changes_nothing(backend: str, form: Any) -> None:
    made = put(backend)
    with forms.only(form):
        loss = checkpoint(
            lambda *logits: udskd.dual_student_loss(*logits, made.target, backend=backend).loss,
            *made.logits,
            use_reentrant=False,
        )
        again = torch.autograd.grad(loss, made.logits)
    assert all(torch.equal(x, y) for x, y in zip(again, gradients(backend, form, made), strict=True))


@pytest.mark.parametrize("upstream", [float("nan"), float("inf")])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", NATIVE)
def test_ignored_rows_stay_zero_whatever_comes_from_upstream(backend: str, form: Any, upstream: float) -> None:
    made = put(backend, 4, 20, ignored=2)
    with forms.only(form):
        loss = udskd.dual_student_loss(*made.inputs, backend=backend).loss
        (gradient,) = torch.autograd.grad(loss, made.student_a, torch.full_like(loss, upstream))
    assert made.target is not None
    assert (gradient[made.target == -100] == 0).all()
    assert not gradient[made.target != -100].isfinite().all()
