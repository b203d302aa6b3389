"""Decoupled distillation against its formula, written out with PyTorch's own functions."""

from __future__ import annotations

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
    margin,
    mixed,
    on_meta,
)
from udskd import methods
from udskd.config.schema import Config, DataConfig, DkdConfig, LossConfig, TargetConfig, TrainingConfig
from udskd.errors import ConfigError
from udskd.methods.base import Answers, Shape, Shaped
from udskd.methods.dkd import DecoupledDistillation

ALPHA, BETA = 1.5, 4.0


def config(weight: Any = "auto", alpha: float = ALPHA, beta: float = BETA, **options: Any) -> Config:
    return Config(
        "dkd",
        loss=LossConfig(**{**OPTIONS, **options}),
        target=TargetConfig(weight=weight),
        dkd=DkdConfig(alpha, beta, ramp_epochs=0.0),
    )


def dkd(weight: Any = "auto", **options: Any) -> methods.Method:
    return methods.build(config(weight, **options))


def with_ramp(epochs: float, of: int) -> methods.Method:
    changed = replace(config(), dkd=DkdConfig(ALPHA, BETA, epochs), training=TrainingConfig(epochs=of))
    return methods.build(changed)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """9 KL(p ‖ q) [B] of probabilities."""
    return 9 * F.kl_div(q.log(), p, reduction="none").sum(-1)


