"""Adaptive distillation: learned balances and properties of every balance, compared with formulas in plain PyTorch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.helpers.adaptive import HIGH, LOW, akd, alpha, ce, config, expected, gap, students
from tests.methods.helpers.batches import (
    answers,
    assert_loss_of_nothing,
    assert_requests_backend,
    assert_same,
    assert_takes_an_inference_tensor,
    in_double,
    kd,
    margin,
    mixed,
    on_meta,
)
from udskd import methods
from udskd.config.schema import DataConfig, LossConfig
from udskd.errors import ConfigError


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_learned_alpha_gives_the_formula_and_its_gradients(dtype: torch.dtype) -> None:
    method, modules = akd(alpha="learned")
    a = modules["alpha"].to(dtype).a
    assert isinstance(a, Tensor)
    a.data.copy_(torch.tensor([0.4, -1.1]))
    x = answers(dtype=dtype)
    exact = in_double(x)
    raw = a.detach().double().requires_grad_()
    alphas = LOW + (HIGH - LOW) * torch.sigmoid(raw)
    terms, want = method.loss(x), expected(exact, list(alphas))
    logged = torch.stack([terms["alpha_a"], terms["alpha_b"]]).double()
    torch.testing.assert_close(logged, alphas.detach(), rtol=1e-6, atol=0)
    assert_same(terms["loss"], want, [x.student_a, x.student_b, a], [exact.student_a, exact.student_b, raw])


def test_alpha_is_drawn_to_the_smaller_loss() -> None:
    method, modules = akd(alpha="learned")
    modules["alpha"].double()
    x = answers()
    terms = method.loss(x)
    (slope,) = torch.autograd.grad(terms["loss"], list(modules["alpha"].parameters()))
    # alpha'(0) is a quarter of the range
    for i, name in enumerate(("a", "b")):
        want = (HIGH - LOW) / 4 * (terms[f"ce_{name}"] - terms[f"kd_{name}"])
        torch.testing.assert_close(slope[i], want, rtol=1e-12, atol=0)


def test_a_learned_alpha_starts_in_the_middle_of_its_range() -> None:
    terms = akd(alpha="learned")[0].loss(answers())
    torch.testing.assert_close(terms["alpha_a"].item(), (LOW + HIGH) / 2, rtol=1e-6, atol=0)


def test_weights_learned_as_noise_levels_give_the_formula_and_its_gradients() -> None:
    method, modules = akd(alpha="learned", guard="kendall")
    own = list(modules["alpha"].double().parameters())
    own[0].data.copy_(torch.tensor([0.3, -0.2]))
    own[1].data.copy_(torch.tensor([-0.5, 0.7]))
    x = answers()
    terms = method.loss(x)
    copies = [p.detach().clone().requires_grad_() for p in own]
    want = copies[0].sum() + copies[1].sum()
    for i, (_, s) in enumerate(students(x)):
        want = want + torch.exp(-copies[0][i]) * ce(s, x.target).mean() + torch.exp(-copies[1][i]) * kd(x, s).mean()
    torch.testing.assert_close(terms["noise"], torch.tensor(0.3, dtype=torch.float64), rtol=1e-6, atol=0)
    assert_same(terms["loss"], want, [x.student_a, x.student_b, *own], [x.student_a, x.student_b, *copies])
    share = math.exp(-0.3) / (math.exp(-0.3) + math.exp(0.5))
    torch.testing.assert_close(terms["alpha_a"].item(), share, rtol=1e-6, atol=0)


def test_no_learned_number_gets_weight_decay() -> None:
    for guard in ("range", "kendall"):
        _, modules = akd(alpha="learned", guard=guard)
        assert all(p.ndim <= 1 for p in modules["alpha"].parameters())


@pytest.mark.parametrize(
    "options", [{"alpha": "batch"}, {"alpha": "learned"}, {"alpha": "learned", "guard": "kendall"}]
)
def test_the_components_add_up_and_are_detached(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    method, modules = akd(shape="context", **options)
    for p in modules["alpha"].parameters():
        p.data.normal_()
    terms = method.loss(answers())
    total = terms["context"] + terms.get("noise", 0.0)
    for x in ("a", "b"):
        hard, soft = terms[f"alpha_{x}"], 1 - terms[f"alpha_{x}"]
        if "guard" in options:
            i = 0 if x == "a" else 1
            hard, soft = (torch.exp(-p.detach()[i]) for p in modules["alpha"].parameters())
        total = total + hard * terms[f"ce_{x}"] + soft * terms[f"kd_{x}"]
    torch.testing.assert_close(terms["loss"].detach(), total, rtol=1e-6, atol=1e-6)
    assert terms["peer_a"] == terms["peer_b"] == 0
    assert not any(value.requires_grad for name, value in terms.items() if name != "loss")


def test_the_weights_of_the_options_are_without_effect() -> None:
    x = answers()
    other = replace(config(alpha="sample"), loss=LossConfig(temperature=3.0, ce_weight=9, kd_weight=9, peer_weight=9))
    want = akd(alpha="sample")[0].loss(x)["loss"]
    torch.testing.assert_close(methods.build(other).loss(x)["loss"], want, rtol=0, atol=0)


def test_a_mixed_target_is_accepted() -> None:
    x = answers()
    x = replace(x, target=mixed(x))
    methods.build(replace(config(), data=DataConfig(mixup=0.2)))
    terms = akd(alpha="sample")[0].loss(x)
    torch.testing.assert_close(terms["loss"], expected(x, [alpha(gap(x, s, "ce"), "ce") for _, s in students(x)]))
    assert akd(shape="context")[0].loss(x)["loss"].isfinite()


def test_a_targets_weight_multiplies_distillation_alone() -> None:
    x = answers()
    assert x.teacher is not None
    terms = akd(alpha="sample", weight="margin")[0].loss(x)
    torch.testing.assert_close(terms["weight"], margin(x))
    torch.testing.assert_close(terms["kd_a"], (margin(x) * kd(x, x.student_a)).mean().detach())
    terms = akd(alpha="sample", weight="wsl")[0].loss(x)
    weight = 1 - torch.exp(-ce(x.student_b, x.target) / ce(x.teacher, x.target))
    want = (weight * kd(x, x.student_b)).mean().detach()
    torch.testing.assert_close(terms["kd_b"], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e3, 1e10])
@pytest.mark.parametrize("options", [{"gap": "ce"}, {"gap": "js"}, {"gap": "ratio"}, {"alpha": "sample"}])
def test_extreme_logits_give_finite_losses_and_gradients(options: dict[str, Any], scale: float) -> None:
    x = answers(scale=scale, dtype=torch.float32)
    method, modules = akd(shape="context", **options)
    terms = method.loss(x)
    inputs = [x.student_a, x.student_b, *modules["context"].parameters()]
    gradients = torch.autograd.grad(terms["loss"], inputs)
    assert all(value.isfinite().all() for value in (*terms.values(), *gradients))


@pytest.mark.parametrize("alpha", ["batch", "sample", "learned"])
def test_no_rows_are_a_nan_mean_and_no_error(alpha: str) -> None:
    x = answers(0)
    method, _ = akd(shape="context", alpha=alpha)
    assert_loss_of_nothing(method.loss(x)["loss"], x)


@pytest.mark.parametrize("options", [{"alpha": "batch"}, {"alpha": "sample", "gap": "js"}, {"alpha": "learned"}])
def test_nothing_of_a_step_looks_at_a_value(options: dict[str, Any]) -> None:
    x = on_meta()
    method, modules = akd(shape="context", weight="wsl", backend="reference", **options)
    for module in modules.values():
        module.to("meta")
    method.loss(x)["loss"].backward()
    assert x.student_a.grad is not None


def test_the_modules_are_those_that_the_options_need() -> None:
    assert set(akd(shape="auto", alpha="batch")[1]) == {"alpha", "context"}
    assert set(akd(alpha="learned")[1]) == {"alpha"}
    assert set(akd(alpha="sample")[1]) == set()


def test_its_own_parts_may_learn_at_a_rate_of_their_own() -> None:
    assert akd(lr=0.02)[0].lr == 0.02
    assert akd()[0].lr is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha_min": 0.6, "alpha_max": 0.6}, "alpha_min and akd.alpha_max must .* got 0.6 and 0.6"),
        ({"alpha_min": -0.1}, "alpha_min and akd.alpha_max must .* got -0.1 and 0.7"),
        ({"alpha_max": 1.5}, "alpha_min and akd.alpha_max must .* got 0.2 and 1.5"),
        ({"alpha_max": float("nan")}, "alpha_min and akd.alpha_max must .* got 0.2 and nan"),
    ],
)
def test_bounds_that_hold_nothing_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        akd(shape="context", **options)


def test_the_teachers_logits_may_come_from_inference_mode() -> None:
    assert_takes_an_inference_tensor(akd(alpha="sample")[0], answers(dtype=torch.float32))


def test_every_call_takes_the_backend_of_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_requests_backend(monkeypatch, akd(shape="context", backend="reference")[0], answers(), "reference")
