"""Decoupled distillation where cancellation threatens: parts and whole, certain networks, excluded classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.methods.helpers.batches import B, C, answers, in_double
from tests.methods.test_dkd import BETA, config, divergence, dkd, parts
from udskd import dual_student_loss, methods
from udskd.config.schema import DkdConfig
from udskd.methods.base import Answers


def gradients(loss: Tensor, x: Answers) -> tuple[Tensor, ...]:
    return torch.autograd.grad(0.37 * loss, (x.student_a, x.student_b))


@given(st.lists(st.floats(-30, 30), min_size=10, max_size=10), st.integers(0, 4))
@settings(deadline=None, max_examples=100)
def test_the_operators_divergence_is_the_sum_of_its_parts(logits: list[float], label: int) -> None:
    t, s = torch.tensor(logits, dtype=torch.float64).view(2, 1, C)
    y = torch.tensor([label])
    whole = dual_student_loss(t, s, temperature=3.0, uncertainty="none").kd_a
    terms = dkd().loss(Answers(t, s, s.clone(), y))
    others = torch.cat([t[0, :label], t[0, label + 1 :]])
    mass_of_others = torch.exp(torch.logsumexp(others / 3, 0) - torch.logsumexp(t[0] / 3, 0))
    torch.testing.assert_close(terms["tckd_a"] + mass_of_others * terms["nckd_a"], whole, rtol=1e-9, atol=1e-9)


def test_the_others_part_is_what_the_label_leaves_of_the_divergence() -> None:
    x = answers(rows=1)
    assert x.teacher is not None
    whole = dual_student_loss(x.teacher, x.student_a, temperature=3.0, uncertainty="none").kd_a
    terms = dkd().loss(x)
    mass_of_label = (x.teacher / 3).softmax(-1)[0, x.target[0]]
    torch.testing.assert_close(terms["nckd_a"], (whole - terms["tckd_a"]) / (1 - mass_of_label), rtol=1e-9, atol=0)


@pytest.mark.parametrize("lead", [80.0, 90.0, 300.0, 3e4])
@pytest.mark.parametrize("sure", ["teacher", "student", "both"])
def test_a_very_sure_network_costs_no_accuracy(lead: float, sure: str) -> None:
    x = answers(dtype=torch.float32)
    assert x.teacher is not None
    lift = lead * F.one_hot(x.target, C)
    t = x.teacher + (lift if sure in ("teacher", "both") else 0)
    a, b = (s.detach() + (lift if sure in ("student", "both") else 0) for s in (x.student_a, x.student_b))
    x = Answers(t, a.requires_grad_(), b.requires_grad_(), x.target)
    exact = in_double(x)
    terms, wanted = dkd().loss(x), dkd().loss(exact)
    for name in ("loss", "tckd_a", "nckd_a", "nckd_b"):
        torch.testing.assert_close(terms[name].double(), wanted[name], rtol=2e-4, atol=1e-5)
    for got, want in zip(gradients(terms["loss"], x), gradients(wanted["loss"], exact), strict=True):
        assert want.isfinite().all()
        torch.testing.assert_close(got.double(), want, rtol=2e-3, atol=1e-5)


def test_within_1e_12_of_certainty_the_others_part_is_still_right_in_float32() -> None:
    t = torch.tensor([[90.0, 2.0, 0.0, -1.0]])
    s = torch.tensor([[60.0, 0.0, 1.0, 2.0]], requires_grad=True)
    y = torch.tensor([0])
    assert 0 < -torch.expm1((t.double() / 3).log_softmax(-1)[0, 0]) < 1e-12
    terms = dkd().loss(Answers(t, s, s.detach().clone(), y))
    want = divergence((t[:, 1:].double() / 3).softmax(-1), (s.detach()[:, 1:].double() / 3).softmax(-1))
    torch.testing.assert_close(terms["nckd_a"].double(), want[0], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(terms["loss"], s)
    slope = 3 * BETA * ((s.detach() / 3)[:, 1:].softmax(-1) - (t / 3)[:, 1:].softmax(-1))
    torch.testing.assert_close(gradient[:, 1:], slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e3, 1e10])
def test_extreme_logits_give_finite_losses_and_gradients(scale: float) -> None:
    x = answers(scale=scale, dtype=torch.float32)
    terms = dkd().loss(x)
    assert all(value.isfinite().all() for value in (*terms.values(), *gradients(terms["loss"], x)))


def test_an_excluded_class_is_as_one_that_does_not_exist() -> None:
    x, exact = answers(), answers()
    assert x.teacher is not None
    kept = Answers(x.teacher[:, 1:], x.student_a[:, 1:], x.student_b[:, 1:], x.target.clamp(min=1) - 1)
    gone = torch.tensor([[float("-inf"), 0, 0, 0, 0]], dtype=torch.float64)
    assert exact.teacher is not None
    excluded = Answers(exact.teacher + gone, exact.student_a + gone, exact.student_b + gone, x.target.clamp(min=1))
    loss, want = dkd().loss(excluded)["loss"], dkd().loss(kept)["loss"]
    torch.testing.assert_close(loss, want)
    for got, other in zip(gradients(loss, exact), gradients(want, x), strict=True):
        torch.testing.assert_close(got, other)


@pytest.mark.parametrize("students", ["all classes", "the label alone"])
def test_a_teacher_that_excludes_all_but_the_label_leaves_nothing_to_learn_of_the_others(students: str) -> None:
    out = float("-inf")
    t = torch.tensor([[1.0, out, out], [0.0, 1.0, 2.0]], dtype=torch.float64)
    s = torch.tensor([[0.5, 0.1, 0.2], [0.3, 0.1, 0.9]], dtype=torch.float64)
    if students == "the label alone":
        s[0, 1:] = out
    s.requires_grad_()
    x = Answers(t, s, s.detach().clone(), torch.tensor([0, 2]))
    terms = dkd().loss(x)
    (gradient,) = torch.autograd.grad(terms["loss"], s)
    assert gradient.isfinite().all()
    label, others = parts(t[1:], s[1:], x.target[1:])
    torch.testing.assert_close(terms["nckd_a"], others[0].detach() / 2)
    certain = -9 * (s.detach() / 3).log_softmax(-1)[0, 0]
    torch.testing.assert_close(terms["tckd_a"], (certain + label[0].detach()) / 2)


def test_of_two_classes_there_is_nothing_beside_the_labels_part() -> None:
    t, s = torch.randn(B, 2, dtype=torch.float64), torch.randn(B, 2, dtype=torch.float64)
    y = torch.randint(0, 2, (B,))
    terms = dkd().loss(Answers(t, s, s.clone(), y))
    assert terms["nckd_a"] == terms["nckd_b"] == 0
    torch.testing.assert_close(terms["tckd_a"], dual_student_loss(t, s, temperature=3.0, uncertainty="none").kd_a)


@pytest.mark.parametrize("ramp", [0.0, 5.0])
def test_a_part_without_weight_is_0_even_where_it_would_be_infinite(ramp: float) -> None:
    t, s = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[2.0, float("-inf"), 0.0]])
    x = Answers(t, s, s.clone(), torch.tensor([0]))
    assert dkd().loss(x)["nckd_a"].isinf()
    terms = methods.build(replace(config(), dkd=DkdConfig(beta=0.0, ramp_epochs=ramp))).loss(x)
    assert terms["nckd_a"] == 0
    assert terms["loss"].isfinite()