def parts(t: Tensor, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """9 TCKD and 9 NCKD [B] of probabilities at temperature 3, as the paper defines them."""
    label = F.one_hot(y, t.shape[-1]).bool()
    p, q = (t / 3).softmax(-1), (s / 3).softmax(-1)
    pairs = [torch.stack([x[label], 1 - x[label]], -1) for x in (p, q)]
    others = [x[~label].view(len(x), -1) for x in (p, q)]
    return divergence(*pairs), divergence(*(x / x.sum(-1, keepdim=True) for x in others))


def expected(x: Answers, weight: Tensor | float = 1.0, ramp: float = 1.0) -> Tensor:
    assert x.teacher is not None
    loss = torch.zeros((), dtype=torch.float64)
    for student in (x.student_a, x.student_b):
        label, others = parts(x.teacher, student, x.target)
        distilled = (weight * (ALPHA * label + BETA * others)).mean()
        loss = loss + 0.7 * F.cross_entropy(student, x.target) + ramp * distilled
    return loss


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_and_its_gradients_are_the_formula(dtype: torch.dtype, backend: str) -> None:
    x = answers(dtype=dtype)
    exact = in_double(x)
    loss, want = dkd(backend=backend).loss(x)["loss"], expected(exact)
    assert_same(loss, want, [x.student_a, x.student_b], [exact.student_a, exact.student_b])


@pytest.mark.parametrize(("epoch", "ramp"), [(0.0, 0.0), (5.0, 0.5), (10.0, 1.0), (17.5, 1.0)])
def test_distillation_grows_to_its_full_weight(epoch: float, ramp: float) -> None:
    method, x = with_ramp(10.0, of=40), answers()
    method.at(3.0)
    method.loss(x)
    method.at(epoch)
    terms = method.loss(x)
    # the ramp is a float32 on the device
    torch.testing.assert_close(terms["loss"], expected(x, ramp=ramp), rtol=1e-6, atol=1e-6)
    total = 0.7 * (terms["ce_a"] + terms["ce_b"]) + ramp * (terms["kd_a"] + terms["kd_b"])
    torch.testing.assert_close(terms["loss"].detach(), total, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(terms["kd_a"], dkd().loss(x)["kd_a"])


def test_a_ramp_is_cut_to_half_of_the_run() -> None:
    method, x = with_ramp(20.0, of=8), answers()
    method.at(4.0)
    torch.testing.assert_close(method.loss(x)["loss"], expected(x), rtol=1e-6, atol=1e-6)
    method.at(2.0)
    torch.testing.assert_close(method.loss(x)["loss"], expected(x, ramp=0.5), rtol=1e-6, atol=1e-6)


def test_the_components_add_up_and_are_detached() -> None:
    terms = dkd().loss(answers())
    total = 0.7 * (terms["ce_a"] + terms["ce_b"]) + terms["kd_a"] + terms["kd_b"]
    torch.testing.assert_close(terms["loss"].detach(), total)
    for x in ("a", "b"):
        torch.testing.assert_close(terms[f"kd_{x}"], ALPHA * terms[f"tckd_{x}"] + BETA * terms[f"nckd_{x}"])
    assert terms["peer_a"] == terms["peer_b"] == 0
    assert not any(value.requires_grad for name, value in terms.items() if name != "loss")


def test_the_options_weights_of_distillation_and_peer_are_without_effect() -> None:
    x = answers()
    other = dkd(kd_weight=7.0, peer_weight=7.0).loss(x)["loss"]
    torch.testing.assert_close(other, dkd().loss(x)["loss"], rtol=0, atol=0)


def test_label_smoothing_is_of_the_cross_entropy_alone() -> None:
    x = answers()
    plain, smooth = dkd().loss(x), dkd(label_smoothing=0.2).loss(x)
    torch.testing.assert_close(smooth["ce_a"], F.cross_entropy(x.student_a, x.target, label_smoothing=0.2).detach())
    for name in ("tckd_a", "nckd_b", "kd_b"):
        torch.testing.assert_close(smooth[name], plain[name], rtol=0, atol=0)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_weight_is_of_the_whole_target_and_multiplies_both_parts(normalize: bool) -> None:
    x = answers()
    weight = margin(x) / margin(x).mean() if normalize else margin(x)
    terms = dkd("margin", normalize_weights=normalize).loss(x)
    torch.testing.assert_close(terms["weight"], weight)
    torch.testing.assert_close(terms["loss"], expected(x, weight))


def test_soft_label_weights_are_each_students_own() -> None:
    x = answers()
    assert x.teacher is not None
    terms = dkd("wsl").loss(x)
    known = F.cross_entropy(x.teacher, x.target, reduction="none")
    for name, student in (("a", x.student_a), ("b", x.student_b)):
        weight = 1 - torch.exp(-F.cross_entropy(student, x.target, reduction="none") / known)
        label, others = parts(x.teacher, student, x.target)
        torch.testing.assert_close(terms[f"tckd_{name}"], (weight * label).mean().detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(terms[f"nckd_{name}"], (weight * others).mean().detach(), rtol=1e-5, atol=1e-6)


class Apart(Shape):
    """Each student another multiple of the teacher's logits."""

    name = "apart"
    per_student = True

    def __call__(self, logits: Tensor, role: str, answers: Answers) -> Shaped:
        return Shaped(logits * (0.5 if role == "student_a" else 0.25), answers.student(role).sum() * 0)


def test_each_student_is_given_the_target_that_was_shaped_for_it() -> None:
    x = answers()
    assert x.teacher is not None
    terms = DecoupledDistillation(config(), (Apart(config()),)).loss(x)
    for share, own in ((0.5, "a"), (0.25, "b")):
        alone = dkd().loss(replace(x, teacher=x.teacher * share))
        for name in ("ce", "kd", "tckd", "nckd"):
            torch.testing.assert_close(terms[f"{name}_{own}"], alone[f"{name}_{own}"])
    assert "apart" in terms
    total = 0.7 * (terms["ce_a"] + terms["ce_b"]) + terms["kd_a"] + terms["kd_b"]
    torch.testing.assert_close(terms["loss"].detach(), total)


def test_mixup_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'"dkd" needs labels, but data.mixup is 0.2'):
        methods.build(replace(config(), data=DataConfig(mixup=0.2)))
    x = answers()
    with pytest.raises(ValueError, match=r"dkd needs labels int64 \[B\] as target, got torch.float64 \[6, 5\]"):
        dkd().loss(replace(x, target=mixed(x)))


@pytest.mark.parametrize("name", ["alpha", "beta", "ramp_epochs"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_an_option_out_of_range_is_named(name: str, value: float) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=rf"dkd\.{name} must be a finite number, 0 or more, got {value}"):
        methods.check(replace(config(), dkd=DkdConfig(**options)))


def test_no_rows_are_a_nan_mean_and_no_error() -> None:
    x = answers(0)
    assert_loss_of_nothing(dkd().loss(x)["loss"], x)


def test_nothing_of_a_step_looks_at_a_value() -> None:
    x = on_meta()
    method = methods.build(replace(config("wsl", backend="reference"), dkd=DkdConfig()))
    method.loss(x)["loss"].backward()
    method.at(1.0)
    assert x.student_a.grad is not None


def test_the_teachers_logits_may_come_from_inference_mode() -> None:
    assert_takes_an_inference_tensor(dkd(), answers(dtype=torch.float32))


def test_every_call_takes_the_backend_of_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_requests_backend(monkeypatch, dkd(backend="reference"), answers(), "reference")
