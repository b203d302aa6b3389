"""Weighted soft labels against their formula, written out with PyTorch's own functions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.methods.helpers.batches import (
    DTYPES,
    OPTIONS,
    answers,
    assert_loss_of_nothing,
    assert_requests_backend,
    assert_same,
    assert_takes_an_inference_tensor,
    in_double,
    kd,
    mixed,
    on_meta,
)
from udskd import methods
from udskd.config.schema import Config, LossConfig, TargetConfig
from udskd.methods.base import Answers, Shape, Shaped
from udskd.methods.wsl import WeightedSoftLabels


def build(method: str = "wsl", weight: Any = "auto", **options: Any) -> methods.Method:
    return methods.build(Config(method, loss=LossConfig(**{**OPTIONS, **options}), target=TargetConfig(weight=weight)))


def soft_weight(x: Answers, student: Tensor) -> Tensor:
    assert x.teacher is not None
    behind, known = (F.cross_entropy(z, x.target, reduction="none") for z in (student, x.teacher))
    return (1 - torch.exp(-behind / known)).detach()


def expected(x: Answers) -> Tensor:
    losses = [
        0.7 * F.cross_entropy(s, x.target) + 0.8 * (soft_weight(x, s) * kd(x, s)).mean()
        for s in (x.student_a, x.student_b)
    ]
    return losses[0] + losses[1]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_and_its_gradients_are_the_formula(dtype: torch.dtype, backend: str) -> None:
    x = answers(dtype=dtype)
    exact = in_double(x)
    loss, want = build(backend=backend).loss(x)["loss"], expected(exact)
    # the 1e-7 in the denominator is seen in the last digits
    assert_same(loss, want, [x.student_a, x.student_b], [exact.student_a, exact.student_b], tolerance=1e-4)


def test_the_components_add_up_and_are_detached() -> None:
    terms = build().loss(answers())
    total = 0.7 * (terms["ce_a"] + terms["ce_b"]) + 0.8 * (terms["kd_a"] + terms["kd_b"])
    torch.testing.assert_close(terms["loss"].detach(), total)
    assert terms["peer_a"] == terms["peer_b"] == 0
    assert not any(value.requires_grad for name, value in terms.items() if name != "loss")


def test_the_logged_weight_is_the_mean_of_both_students() -> None:
    x = answers()
    want = (soft_weight(x, x.student_a) + soft_weight(x, x.student_b)) / 2
    torch.testing.assert_close(build().loss(x)["weight"], want, rtol=1e-5, atol=1e-6)


def test_a_mixed_target_is_accepted() -> None:
    x = answers()
    x = replace(x, target=mixed(x))
    torch.testing.assert_close(build().loss(x)["loss"], expected(x), rtol=1e-5, atol=1e-6)


def test_another_weight_replaces_that_of_soft_labels() -> None:
    x = answers()
    want = build("kd", "margin").loss(x)["loss"]
    torch.testing.assert_close(build("wsl", "margin").loss(x)["loss"], want)


def test_the_weight_by_its_own_name_is_the_methods() -> None:
    x = answers()
    torch.testing.assert_close(build("wsl", "wsl").loss(x)["loss"], build("wsl").loss(x)["loss"], rtol=0, atol=0)


def test_the_weight_is_of_the_teacher_whatever_the_shapes_make_of_it() -> None:
    class Halved(Shape):
        name = "halved"

        def __call__(self, logits: Tensor, role: str, answers: Answers) -> Shaped:
            return Shaped(logits / 2)

    x = answers()
    assert x.teacher is not None
    config = Config("wsl", loss=LossConfig(**OPTIONS))
    terms = WeightedSoftLabels(config, (Halved(config),)).loss(x)
    torch.testing.assert_close(terms["weight"], build().loss(x)["weight"], rtol=0, atol=0)
    want = (soft_weight(x, x.student_a) * kd(replace(x, teacher=x.teacher / 2), x.student_a)).mean().detach()
    torch.testing.assert_close(terms["kd_a"], want, rtol=1e-5, atol=1e-6)


@given(st.floats(0, 80), st.floats(0, 80))
def test_the_weight_is_in_0_and_1_and_more_for_the_student_further_behind(one: float, other: float) -> None:
    ahead, behind = sorted((one, other))
    t, a, b = (torch.tensor([[-gap, 0.0, 0.0]]) for gap in (1.0, ahead, behind))
    less, more = (build().loss(Answers(t, s, s, torch.tensor([0])))["weight"].item() for s in (a, b))
    assert 0 <= less <= more + 1e-6
    assert more <= 1


@pytest.mark.parametrize("scale", [1e3, 1e10])
def test_extreme_logits_give_finite_losses_and_gradients(scale: float) -> None:
    x = answers(scale=scale, dtype=torch.float32)
    terms = build().loss(x)
    gradients = torch.autograd.grad(terms["loss"], (x.student_a, x.student_b))
    assert all(value.isfinite().all() for value in (*terms.values(), *gradients))


def test_what_everybody_knows_for_certain_weighs_nothing() -> None:
    certain = torch.tensor([[500.0, 0.0, 0.0]])
    terms = build().loss(Answers(certain, certain.clone(), certain.clone(), torch.tensor([0])))
    assert terms["weight"] == 0
    assert terms["loss"] == 0


def test_no_rows_are_a_nan_mean_and_no_error() -> None:
    x = answers(0)
    assert_loss_of_nothing(build().loss(x)["loss"], x)


def test_nothing_of_a_step_looks_at_a_value() -> None:
    x = on_meta()
    build(backend="reference").loss(x)["loss"].backward()
    assert x.student_a.grad is not None


def test_the_teachers_logits_may_come_from_inference_mode() -> None:
    assert_takes_an_inference_tensor(build(), answers(dtype=torch.float32))


def test_every_call_takes_the_backend_of_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_requests_backend(monkeypatch, build(backend="reference"), answers(), "reference")
