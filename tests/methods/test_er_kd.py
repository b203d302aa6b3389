"""Entropy-reweighted distillation against its formula, written out with PyTorch's own functions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
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
from udskd.methods.base import Answers


def build(method: str = "er_kd", weight: Any = "auto", **options: Any) -> methods.Method:
    return methods.build(Config(method, loss=LossConfig(**{**OPTIONS, **options}), target=TargetConfig(weight=weight)))


def entropy(x: Answers) -> Tensor:
    assert x.teacher is not None
    p = (x.teacher / 3).softmax(-1)
    return -(p * p.log()).sum(-1)


def expected(x: Answers, weight: Tensor) -> Tensor:
    losses = [0.7 * F.cross_entropy(s, x.target) + 0.8 * (weight * kd(x, s)).mean() for s in (x.student_a, x.student_b)]
    return losses[0] + losses[1]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_and_its_gradients_are_the_formula(dtype: torch.dtype, backend: str) -> None:
    x = answers(dtype=dtype)
    exact = in_double(x)
    loss, want = build(backend=backend).loss(x)["loss"], expected(exact, entropy(exact))
    assert_same(loss, want, [x.student_a, x.student_b], [exact.student_a, exact.student_b])


@pytest.mark.parametrize("normalize", [False, True])
def test_the_components_add_up_and_are_detached(normalize: bool) -> None:
    terms = build(normalize_weights=normalize).loss(answers())
    total = 0.7 * (terms["ce_a"] + terms["ce_b"]) + 0.8 * (terms["kd_a"] + terms["kd_b"])
    torch.testing.assert_close(terms["loss"].detach(), total)
    assert terms["peer_a"] == terms["peer_b"] == 0
    assert not any(value.requires_grad for name, value in terms.items() if name != "loss")


def test_weight_and_entropy_are_the_teachers_entropy_in_nats() -> None:
    x = answers()
    terms = build().loss(x)
    torch.testing.assert_close(terms["weight"], entropy(x))
    torch.testing.assert_close(terms["entropy"], entropy(x))


def test_the_surer_the_teacher_the_less_an_image_weighs() -> None:
    t = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    x = Answers(t, torch.randn(3, 3), torch.randn(3, 3), torch.tensor([0, 1, 2]))
    mine, theirs = build().loss(x)["weight"], build("udskd").loss(x)["weight"]
    assert mine[0] > mine[1] > mine[2] >= 0
    assert theirs[0] < theirs[1] < theirs[2]
    torch.testing.assert_close(mine[0].item(), math.log(3), rtol=1e-6, atol=0)


def test_normalized_weights_are_the_entropy_over_its_mean() -> None:
    x = answers()
    h = entropy(x)
    terms = build(normalize_weights=True).loss(x)
    torch.testing.assert_close(terms["weight"], h / h.mean())
    torch.testing.assert_close(terms["loss"], expected(x, h / h.mean()))


def test_the_options_of_the_weight_are_without_effect() -> None:
    x = answers()
    other = build(uncertainty="margin", trust="confident", uncertainty_temperature=9.0)
    torch.testing.assert_close(other.loss(x)["loss"], build().loss(x)["loss"], rtol=0, atol=0)


@pytest.mark.parametrize("weight", ["none", "entropy", "margin", "wsl"])
def test_another_weight_replaces_the_entropy_and_all_that_belongs_to_it(weight: str) -> None:
    x = answers()
    options: dict[str, Any] = {"trust": "uncertain", "uncertainty_temperature": 2.0, "normalize_weights": True}
    mine, plain = build("er_kd", weight, **options).loss(x), build("kd", weight, **options).loss(x)
    for name, value in plain.items():
        torch.testing.assert_close(mine[name], value)


def test_the_second_batch_is_weighted_like_the_first() -> None:
    method, x = build(), answers()
    first = method.loss(x)["loss"]
    torch.testing.assert_close(method.loss(x)["loss"], first, rtol=0, atol=0)


def test_a_mixed_target_is_accepted() -> None:
    x = answers()
    want = expected(replace(x, target=mixed(x)), entropy(x))
    torch.testing.assert_close(build().loss(replace(x, target=mixed(x)))["loss"], want)


@pytest.mark.parametrize("scale", [1e3, 1e10])
def test_extreme_logits_give_finite_losses_and_gradients(scale: float) -> None:
    x = answers(scale=scale, dtype=torch.float32)
    terms = build().loss(x)
    gradients = torch.autograd.grad(terms["loss"], (x.student_a, x.student_b))
    assert all(value.isfinite().all() for value in (*terms.values(), *gradients))


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
