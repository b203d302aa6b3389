"""Targets from several responses of the teacher, against formulas written out in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from udskd import methods, recipe
from udskd.config import Config, DataConfig, LossConfig
from udskd.errors import ConfigError
from udskd.method_config import TargetConfig, VarianceConfig
from udskd.methods.base import STUDENTS, Answers, Needs, Setting
from udskd.methods.variance import Average, InverseVariance, average, draws, inverse_variance, response_variance

B, C, K = 6, 5, 3
T = 3.0
LOSS = LossConfig(temperature=T, ce_weight=0.7, kd_weight=0.8)
UPSTREAM = 1.7
SIGMAS = 5.0
EVERY_WAY = [
    {"source": source, "student": student, "oracle": oracle}
    for source, student, oracle in itertools.product(("draws", "dropout", "views"), ("peers", "draws"), (False, True))
]


def config(method: str = "variance", shape: str = "auto", **options: Any) -> Config:
    variance = replace(VarianceConfig(responses=K), **options)
    return Config(method=method, loss=LOSS, target=TargetConfig(shape=shape), variance=variance)


def batch(dtype: torch.dtype = torch.float64, rows: int = B, device: str = "cpu") -> Answers:
    generator = torch.Generator().manual_seed(0)
    t, a, b = (3 * torch.randn(rows, C, dtype=torch.float64, generator=generator) for _ in range(3))
    y = torch.randint(0, C, (rows,), generator=generator).to(device)
    responses = t + torch.randn(K, rows, C, dtype=torch.float64, generator=generator)
    t, a, b, responses = (x.to(device, dtype) for x in (t, a, b, responses))
    return Answers(t, a.requires_grad_(), b.requires_grad_(), y, responses=responses)


def teacher(answers: Answers) -> Tensor:
    assert answers.teacher is not None
    return answers.teacher


def tempered(logits: Tensor | None) -> Tensor:
    assert logits is not None
    return (logits.detach() / T).softmax(-1)


def distilled(target: Tensor, student: Tensor) -> Tensor:
    """T^2 KL(target || student at T) of each row, of target probabilities that may be zero."""
    return T**2 * (torch.xlogy(target, target) - target * (student / T).log_softmax(-1)).sum(-1)


def expected(targets: dict[str, Tensor], answers: Answers) -> Tensor:
    loss = torch.zeros((), dtype=torch.float64)
    for role in STUDENTS:
        student = answers.student(role)
        loss = loss + 0.7 * F.cross_entropy(student, answers.target)
        loss = loss + 0.8 * distilled(targets[role].detach(), student).mean()
    return loss


def assert_same_loss_and_gradients(got: Tensor, want: Tensor, answers: Answers) -> None:
    torch.testing.assert_close(got, want)
    students, upstream = (answers.student_a, answers.student_b), torch.tensor(UPSTREAM, dtype=torch.float64)
    gradients = (torch.autograd.grad(loss, students, upstream) for loss in (got, want))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def seeded(seed: int, call: Callable[[], Tensor]) -> Tensor:
    torch.manual_seed(seed)
    return call()


class TestDraws:
    def test_are_one_hot(self) -> None:
        hot = draws(tempered(batch().teacher), 50)
        assert hot.shape == (50, B, C)
        assert hot.dtype == torch.float64
        assert ((hot == 0) | (hot == 1)).all()
        assert (hot.sum(-1) == 1).all()

    def test_come_as_often_as_is_probable(self) -> None:
        """Within SIGMAS standard errors sqrt(p (1 - p) / n) of n draws."""
        n, p = 40_000, tempered(batch().teacher)
        torch.manual_seed(0)
        assert ((draws(p, n).mean(0) - p).abs() <= SIGMAS * (p * (1 - p) / n).sqrt()).all()

    @pytest.mark.parametrize("k", [2, 5])
    def test_have_averages_that_vary_together_as_those_of_labels(self, k: int) -> None:
        """(diag p - p p') / k, within SIGMAS standard errors of a mean of products."""
        n, p = 20_000, tempered(batch().teacher)[0]
        torch.manual_seed(0)
        deviations = average(draws(p.expand(n, C), k)) - p
        products = deviations[:, :, None] * deviations[:, None, :]
        error = products.std(0) / math.sqrt(n)
        assert ((products.mean(0) - (p.diag() - p.outer(p)) / k).abs() <= SIGMAS * error).all()

    def test_are_repeated_under_the_same_seed_alone(self) -> None:
        p = tempered(batch().teacher)
        first, second, other = (seeded(seed, lambda: draws(p, 20)) for seed in (1, 1, 2))
        assert torch.equal(first, second)
        assert not torch.equal(first, other)

    def test_never_are_a_class_without_mass(self) -> None:
        hot = draws(torch.tensor([[0.0, 1e-30, 0.0, 1.0, 0.0]]), 10_000)
        assert hot[..., [0, 2, 4]].sum() == 0

    def test_of_a_row_that_is_no_distribution_are_not_labels(self) -> None:
        hot = draws(torch.tensor([[math.nan, math.nan], [0.5, 0.5]]), 4)
        assert hot[:, 0].isnan().all()
        assert (hot[:, 1].sum(-1) == 1).all()


class TestResponseVariance:
    def test_of_draws_is_that_of_their_frequencies(self) -> None:
        """k / (k - 1) m (1 - m), where m is the share of a class among k one-hot draws."""
        hot = draws(tempered(batch().teacher), 7)
        torch.testing.assert_close(response_variance(hot), 7 / 6 * average(hot) * (1 - average(hot)))

    def test_of_two_responses_is_half_of_their_squared_difference(self) -> None:
        pair = torch.randn(2, 3, 4, 5, dtype=torch.float64)
        torch.testing.assert_close(response_variance(pair), (pair[0] - pair[1]).square() / 2)

    def test_of_a_single_response_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"^responses must have at least 2 responses in .*, got shape \[1, 4\]$"):
            response_variance(torch.zeros(1, 4))

    def test_an_average_of_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"^responses must have at least 1 response in .*, got shape \[0, 4\]$"):
            average(torch.zeros(0, 4))


