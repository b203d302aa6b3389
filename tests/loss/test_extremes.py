"""Extreme rows: infinities, NaN, huge offsets, confident and identical networks, no rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import udskd
from tests.loss.helpers import eager
from tests.loss.helpers.inputs import DTYPES, backends, device_of, make
from tests.loss.test_values import assert_as_exact_as_eager

BACKENDS = backends()
INF = math.inf


def both(backend: str, *inputs: Any, **options: Any) -> tuple[Any, list[torch.Tensor]]:
    """The output and the students' gradients."""
    moved = [None if x is None else x.to(device_of(backend)) for x in inputs]
    logits = [x for x in moved[1:3] if x is not None]
    for x in logits:
        x.requires_grad_()
    out = udskd.dual_student_loss(*moved, backend=backend, **options)
    return out, list(torch.autograd.grad(out.loss.sum(), logits))


@pytest.mark.parametrize("offset", [1e4, -1e4, 3e3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_offsets_of_the_logits_change_nothing_that_rounding_did_not(backend: str, offset: float) -> None:
    made = make(16, 50, dtype=torch.float32)
    moved = type(made)(*(x.detach() + offset for x in made.logits), made.target)
    assert_as_exact_as_eager(backend, moved, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_of_ten_thousand_are_finite(backend: str, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    logits = [(torch.randint(0, 2, (8, 20), generator=g) * 2e4 - 1e4).to(dtype) for _ in range(3)]
    out, gradients = both(backend, *logits, torch.randint(0, 20, (8,), generator=g))
    assert out.loss.isfinite()
    assert all(x.isfinite().all() for x in gradients)


@pytest.mark.parametrize("p", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_confident_and_right(backend: str, dtype: torch.dtype, p: float) -> None:
    made, g = make(64, 100), torch.Generator().manual_seed(5)
    labels = made.target
    assert labels is not None
    right = p + (1 - p) / 2 * torch.rand(64, 1, generator=g, dtype=torch.float64)
    others = torch.rand(64, 100, generator=g, dtype=torch.float64).scatter(1, labels[:, None], 0.0)
    sure = (others / others.sum(1, keepdim=True) * (1 - right)).scatter(1, labels[:, None], right).log()
    assert_as_exact_as_eager(backend, type(made)(sure, sure * 1.1, sure * 0.9, labels), dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_identical_networks_have_no_divergence(backend: str) -> None:
    x = make(8, 30, dtype=torch.float32).student_a.detach()
    out, gradients = both(backend, x, x.clone(), x.clone(), None)
    assert 0 <= out.loss < 1e-5
    assert all(g.abs().max() < 1e-6 for g in gradients)


@pytest.mark.parametrize("backend", backends("cpu", "emulated", "cuda"))
def test_divergences_are_never_negative(backend: str) -> None:
    made = make(64, 300, dtype=torch.float32, scale=1.0)
    near = made.student_a.detach()
    out, _ = both(backend, near + 1e-4 * torch.randn(64, 300), near.clone(), near * 1.0001, None, reduction="none")
    assert all((x >= 0).all() for x in (out.kd_a, out.kd_b, out.peer_a, out.peer_b))


@pytest.mark.parametrize("place", [slice(0, 16), slice(-3, None), slice(1, None)], ids=["first", "last", "all but one"])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_classes_that_all_networks_exclude_do_not_exist(backend: str, detach: bool, place: slice) -> None:
    made = make(5, 40)
    keep = torch.ones(40, dtype=torch.bool)
    keep[place] = False
    label = torch.full((5,), int(keep.nonzero()[0]))
    options: dict[str, Any] = {"detach_peer": detach, "uncertainty": "max_prob", "backend": backend}
    masked = [x.detach().masked_fill(~keep, -INF).to(device_of(backend)).requires_grad_() for x in made.logits]
    out = udskd.dual_student_loss(*masked, label.to(device_of(backend)), **options)
    gradients = torch.autograd.grad(out.loss, masked)
    if keep.sum() < 2:  # one class left: nothing to be unsure of
        assert out.loss == 0
        assert all((g == 0).all() for g in gradients)
        return
    small = [x.detach()[:, keep].requires_grad_() for x in masked]
    expected = udskd.dual_student_loss(*small, torch.zeros_like(label).to(device_of(backend)), **options)
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-12, atol=0)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected.loss, small), strict=True):
        torch.testing.assert_close(gradient[:, keep], wanted, rtol=1e-10, atol=1e-14)
        assert (gradient[:, ~keep] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_class_that_only_the_teacher_excludes(backend: str) -> None:
    made = make(5, 10)
    teacher = made.logits[0].detach().clone()
    teacher[:, 3] = -INF
    labels = torch.zeros(5, dtype=torch.long)
    out, gradients = both(backend, teacher, *(x.detach() for x in made.logits[1:]), labels)
    finite = teacher.clone()
    finite[:, 3] = -1e4  # underflows to no mass, without an infinity in eager PyTorch's way
    exact = eager.dual_student_loss(finite, *(x.detach() for x in made.logits[1:]), labels)
    torch.testing.assert_close(out.loss.cpu(), exact.loss, rtol=1e-12, atol=0)
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mass_on_a_class_that_the_student_excludes_is_infinitely_wrong(backend: str) -> None:
    made = make(5, 10)
    student = made.student_a.detach().clone()
    student[2, 3] = -INF
    out, (gradient,) = both(backend, made.logits[0].detach(), student, None, None, reduction="none")
    assert out.loss[2] == INF
    assert out.loss[[0, 1, 3, 4]].isfinite().all()
    log_t, log_s = (torch.log_softmax(x / 4, -1) for x in (made.logits[0].detach(), student))
    expected = 0.9 * 4 * out.weight[2].cpu() * (log_s[2].exp() - log_t[2].exp())
    torch.testing.assert_close(gradient[2].cpu(), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_excluded_label_costs_infinity(backend: str) -> None:
    made = make(3, 10)
    student, labels = made.student_a.detach().clone(), torch.tensor([1, 2, 3])
    student[1, 2] = -INF
    out, _ = both(backend, None, student, None, labels, reduction="none")
    assert out.loss[1] == INF
    assert out.loss[[0, 2]].isfinite().all()


@pytest.mark.parametrize("classes", [5, 40])
@pytest.mark.parametrize("poison", [math.nan, INF, "all -inf"])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["teacher", "student_a", "student_b"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_poisoned_row_is_nan_and_leaves_the_others_alone(
    backend: str, which: int, poison: float | str, classes: int
) -> None:
    made = make(6, classes)
    clean = [x.detach().clone() for x in made.logits]
    broken = [x.clone() for x in clean]
    broken[which][4, slice(None) if isinstance(poison, str) else 1] = -INF if isinstance(poison, str) else poison
    others = [0, 1, 2, 3, 5]
    labels = made.target
    out, gradients = both(backend, *broken, labels, reduction="none")
    expected, wanted = both(backend, *clean, labels, reduction="none")
    assert out.loss[4].isnan()
    assert torch.equal(out.loss[others], expected.loss[others])
    for gradient, want in zip(gradients, wanted, strict=True):
        assert torch.equal(gradient[others], want[others])
    if which:
        assert gradients[which - 1][4].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_poisoned_row_does_not_spoil_normalized_weights(backend: str) -> None:
    made = make(6, 10)
    logits = [x.detach().clone() for x in made.logits]
    logits[0][2] = math.nan
    out, _ = both(backend, *logits, None, normalize_weights=True, reduction="none")
    others = [0, 1, 3, 4, 5]
    assert out.weight[2].isnan()
    torch.testing.assert_close(out.weight[others].mean().item(), 1.0, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_are_all_zero_stay_zero_when_normalized(backend: str) -> None:
    made = make(4, 8)
    out, gradients = both(
        backend,
        torch.zeros(4, 8, dtype=torch.float64),
        *(x.detach() for x in made.logits[1:]),
        made.target,
        uncertainty="margin",
        normalize_weights=True,
    )
    assert (out.weight == 0).all()
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_ignored_rows_hold_does_not_matter(backend: str) -> None:
    made = make(6, 10, ignored=2)
    assert made.target is not None
    ignored = made.target == -100
    logits = [x.detach().clone() for x in made.logits]
    expected, wanted = both(backend, *[x.clone() for x in logits], made.target)
    for x in logits:
        x[ignored] = math.nan
    out, gradients = both(backend, *logits, made.target)
    assert all(torch.equal(x, y) for x, y in zip(out, expected, strict=True))
    for gradient, want in zip(gradients, wanted, strict=True):
        assert torch.equal(gradient, want)
        assert (gradient[ignored.to(gradient.device)] == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_all_rows_ignored(backend: str, reduction: str) -> None:
    made = make(4, 10, ignored=4)
    out, gradients = both(backend, *(x.detach() for x in made.logits), made.target, reduction=reduction)
    assert out.loss.isnan() if reduction == "mean" else (out.loss == 0).all()
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows(backend: str, reduction: str) -> None:
    made = make(0, 10)
    out, gradients = both(backend, *(x.detach() for x in made.logits), made.target, reduction=reduction)
    assert out.loss.shape == ((0,) if reduction == "none" else ())
    assert reduction != "mean" or out.loss.isnan()
    assert reduction != "sum" or out.loss == 0
    assert all(g.shape == (0, 10) for g in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_term_that_is_off_cannot_make_the_loss_nan(backend: str) -> None:
    made = make(3, 10)
    student = made.student_a.detach().clone()
    student[0, 0] = -INF
    out, _ = both(backend, made.logits[0].detach(), student, None, torch.tensor([1, 1, 1]), kd_weight=0.0)
    assert out.loss.isfinite()


@pytest.mark.parametrize("reduction", ["sum", "none"])  # gradients with the loss, and from what is kept of it
@pytest.mark.parametrize("without", ["teacher", "kd_weight"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_peers_alone_that_exclude_the_same_class_have_finite_gradients(
    backend: str, without: str, reduction: str
) -> None:
    made = make(4, 20, dtype=torch.float32)
    logits = [x.detach().clone() for x in made.logits]
    for x in logits:
        x[1, 3] = -INF
    options: dict[str, Any] = {"reduction": reduction} | ({"kd_weight": 0.0} if without == "kd_weight" else {})
    teacher = None if without == "teacher" else logits[0]
    _, gradients = both(backend, teacher, *logits[1:], made.target.clamp(min=4), **options)  # type: ignore[union-attr]
    _, expected = both("reference", teacher, *logits[1:], made.target.clamp(min=4), **options)  # type: ignore[union-attr]
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert (gradient[:, 3][1] == 0).all()
        torch.testing.assert_close(gradient.cpu(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4])
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_excluded_classes_cost_no_digit_wherever_the_logits_are(backend: str, reduction: str, offset: float) -> None:
    made = make(4, 50, dtype=torch.float32)
    logits = [x.detach() + offset for x in made.logits]
    for x in logits:
        x[:, 7] = -INF
    labels = torch.tensor([1, 2, 3, 4])
    options: dict[str, Any] = {"temperature": 1.0, "reduction": reduction}
    out, gradients = both(backend, *(x.clone() for x in logits), labels, **options)
    exact, wanted = both("reference", *(x.double() for x in logits), labels, **options)
    torch.testing.assert_close(out.loss.double().cpu(), exact.loss, rtol=1e-6, atol=0)
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient.double().cpu(), want, rtol=1e-5, atol=1e-6)
