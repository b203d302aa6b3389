"""Difficulty-aware uncertainty shaping: the stage's loss and gradient against its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from udskd import methods
from udskd.config.schema import Config, CudConfig, DataConfig, TeacherConfig
from udskd.errors import ConfigError
from udskd.methods.base import TeacherStage

B, C = 10, 6


def stage(**cud: Any) -> TeacherStage:
    built = methods.teacher_stage(Config(method="cud", cud=CudConfig(**cud)))
    assert built is not None
    return built


def random_batch(spread: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(B, C, dtype=torch.float64, generator=generator)
    target = torch.where(torch.arange(B) < B // 2, logits.argmax(-1), torch.randint(0, C, (B,), generator=generator))
    assert 0 < (logits.argmax(-1) == target).sum() < B
    return logits.requires_grad_(), target


def formula(logits: Tensor, target: Tensor, gamma: float, entropy_bonus: float, max_weight: float) -> dict[str, Tensor]:
    """The loss and its parts as written, each row by its own branch."""
    focal, bonus = [], []
    for p, y in zip(logits.softmax(-1), target.tolist(), strict=True):
        wrong, rest = int(p.argmax()) != y, 1 - p[y].item()
        weight, gate = min(max_weight, 1 + wrong + rest), 1.0 if wrong else rest
        focal.append(weight * (1 - p[y]) ** gamma * -p[y].log())
        bonus.append(gate * -(p * p.log()).sum())
    parts = {"focal": torch.stack(focal).mean(), "bonus": torch.stack(bonus).mean()}
    return {"loss": parts["focal"] - entropy_bonus * parts["bonus"], **parts}


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize(("entropy_bonus", "max_weight"), [(0.1, 3.0), (0.0, 1.0), (0.7, 1.4)])
def test_the_loss_and_its_gradient_are_the_formula(gamma: float, entropy_bonus: float, max_weight: float) -> None:
    logits, target = random_batch()
    options = {"gamma": gamma, "entropy_bonus": entropy_bonus, "max_weight": max_weight}
    got, want = stage(**options).loss(logits, target), formula(logits, target, **options)
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name])
    assert not got["focal"].requires_grad
    assert not got["bonus"].requires_grad
    upstream = torch.tensor(-1.3, dtype=torch.float64)
    grads = [torch.autograd.grad(terms["loss"], logits, upstream) for terms in (got, want)]
    torch.testing.assert_close(*grads)


def test_without_focus_bonus_and_weights_it_is_the_cross_entropy() -> None:
    logits, target = random_batch()
    loss = stage(gamma=0.0, entropy_bonus=0.0, max_weight=1.0).loss(logits, target)["loss"]
    torch.testing.assert_close(loss, F.cross_entropy(logits, target))


def test_a_sure_right_answer_gets_no_bonus_and_a_sure_wrong_one_all_of_its_entropy() -> None:
    sure, spread = torch.tensor([[30.0, 0.0, 0.0]]), torch.tensor([[5.0, 5.0, 0.0]])
    assert stage().loss(sure, torch.tensor([0]))["bonus"] < 1e-12
    p = spread.double().softmax(-1)
    bonus = stage().loss(spread, torch.tensor([2]))["bonus"]
    torch.testing.assert_close(bonus.double(), -(p * p.log()).sum(), rtol=1e-6, atol=0)


def test_the_weight_is_clipped_and_never_above_three() -> None:
    wrong, label = torch.tensor([[200.0, 0.0]]), torch.tensor([1])  # 1 - p_y = 1, so focal is the weight times 200
    for limit, weight in ((1.0, 1.0), (2.5, 2.5), (3.0, 3.0), (50.0, 3.0)):
        torch.testing.assert_close(stage(max_weight=limit).loss(wrong, label)["focal"], torch.tensor(200 * weight))


@pytest.mark.parametrize("gamma", [0.0, 0.1, 1.0, 2.0])
@pytest.mark.parametrize("label", [0, 1, 2])
@pytest.mark.parametrize("height", [20.0, 100.0, 1e4])
def test_logits_far_apart_have_finite_losses_and_gradients(gamma: float, label: int, height: float) -> None:
    logits = torch.tensor([[height, -height, 0.0]], requires_grad=True)
    loss = stage(gamma=gamma).loss(logits, torch.tensor([label]))["loss"]
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    weight = 1.0 if label == 0 else 3.0
    torch.testing.assert_close(
        loss.detach(), torch.tensor(weight * (height - logits[0, label].item())), atol=1e-4, rtol=1e-6
    )


@pytest.mark.parametrize("gamma", [0.3, 0.9])
def test_close_to_certainty_the_gradient_is_exact_in_single_precision(gamma: float) -> None:
    log_rest = -torch.linspace(5, 40, 12, dtype=torch.float64)  # below e^-16, 1 - p_y is lost if taken from p_y
    logits = torch.stack([-log_rest, torch.zeros_like(log_rest)], -1)
    single = logits.float().requires_grad_()
    terms = stage(gamma=gamma, entropy_bonus=0.0, max_weight=1.0).loss(single, torch.zeros(12, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(terms["loss"] * 12, single)
    p, rest = (-log_rest).sigmoid(), log_rest.sigmoid()
    nll = -F.logsigmoid(-log_rest)
    label = -(rest**gamma) * (gamma * p * nll + rest)  # d/dz_y of (1 - p_y)^gamma (-log p_y), by hand
    torch.testing.assert_close(gradient.double(), torch.stack([label, -label], -1), rtol=1e-4, atol=0)


def test_logits_in_half_precision_are_computed_in_single() -> None:
    logits, target = random_batch()
    half = logits.detach().half()
    assert torch.equal(stage().loss(half, target)["loss"], stage().loss(half.float(), target)["loss"])


def test_no_value_is_looked_at_where_that_would_have_to_wait() -> None:
    logits, target = torch.empty(B, C, device="meta"), torch.empty(B, dtype=torch.int64, device="meta")
    assert stage().loss(logits, target)["loss"].shape == ()  # to look at a meta tensor raises


def test_how_long_and_how_fast_it_trains_are_its_options() -> None:
    built = stage(stage_epochs=7, stage_lr=0.25)
    assert (built.epochs, built.lr) == (7, 0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -0.1}, r"cud\.gamma must be a finite number, 0 or more, got -0\.1"),
        ({"gamma": math.inf}, r"cud\.gamma must be a finite number, 0 or more, got inf"),
        ({"entropy_bonus": -1.0}, r"cud\.entropy_bonus must be a finite number, 0 or more, got -1\.0"),
        ({"max_weight": 0.9}, r"cud\.max_weight must be at least 1, got 0\.9"),
        ({"max_weight": math.nan}, r"cud\.max_weight must be at least 1, got nan"),
        ({"stage_epochs": 0}, r"cud\.stage_epochs must be at least 1, got 0"),
        ({"stage_lr": 0.0}, r"cud\.stage_lr must be a finite number above 0, got 0\.0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        methods.check(Config(method="kd", cud=CudConfig(**options)))  # type: ignore[arg-type]


def test_mixup_is_refused() -> None:
    with_stage = TeacherConfig(stage="uncertainty_shaping")
    with pytest.raises(
        ConfigError, match=r'^data\.mixup is 0\.2, but teacher\.stage "uncertainty_shaping" needs labels'
    ):
        methods.teacher_stage(Config(method="kd", data=DataConfig(mixup=0.2), teacher=with_stage))