VARIANCES = st.floats(1e-30, 1e30) | st.just(0.0)


class TestInverseVariance:
    @settings(deadline=None, max_examples=100)
    @given(st.floats(1e-30, 1e30), st.floats(1e-30, 1e30), st.floats(-9, 9), st.floats(-9, 9))
    def test_is_the_papers_formula(self, var_t: float, var_s: float, mean_t: float, mean_s: float) -> None:
        a_t = (1 / var_t) / (1 / var_t + 1 / var_s)
        a_s = (1 / var_s) / (1 / var_t + 1 / var_s)
        numbers = (torch.tensor(x, dtype=torch.float64) for x in (mean_t, var_t, mean_s, var_s))
        mean, share = inverse_variance(*numbers)
        assert math.isclose(share, a_t, rel_tol=1e-12)
        assert math.isclose(mean, a_t * mean_t + a_s * mean_s, rel_tol=1e-12, abs_tol=1e-12)

    @settings(deadline=None, max_examples=100)
    @given(VARIANCES, VARIANCES)
    def test_gives_shares_that_swap_with_the_estimates(self, var_t: float, var_s: float) -> None:
        t, s = (torch.tensor(x, dtype=torch.float64) for x in (var_t, var_s))
        assert math.isclose(inverse_variance(t, t, s, s)[1] + inverse_variance(s, s, t, t)[1], 1, rel_tol=1e-15)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_takes_zeros_and_extremes(self, dtype: torch.dtype) -> None:
        great = torch.finfo(dtype).max
        pairs = [(0.0, 0.0), (0.0, 2.0), (2.0, 0.0), (great, great), (great, 1e-30), (1e-30, great), (math.inf, 1.0)]
        var_t, var_s = torch.tensor(pairs, dtype=dtype).unbind(1)
        mean, share = inverse_variance(torch.ones((), dtype=dtype), var_t, torch.zeros((), dtype=dtype), var_s)
        assert share.tolist() == [0.5, 1, 0, 0.5, 0, 1, 0]
        assert torch.equal(mean, share)

    def test_broadcasts_the_variances(self) -> None:
        mean_t, mean_s = torch.randn(2, B, C)
        mean, share = inverse_variance(mean_t, torch.ones(B, 1), mean_s, torch.full((B, 1), 3.0))
        assert share.shape == (B, 1)
        torch.testing.assert_close(mean, 0.75 * mean_t + 0.25 * mean_s)


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


