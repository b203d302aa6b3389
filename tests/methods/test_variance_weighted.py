"""The target that weighs the responses and a student by their variances, against formulas written out in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.methods.helpers.responses import (
    LOSS,
    B,
    C,
    K,
    T,
    assert_same_loss_and_gradients,
    batch,
    config,
    distilled,
    expected,
    teacher,
    tempered,
)
from udskd import methods
from udskd.config.schema import STUDENTS
from udskd.methods.base import Answers
from udskd.methods.variance import InverseVariance, average, draws, inverse_variance


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
        average(responses), *InverseVariance(config(student="draws")).estimate(responses, "student_a", like)
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
