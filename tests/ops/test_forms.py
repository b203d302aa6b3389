"""The two forms of the gradient, fused with the loss and recomputed from the logits: that they agree, with each other
and with the oracle, whatever is done to the graph, its inputs and its gradients in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import udskd
from tests.ops.problems import OPTIONS, Problem, backends, make
from tests.ops.test_values import assert_as_exact_as_eager
from udskd import forms

FORMS = ("fused", "recompute")
REDUCED = {name: options for name, options in OPTIONS.items() if options.get("reduction") != "none"}
DTYPES = (torch.float64, torch.float32, torch.bfloat16)  # what the fused form takes
pytestmark = [mark for parameter in backends("cpu") for mark in parameter.marks]


def loss_of(form: Any, problem: Problem, **options: Any) -> Tensor:
    with forms.only(form):
        return udskd.dual_student_loss(*problem.inputs, backend="cpu", **options).loss


def gradients(form: Any, problem: Problem, upstream: float = 1.0, **options: Any) -> tuple[Tensor, ...]:
    loss = loss_of(form, problem, **options)
    return torch.autograd.grad(loss, problem.logits, torch.full_like(loss, upstream))


def close(x: Tensor, y: Tensor) -> None:
    """Equal but for rounding; elements are differences of terms as large as the largest element."""
    eps = torch.finfo(y.dtype).eps
    torch.testing.assert_close(x, y, rtol=4 * eps, atol=4 * eps * y.abs().max().item())


@pytest.mark.parametrize("options", REDUCED.values(), ids=REDUCED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_as_exact_as_pytorch(form: Any, dtype: torch.dtype, options: dict[str, Any]) -> None:
    with forms.only(form):
        assert_as_exact_as_eager("cpu", make(33, 100, seed=3), dtype, **options)


@pytest.mark.parametrize("shape", [(33, 100), (5, 3), (3, 2100)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_forms_agree_to_the_bit(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    for options in REDUCED.values():
        made = make(*shape, dtype=dtype, ignored=1)
        fused, again = loss_of("fused", made, **options), loss_of("recompute", made, **options)
        assert torch.equal(fused, again)
        for upstream in (1.0, -1.0, 0.0):
            pairs = zip(*(gradients(form, made, upstream, **options) for form in FORMS), strict=True)
            assert all(torch.equal(x, y) for x, y in pairs), (options, upstream)


@pytest.mark.parametrize("upstream", [2.5, -0.3, 65536.0, 1e-6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_forms_agree_under_any_upstream_gradient(dtype: torch.dtype, upstream: float) -> None:
    for options in REDUCED.values():
        made = make(33, 100, dtype=dtype)
        for x, y in zip(*(gradients(form, made, upstream, **options) for form in FORMS), strict=True):
            close(x, y)


@pytest.mark.parametrize("form", FORMS)
def test_an_upstream_gradient_of_zero_gives_zero(form: Any) -> None:
    assert all((x == 0).all() for x in gradients(form, make(dtype=torch.float32), 0.0))


@pytest.mark.parametrize(
    "scaled",
    [lambda x: x * 3, lambda x: x.double() * 3, lambda x: x.expand(5)[:3].sum(), lambda x: (x + x) + x.clone()],
    ids=["float", "in float64", "expanded", "added"],
)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_done_to_the_loss_reaches_the_gradients(form: Any, scaled: Callable[[Tensor], Tensor]) -> None:
    made = make(dtype=torch.float32)
    scaled(loss_of(form, made)).backward()
    for x, y in zip(made.logits, gradients(form, made, 3.0), strict=True):
        assert torch.equal(x.grad, y)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_a_retained_graph_takes_any_upstream_gradient_each_time(form: Any) -> None:
    made = make(dtype=torch.float32)
    loss, passes = loss_of(form, made), (2.5, 1.0, -0.5, 2.5)
    given = [torch.autograd.grad(loss, made.logits, torch.tensor(x), retain_graph=True) for x in passes]
    for upstream, got in zip(passes, given, strict=True):  # read after the last: no pass may change what another gave
        for x, y in zip(got, gradients(form, made, upstream), strict=True):
            close(x, y)
    assert all(torch.equal(x, y) for x, y in zip(given[0], given[-1], strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_a_gradient_belongs_to_who_got_it(form: Any) -> None:
    made = make(dtype=torch.float32)
    expected, loss = gradients(form, made), loss_of(form, made)
    for _ in range(3):
        got = torch.autograd.grad(loss, made.logits, retain_graph=True)
        assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))
        for x in got:
            x.fill_(torch.nan)


@pytest.mark.parametrize("form", FORMS)
def test_backward_accumulates(form: Any) -> None:
    made = make(dtype=torch.float32)
    loss, expected = loss_of(form, made), gradients(form, made)
    for times in (1, 2, 3):
        loss.backward(retain_graph=True)
        for x, y in zip(made.logits, expected, strict=True):
            close(x.grad, times * y)  # type: ignore[arg-type]


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_the_gradients_of_some_are_those_of_all(form: Any, wanted: tuple[int, ...]) -> None:
    made = make(dtype=torch.float32)
    for options in ({}, {"detach_peer": False, "label_smoothing": 0.1}):
        everything = gradients(form, made, **options)
        some = Problem(*(x.detach().requires_grad_(k in wanted) for k, x in enumerate(made.logits)), made.target)
        loss_of(form, some, **options).backward()
        for k, x in enumerate(some.logits):
            assert torch.equal(x.grad, everything[k]) if k in wanted else x.grad is None  # type: ignore[arg-type]
        one_by_one = loss_of(form, made, **options)
        for k in wanted:
            assert torch.equal(torch.autograd.grad(one_by_one, made.logits[k], retain_graph=True)[0], everything[k])


@pytest.mark.parametrize("form", FORMS)
def test_one_tensor_in_several_roles_gets_the_sum_of_its_gradients(form: Any) -> None:
    made = make(dtype=torch.float32)
    teacher, same = made.logits[:2]
    expected = gradients(form, Problem(teacher, same, same.detach().requires_grad_(), made.target))
    both = gradients(form, Problem(None, same, same, made.target), kd_weight=0.0)[0]
    one = gradients(form, Problem(None, same, None, made.target))[0]
    close(both, 2 * one)
    twice = torch.autograd.grad(loss_of(form, Problem(teacher, same, same, made.target)), [teacher, same])
    close(twice[0], expected[0])
    close(twice[1], expected[1] + expected[2])


@pytest.mark.parametrize("retained", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_second_derivative_is_refused(form: Any, retained: bool) -> None:
    made = make(dtype=torch.float32)
    loss, expected = loss_of(form, made), gradients(form, made)
    if retained:
        torch.autograd.grad(loss, made.logits, retain_graph=True)
    first = torch.autograd.grad(loss, made.logits, create_graph=True)
    assert all(torch.equal(x, y) for x, y in zip(first, expected, strict=True))
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        sum(x.square().sum() for x in first).backward()


def test_the_fused_form_does_not_look_at_the_logits_again() -> None:
    made = make(dtype=torch.float32)
    expected, (t, a, b) = gradients("fused", made), (x * 1 for x in made.logits)
    loss = loss_of("fused", Problem(t, a, b, made.target))
    for x in (t, a, b):
        x.detach().zero_()
    assert all(torch.equal(x, y) for x, y in zip(torch.autograd.grad(loss, [t, a, b]), expected, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_logits_that_changed_before_they_are_looked_at_again_are_an_error(form: Any) -> None:
    made = make(dtype=torch.float32)
    loss = loss_of(form, made)
    if form == "fused":
        torch.autograd.grad(loss, made.logits, retain_graph=True)
    with torch.no_grad():
        made.student_a.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, made.logits)


@pytest.mark.parametrize("form", FORMS)
def test_checkpointing_changes_nothing(form: Any) -> None:
    made = make(dtype=torch.float32)
    with forms.only(form):
        loss = checkpoint(
            lambda *logits: udskd.dual_student_loss(*logits, made.target, backend="cpu").loss,
            *made.logits,
            use_reentrant=False,
        )
        again = torch.autograd.grad(loss, made.logits)
    assert all(torch.equal(x, y) for x, y in zip(again, gradients(form, made), strict=True))


@pytest.mark.parametrize("upstream", [float("nan"), float("inf")])
@pytest.mark.parametrize("form", ["fused", "recompute"])
def test_ignored_rows_stay_zero_whatever_comes_from_upstream(form: str, upstream: float) -> None:
    made = make(4, 20, dtype=torch.float32, ignored=2)
    with forms.only(form):  # type: ignore[arg-type]
        loss = udskd.dual_student_loss(*made.inputs, backend="cpu").loss
        (gradient,) = torch.autograd.grad(loss, made.student_a, torch.tensor(upstream))
    assert made.target is not None
    assert (gradient[made.target == -100] == 0).all()
    assert not gradient[made.target != -100].isfinite().all()