class TestTheAverage:
    @pytest.mark.parametrize("source", ["views", "dropout"])
    def test_of_the_networks_responses_is_the_target(self, source: str) -> None:
        answers = batch()
        nobody = torch.full((B, C), math.nan, dtype=torch.float64)
        logits = Average(config(source=source))(nobody, "student_a", answers).logits
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


def weighted(responses: Tensor, answers: Answers, role: str, student: str) -> Tensor:
    """The target as the class's docstring has it."""
    k = len(responses)
    own, peer = tempered(answers.student(role)), tempered(answers.peer(role))
    v_t = (responses - responses.mean(0)).square().sum(0).div(k - 1).mean(-1, keepdim=True) / k
    v_s = ((own - peer).square() / 2 if student == "peers" else own * (1 - own)).mean(-1, keepdim=True)
    return (v_s * responses.mean(0) + v_t * own) / (v_s + v_t)


@pytest.mark.parametrize("student", ["peers", "draws"])
class TestTheWeightedTarget:
    def test_of_draws_gives_the_formulas_loss_and_gradients(self, student: str) -> None:
        answers = batch()
        torch.manual_seed(6)
        got = methods.build(config(student=student)).loss(answers)["loss"]
        torch.manual_seed(6)
        p = tempered(teacher(answers))
        targets = {role: weighted(draws(p, K), answers, role, student) for role in STUDENTS}
        assert_same_loss_and_gradients(got, expected(targets, answers), answers)

    @pytest.mark.parametrize("source", ["views", "dropout"])
    def test_of_the_networks_responses_gives_the_formulas_loss_and_gradients(self, student: str, source: str) -> None:
        answers = batch()
        got = methods.build(config(student=student, source=source)).loss(answers)["loss"]
        targets = {role: weighted(tempered(answers.responses), answers, role, student) for role in STUDENTS}
        assert_same_loss_and_gradients(got, expected(targets, answers), answers)

    def test_has_the_teachers_share_of_the_averages_gradient(self, student: str) -> None:
        answers = batch()
        shape = InverseVariance(config(student=student, source="views"))
        mean = tempered(answers.responses).mean(0)
        target = tempered(shape(teacher(answers), "student_a", answers).logits)
        own = tempered(answers.student_a)
        share = ((target - own) * (mean - own)).sum(-1) / (mean - own).square().sum(-1)
        (got,) = torch.autograd.grad(distilled(target, answers.student_a).sum(), answers.student_a)
        (full,) = torch.autograd.grad(distilled(mean, answers.student_a).sum(), answers.student_a)
        assert ((share > 0) & (share < 1)).all()
        torch.testing.assert_close(got, share[:, None] * full)

    def test_differs_between_students(self, student: str) -> None:
        answers = batch()
        shape = InverseVariance(config(student=student, source="views"))
        a, b = (shape(teacher(answers), role, answers).logits for role in STUDENTS)
        assert not torch.allclose(a, b)

    def test_carries_no_gradient(self, student: str) -> None:
        answers = batch()
        shape = InverseVariance(config(student=student))
        assert not shape(teacher(answers), "student_a", answers).logits.requires_grad


