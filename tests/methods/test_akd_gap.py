"""Adaptive distillation whose balance follows the gap between student and teacher."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.methods.helpers.adaptive import DECAY, HIGH, LOW, akd, alpha, config, expected, gap, students
from tests.methods.helpers.batches import DTYPES, answers, assert_same, in_double
from udskd import methods
from udskd.methods.akd import GapAverage, gaps, teacher_share
from udskd.methods.base import Answers

KINDS = pytest.mark.parametrize("kind", ["ce", "js", "ratio"])


@KINDS
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_for_each_image_the_loss_and_its_gradients_are_the_formula(dtype: torch.dtype, backend: str, kind: str) -> None:
    x = answers(dtype=dtype)
    exact = in_double(x)
    terms = akd(alpha="sample", gap=kind, backend=backend)[0].loss(x)
    alphas = [alpha(gap(exact, s, kind), kind) for _, s in students(exact)]
    want = expected(exact, alphas)
    assert_same(terms["loss"], want, [x.student_a, x.student_b], [exact.student_a, exact.student_b])
    for name, value in zip(("alpha_a", "alpha_b"), alphas, strict=True):
        torch.testing.assert_close(terms[name].double(), value.mean(), rtol=1e-5, atol=1e-5)


@KINDS
def test_for_a_batch_the_gap_is_a_moving_average_that_the_first_batch_sets(kind: str) -> None:
    method, _ = akd(alpha="batch", gap=kind)
    first, second = answers(seed=1), answers(seed=2)
    means = [[gap(x, s, kind).mean() for _, s in students(x)] for x in (first, second)]
    alphas = [alpha(m, kind) for m in means[0]]
    torch.testing.assert_close(method.loss(first)["loss"], expected(first, alphas), rtol=1e-6, atol=1e-6)
    alphas = [alpha((DECAY * one + other) / (DECAY + 1), kind) for one, other in zip(*means, strict=True)]
    torch.testing.assert_close(method.loss(second)["loss"], expected(second, alphas), rtol=1e-6, atol=1e-6)


@given(st.sampled_from(["ce", "js", "ratio"]), st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=2))
@settings(deadline=None, max_examples=100)
def test_a_larger_gap_never_gives_the_teacher_less_weight(kind: str, pair: list[float]) -> None:
    if kind != "ce":
        pair = [abs(math.sin(g)) for g in pair]
    options = config(gap=kind).akd
    less, more = teacher_share(torch.tensor(sorted(pair)), options).tolist()
    assert less <= more
    assert less >= 1 - HIGH - 1e-6
    assert more <= 1 - LOW + 1e-6


@KINDS
@given(st.floats(0, 60), st.floats(0, 60))
@settings(deadline=None, max_examples=50)
def test_the_further_a_student_is_behind_the_more_it_listens_to_the_teacher(
    kind: str, one: float, other: float
) -> None:
    ahead, behind = sorted((one, other))
    t = torch.tensor([[60.0, 0.0, 0.0]])
    a, b = (torch.tensor([[60.0 - loss, 0.0, 0.0]]) for loss in (ahead, behind))
    terms = methods.build(config(alpha="sample", gap=kind)).loss(Answers(t, a, b, torch.tensor([0])))
    assert terms["alpha_b"] <= terms["alpha_a"] + 1e-6
    for name in ("alpha_a", "alpha_b"):
        assert LOW - 1e-6 <= terms[name] <= HIGH + 1e-6


@pytest.mark.parametrize(("kind", "equal"), [("ce", 0.0), ("js", 0.0), ("ratio", 0.5)])
@pytest.mark.parametrize("known", [True, False])
def test_students_that_know_what_the_teacher_knows_have_no_gap(kind: str, equal: float, known: bool) -> None:
    """Also where nothing is left to learn, or the label is excluded, and the ratio is 0/0 or ∞/∞."""
    logits = torch.tensor([[500.0, 0.0, 0.0] if known else [float("-inf"), 0.0, 0.0]])
    x = Answers(logits, logits.clone(), logits.clone(), torch.tensor([0]))
    torch.testing.assert_close(gaps(x, kind), torch.full((2, 1), equal))


def test_distributions_without_a_common_class_are_as_far_apart_as_can_be() -> None:
    out = float("-inf")
    t, s = torch.tensor([[0.0, 1.0, out, out]]), torch.tensor([[out, out, 2.0, 1.0]])
    torch.testing.assert_close(gaps(Answers(t, s, s, torch.tensor([0])), "js"), torch.ones(2, 1))


@KINDS
def test_a_gap_has_no_gradient(kind: str) -> None:
    assert not gaps(answers(), kind).requires_grad


@KINDS
def test_a_gap_is_the_same_from_half_precision_logits_as_from_the_same_in_float32(kind: str) -> None:
    x = answers(dtype=torch.bfloat16)
    assert x.teacher is not None
    wide = Answers(x.teacher.float(), x.student_a.float(), x.student_b.float(), x.target)
    torch.testing.assert_close(gaps(x, kind), gaps(wide, kind), rtol=1e-6, atol=1e-6)


def test_what_is_not_finite_and_batches_without_images_leave_the_average_as_it_was() -> None:
    average = GapAverage(0.5)
    nan, inf = float("nan"), float("inf")
    torch.testing.assert_close(average(torch.zeros(2, 0)), torch.zeros(2))
    torch.testing.assert_close(average(torch.tensor([[1.0, 3.0], [nan, nan]])), torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(average(torch.tensor([[nan, inf], [4.0, nan]])), torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(average(torch.zeros(2, 0)), torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(average(torch.full((2, 9), 3e38)).isfinite(), torch.tensor([True, True]))


def test_the_moving_average_is_saved_with_the_run() -> None:
    one, modules = akd(alpha="batch")
    other, others = akd(alpha="batch")
    one.loss(answers(seed=1))
    others["alpha"].load_state_dict(modules["alpha"].state_dict())
    terms = [method.loss(answers(seed=2)) for method in (one, other)]
    torch.testing.assert_close(terms[0]["loss"], terms[1]["loss"], rtol=0, atol=0)
    fresh = akd(alpha="batch")[0].loss(answers(seed=2))
    assert fresh["alpha_a"] != terms[0]["alpha_a"]


def test_the_average_over_processes_counts_only_those_that_had_images() -> None:
    seen, blind = GapAverage(0.9), GapAverage(0.9)
    seen(torch.tensor([[2.0], [4.0]]))
    blind(torch.zeros(2, 0))
    for mine, theirs in zip(seen.buffers(), blind.buffers(), strict=True):
        mine.copy_((mine + theirs) / 2)
    torch.testing.assert_close(seen(torch.zeros(2, 0)), torch.tensor([2.0, 4.0]))
