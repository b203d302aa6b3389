"""The average of several responses as the target, against plain distillation written out in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.methods.helpers.responses import (
    SIGMAS,
    B,
    C,
    K,
    T,
    assert_same_loss_and_gradients,
    batch,
    config,
    expected,
    teacher,
    tempered,
)
from udskd import methods
from udskd.config.schema import STUDENTS
from udskd.methods.variance import Average, draws


class TestTheAverage:
    @pytest.mark.parametrize("source", ["views", "dropout"])
    def test_of_the_networks_responses_is_the_target(self, source: str) -> None:
        answers = batch()
        missing = torch.full((B, C), math.nan, dtype=torch.float64)
        logits = Average(config(source=source))(missing, "student_a", answers).logits
        torch.testing.assert_close(tempered(logits), tempered(answers.responses).mean(0))

    def test_of_draws_is_the_share_of_each_label(self) -> None:
        answers = batch()
        torch.manual_seed(3)
        logits = Average(config())(teacher(answers), "student_a", answers).logits
        torch.manual_seed(3)
        share = draws(tempered(teacher(answers)), K).mean(0)
        assert torch.equal(logits == -math.inf, share == 0)
        torch.testing.assert_close(tempered(logits), share)

    def test_of_draws_follows_the_logits_that_it_is_given(self) -> None:
        answers = batch()
        shaped = torch.full((B, C), -math.inf).index_fill(1, torch.tensor(2), 0.0)
        logits = Average(config())(shaped, "student_a", answers).logits
        assert (tempered(logits)[:, 2] == 1).all()

    def test_of_one_response_is_that_response(self) -> None:
        answers = replace(batch(), responses=teacher(batch())[None])
        got = methods.build(config(shape="average", source="views", responses=1)).loss(answers)["loss"]
        assert_same_loss_and_gradients(got, methods.build(config("kd")).loss(answers)["loss"], answers)

    def test_gives_the_loss_of_plain_distillation_towards_it(self) -> None:
        answers = batch()
        torch.manual_seed(4)
        got = methods.build(config(shape="average")).loss(answers)["loss"]
        torch.manual_seed(4)
        targets = dict.fromkeys(STUDENTS, draws(tempered(teacher(answers)), K).mean(0))
        assert_same_loss_and_gradients(got, expected(targets, answers), answers)

    def test_of_many_draws_is_plain_distillation(self) -> None:
        """To first order the loss is off by sum_c (m_c - p_c) d_c with d = T^2 log(p / s) of both students, whose
        variance is Var_p(d) / k in each row; to second order by T^2 (C - 1) / (2 k) for each student."""
        answers, k = batch(), 100_000
        torch.manual_seed(5)
        got, plain = (
            methods.build(c).loss(answers)["loss"] for c in (config(shape="average", responses=k), config("kd"))
        )
        p = tempered(teacher(answers))
        d = T**2 * (2 * p.log() - tempered(answers.student_a).log() - tempered(answers.student_b).log())
        error = 0.8 * ((p * d.square()).sum(-1) - (p * d).sum(-1).square()).div(k).sum().sqrt() / B
        assert (got - plain).abs() <= SIGMAS * error + SIGMAS * 0.8 * T**2 * (C - 1) / k
        assert (got - plain).abs() < plain / 100