def test_students_that_come_to_agree_pull_the_target_to_them() -> None:
    answers, distances = batch(), []
    shape = InverseVariance(config(source="views"))
    for apart in (1.0, 0.3, 0.1, 0.03):
        b = answers.student_a + apart * (answers.student_b - answers.student_a)
        target = tempered(shape(teacher(answers), "student_a", replace(answers, student_b=b)).logits)
        distances.append((target - tempered(answers.student_a)).abs().sum().item())
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < distances[0] / 20


def test_identical_students_are_their_own_target_and_learn_nothing_from_the_teacher() -> None:
    answers = batch()
    alike = replace(answers, student_b=answers.student_a)
    shape = InverseVariance(config(source="views"))
    for role in STUDENTS:
        target = tempered(shape(teacher(answers), role, alike).logits)
        torch.testing.assert_close(target, tempered(answers.student_a))
    only_kd = replace(config(source="views"), loss=replace(LOSS, ce_weight=0.0))
    (gradient,) = torch.autograd.grad(methods.build(only_kd).loss(alike)["loss"], answers.student_a)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_identical_students_share_the_target_equally_with_a_teacher_without_variance() -> None:
    answers = batch()
    p = teacher(answers).expand(K, B, C)
    alike = replace(answers, student_b=answers.student_a, responses=p)
    target = tempered(InverseVariance(config(source="views"))(teacher(answers), "student_a", alike).logits)
    torch.testing.assert_close(target, (tempered(p[0]) + tempered(answers.student_a)) / 2)


def test_draws_of_a_student_like_the_teacher_leave_it_a_share_of_one_in_k_plus_one() -> None:
    """As in the paper's regression, noise / k against noise; of many draws, whose variance is well estimated."""
    k, answers = 4000, batch()
    like = replace(answers, student_a=teacher(answers))
    torch.manual_seed(9)
    responses = draws(tempered(teacher(answers)), k)
    _, share = inverse_variance(
        average(responses), *InverseVariance(config(student="draws")).honest(responses, "student_a", like)
    )
    torch.testing.assert_close(1 - share, torch.full_like(share, 1 / (k + 1)), rtol=0.1, atol=0)


class TestTheOracle:
    def test_weighs_draws_as_the_published_code(self) -> None:
        answers = batch()
        torch.manual_seed(7)
        logits = InverseVariance(config(oracle=True))(teacher(answers), "student_a", answers).logits
        torch.manual_seed(7)
        p = tempered(teacher(answers))
        hot = draws(p, K)
        v_t, v_s = hot.var(0, correction=0).mean(-1, keepdim=True), (p * (1 - p)).mean(-1, keepdim=True)
        torch.testing.assert_close(tempered(logits), (v_s * hot.mean(0) + v_t * p) / (v_s + v_t))

    def test_halves_between_the_responses_and_the_teacher_without_noise(self) -> None:
        """Both have the same variance then, and it is that of a response, not of the average."""
        answers = batch()
        logits = InverseVariance(config(oracle=True, source="views"))(teacher(answers), "student_a", answers).logits
        halves = (tempered(answers.responses).mean(0) + tempered(teacher(answers))) / 2
        torch.testing.assert_close(tempered(logits), halves)

    def test_is_nearer_to_the_noise_free_teacher_than_any_honest_student_allows(self) -> None:
        """Var q < 1 / (k / v + 1 / v), the bound of an independent student with the variance v of a response."""
        n, p = 20_000, tempered(batch().teacher)[0]
        logits = (T * p.log()).expand(n, C)
        many = Answers(logits, torch.zeros(n, C), torch.zeros(n, C), torch.zeros(n, dtype=torch.int64))
        torch.manual_seed(8)
        target = tempered(InverseVariance(config(oracle=True))(logits, "student_a", many).logits)
        assert (target - p).square().mean() < 0.9 * (p * (1 - p)).mean() / (K + 1)


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
            recipe.check(config(dropout=dropout))
