"""The method with targets from several responses of the teacher, for every source of responses."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.methods.helpers.responses import B, C, K, batch, config, seeded, teacher, tempered
from udskd import methods
from udskd.config.schema import STUDENTS, DataConfig
from udskd.errors import ConfigError
from udskd.methods.base import Needs, Setting
from udskd.methods.variance import Average, InverseVariance

EVERY_WAY = [
    {"source": source, "student": student, "oracle": oracle}
    for source, student, oracle in itertools.product(("draws", "dropout", "views"), ("peers", "draws"), (False, True))
]


@pytest.mark.parametrize("options", EVERY_WAY)
class TestTheShapesInEveryWay:
    @pytest.mark.parametrize("kind", [Average, InverseVariance])
    def test_the_target_is_a_distribution(self, kind: type[Average], options: dict[str, Any]) -> None:
        answers = batch()
        for role in STUDENTS:
            target = tempered(kind(config(**options))(teacher(answers), role, answers).logits)
            assert (target >= 0).all()
            torch.testing.assert_close(target.sum(-1), torch.ones(B, dtype=torch.float64))

    @pytest.mark.parametrize("kind", [Average, InverseVariance])
    def test_no_value_is_looked_at(self, kind: type[Average], options: dict[str, Any]) -> None:
        """Tensors without values serve as well, so that the step can be captured in a CUDA graph."""
        answers = batch(device="meta")
        assert kind(config(**options))(teacher(answers), "student_a", answers).logits.shape == (B, C)

    @pytest.mark.parametrize("shape", ["average", "variance"])
    def test_excluded_classes_and_extreme_logits_leave_everything_finite(
        self, shape: str, options: dict[str, Any]
    ) -> None:
        answers = batch(torch.float32)
        assert answers.responses is not None
        for logits in (teacher(answers), *answers.responses):
            logits[0, 1:] = -math.inf
            logits[1, :2] = -math.inf
            logits[2, 3] = 1e30
        answers.student_a.data[3, 2] = 1e4
        loss = methods.build(config(shape=shape, **options)).loss(answers)["loss"]
        assert loss.isfinite()
        for gradient in torch.autograd.grad(loss, (answers.student_a, answers.student_b)):
            assert gradient.isfinite().all()

    def test_half_precision_is_computed_in_float32(self, options: dict[str, Any]) -> None:
        answers = batch(torch.bfloat16)
        logits = InverseVariance(config(**options))(teacher(answers), "student_b", answers).logits
        assert logits.dtype == torch.float32

    def test_a_batch_without_rows_is_allowed(self, options: dict[str, Any]) -> None:
        answers = batch(rows=0)
        assert InverseVariance(config(**options))(teacher(answers), "student_a", answers).logits.shape == (0, C)


class TestTheMethod:
    def test_has_the_terms_of_two_distillations_side_by_side(self) -> None:
        terms = methods.build(config()).loss(batch())
        assert terms["peer_a"] == terms["peer_b"] == 0
        assert (terms["weight"] == 1).all()
        total = 0.7 * (terms["ce_a"] + terms["ce_b"]) + 0.8 * (terms["kd_a"] + terms["kd_b"])
        torch.testing.assert_close(terms["loss"].detach(), total)

    def test_repeats_itself_under_the_same_seed_alone(self) -> None:
        method, answers = methods.build(config()), batch()
        first, second, other = (seeded(seed, lambda: method.loss(answers)["loss"]) for seed in (1, 1, 2))
        assert first == second
        assert first != other

    def test_takes_mixed_labels_in_the_cross_entropy_alone(self) -> None:
        answers = batch()
        mixed = replace(answers, target=0.3 * F.one_hot(answers.target, C).double() + 0.7 / C)
        method = methods.build(replace(config(source="views"), data=DataConfig(mixup=0.2)))
        hard, soft = method.loss(answers), method.loss(mixed)
        assert hard["kd_a"] == soft["kd_a"]
        torch.testing.assert_close(soft["ce_a"], F.cross_entropy(answers.student_a, mixed.target).detach())

    @pytest.mark.parametrize("shape", ["average", "variance"])
    @pytest.mark.parametrize(
        ("source", "wanted"),
        [
            ("draws", Needs()),
            ("views", Needs(responses=K, source="views")),
            ("dropout", Needs(responses=K, source="dropout")),
        ],
    )
    def test_asks_for_responses_that_it_cannot_draw(self, shape: str, source: str, wanted: Needs) -> None:
        assert methods.build(config(shape=shape, source=source)).needs(Setting(C, 8, {})) == wanted

    @pytest.mark.parametrize(("shape", "fewest"), [("average", 1), ("variance", 2)])
    def test_refuses_too_few_responses(self, shape: str, fewest: int) -> None:
        methods.build(config(shape=shape, responses=fewest))
        sentence = f'^variance.responses must be at least {fewest} for the target shape "{shape}", got {fewest - 1}$'
        with pytest.raises(ConfigError, match=sentence):
            methods.build(config(shape=shape, responses=fewest - 1))

    @pytest.mark.parametrize("dropout", [0.0, 1.0, -0.1, math.nan])
    def test_refuses_an_impossible_dropout(self, dropout: float) -> None:
        with pytest.raises(ConfigError, match=r"^variance\.dropout must be above 0 and below 1, got "):
            methods.check(config(dropout=dropout))
