"""The paper's guarantees for linear regression, with the functions that shape a classifier's targets.

A teacher answers y = X beta + e with e ~ N(0, NOISE) at TRAIN fixed points; a student is fitted by least squares to
targets from k responses. Simulations are compared within FOUR standard errors, which follow from REPLICATIONS: a
variance v that is estimated from R normal values has the standard error v sqrt(2 / (R - 1)).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from udskd.methods.variance import average, inverse_variance, response_variance

TRAIN, TEST, FEATURES = 24, 9, 3
NOISE = 0.7
"""Variance of one answer."""
REPLICATIONS = 8000
FOUR = 4.0
VARIANCE_ERROR = math.sqrt(2 / (REPLICATIONS - 1))
"""Standard error of a simulated variance, as a share of it."""


VARIANCES = st.floats(1e-100, 1e6) | st.just(0.0)


class World(NamedTuple):
    x: Tensor
    """[TRAIN, FEATURES]."""
    x_test: Tensor
    """[TEST, FEATURES]."""
    beta: Tensor
    """The teacher's coefficients [FEATURES]."""
    y_test: Tensor
    """[TEST]: what is true there, which the linear teacher itself misses."""

    @property
    def fit(self) -> Tensor:
        """(X'X)^-1 X' [FEATURES, TRAIN]."""
        return torch.linalg.solve(self.x.T @ self.x, self.x.T)

    @property
    def leverage(self) -> Tensor:
        """x'(X'X)^-1 x of each test point [TEST]."""
        return torch.einsum("ip,pq,iq->i", self.x_test, torch.linalg.inv(self.x.T @ self.x), self.x_test)

    def answers(self, k: int, seed: int) -> Tensor:
        """[k, REPLICATIONS, TRAIN]: the noisy teacher."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(k, REPLICATIONS, TRAIN, dtype=torch.float64, generator=generator)
        return self.x @ self.beta + math.sqrt(NOISE) * noise

    def predictions(self, targets: Tensor, x: Tensor) -> Tensor:
        """[REPLICATIONS, TRAIN] -> [REPLICATIONS, points]: a student is fitted to each row and asked at x."""
        return (x @ torch.linalg.lstsq(self.x, targets.T).solution).T


@pytest.fixture(scope="module")
def world() -> World:
    generator = torch.Generator().manual_seed(0)
    x, x_test = (torch.randn(n, FEATURES, dtype=torch.float64, generator=generator) for n in (TRAIN, TEST))
    beta = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    return World(x, x_test, beta, x_test @ beta + x_test[:, 0].square())


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def assert_exactly(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-12)


def assert_variance_is(values: Tensor, expected: Tensor) -> None:
    """Of each column of [REPLICATIONS, n]."""
    assert ((values.var(0) - expected).abs() <= FOUR * VARIANCE_ERROR * expected).all()


@pytest.mark.parametrize("k", [1, 2, 5, 10])
class TestAStudentOfTheAverage:
    def test_varies_as_the_noise_over_k_times_the_leverage(self, world: World, k: int) -> None:
        predictions = world.predictions(average(world.answers(k, seed=k)), world.x_test)
        assert_variance_is(predictions, NOISE / k * world.leverage)

    def test_is_unbiased(self, world: World, k: int) -> None:
        predictions = world.predictions(average(world.answers(k, seed=k)), world.x_test)
        error = (NOISE / k * world.leverage / REPLICATIONS).sqrt()
        assert ((predictions.mean(0) - world.x_test @ world.beta).abs() <= FOUR * error).all()

    def test_has_the_teachers_error_and_its_own_variance(self, world: World, k: int) -> None:
        predictions = world.predictions(average(world.answers(k, seed=k)), world.x_test)
        errors = (predictions - world.y_test).square().mean(1)
        noiseless = (world.x_test @ world.beta - world.y_test).square().mean()
        expected = noiseless + NOISE / k * world.leverage.mean()
        assert (errors.mean() - expected).abs() <= FOUR * errors.std() / math.sqrt(REPLICATIONS)

    def test_has_the_features_share_of_the_noise_on_the_training_points(self, world: World, k: int) -> None:
        deviations = world.predictions(average(world.answers(k, seed=k)), world.x) - world.x @ world.beta
        spread = deviations.square().mean(1)
        expected = NOISE / k * FEATURES / TRAIN
        assert (spread.mean() - expected).abs() <= FOUR * spread.std() / math.sqrt(REPLICATIONS)

    def test_satisfies_the_formulas_exactly(self, world: World, k: int) -> None:
        """The covariance M M' NOISE of the linear map M from all k TRAIN answers, found by its effect on a basis."""
        basis = torch.eye(k * TRAIN, dtype=torch.float64)
        coefficients = world.fit @ average(basis.view(k, TRAIN, k * TRAIN))
        covariance = NOISE * coefficients @ coefficients.T
        assert_exactly(covariance, NOISE / k * torch.linalg.inv(world.x.T @ world.x))
        at_test = torch.einsum("ip,pq,iq->i", world.x_test, covariance, world.x_test)
        assert_exactly(at_test, NOISE / k * world.leverage)
        at_train = torch.einsum("ip,pq,iq->i", world.x, covariance, world.x).mean()
        assert_exactly(at_train, number(NOISE / k * FEATURES / TRAIN))


@pytest.mark.parametrize("k", [2, 5])
def test_the_variance_of_the_responses_is_unbiased(world: World, k: int) -> None:
    estimates = response_variance(world.answers(k, seed=k))
    standard_error = NOISE * math.sqrt(2 / (k - 1) / REPLICATIONS)
    assert ((estimates.mean(0) - NOISE).abs() <= FOUR * standard_error).all()


@pytest.mark.parametrize("k", [1, 3, 10])
class TestTheAverageWeightedWithAStudentsEstimate:
    def test_varies_as_the_noise_over_k_plus_one(self, world: World, k: int) -> None:
        estimates = (average(world.answers(k, seed=k)), number(NOISE / k), world.answers(1, seed=100 + k)[0])
        targets, share = inverse_variance(*estimates, number(NOISE))
        assert_exactly(share, number(k / (k + 1)))
        assert_variance_is(targets, torch.full((TRAIN,), NOISE / (k + 1), dtype=torch.float64))
        assert_variance_is(world.predictions(targets, world.x_test), NOISE / (k + 1) * world.leverage)

    def test_satisfies_that_exactly(self, world: World, k: int) -> None:
        basis = torch.eye((k + 1) * TRAIN, dtype=torch.float64).view(k + 1, TRAIN, (k + 1) * TRAIN)
        weighted, _ = inverse_variance(average(basis[:k]), number(NOISE / k), basis[k], number(NOISE))
        identity = torch.eye(TRAIN, dtype=torch.float64)
        assert_exactly(NOISE * weighted @ weighted.T, NOISE / (k + 1) * identity)
        coefficients = world.fit @ weighted
        expected = NOISE / (k + 1) * torch.linalg.inv(world.x.T @ world.x)
        assert_exactly(NOISE * coefficients @ coefficients.T, expected)


@pytest.mark.parametrize("k", [3, 10])
def test_a_noiseless_estimate_reaches_a_variance_that_honest_weights_cannot(world: World, k: int) -> None:
    """The published code, with the teacher without noise in the student's place: an oracle."""
    responses, noiseless = world.answers(k, seed=k), world.x @ world.beta
    published = response_variance(responses) * (k - 1) / k
    targets, _ = inverse_variance(average(responses), published, noiseless, number(NOISE))
    bound = NOISE / (k + 1) * world.leverage
    spread = world.predictions(targets, world.x_test).var(0)
    # random weights make the predictions not quite normal, hence twice the margin; the leak is far greater than that
    assert (spread * (1 + 2 * FOUR * VARIANCE_ERROR) < bound).all()


def test_equal_weights_are_worse_than_those_of_the_inverse_variance(world: World) -> None:
    k = 10
    mean, other = average(world.answers(k, seed=1)), world.answers(1, seed=2)[0]
    weighted, _ = inverse_variance(mean, number(NOISE / k), other, number(NOISE))
    equal, share = inverse_variance(mean, number(NOISE), other, number(NOISE))
    assert share == 0.5
    assert_variance_is(equal, torch.full((TRAIN,), NOISE * (1 / k + 1) / 4, dtype=torch.float64))
    assert (equal.var(0) * (1 - FOUR * VARIANCE_ERROR) > weighted.var(0) * (1 + FOUR * VARIANCE_ERROR)).all()


def test_estimated_weights_stay_unbiased_but_cost_variance(world: World) -> None:
    """Normal means are independent of the variances that weigh them, and known weights cannot be beaten."""
    k = 3
    responses, other = world.answers(k, seed=3), world.answers(1, seed=4)[0]
    targets, _ = inverse_variance(average(responses), response_variance(responses) / k, other, number(NOISE))
    error = targets.std(0) / math.sqrt(REPLICATIONS)
    assert ((targets.mean(0) - world.x @ world.beta).abs() <= FOUR * error).all()
    assert targets.var(0).mean() > NOISE / (k + 1)


@settings(deadline=None, max_examples=100)
@given(VARIANCES, VARIANCES, st.floats(0, 1))
def test_no_weights_that_add_up_to_one_do_better(var_t: float, var_s: float, other: float) -> None:
    value, share = inverse_variance(number(1.0), number(var_t), number(0.0), number(var_s))
    assert value == share
    reached = share**2 * var_t + (1 - share) ** 2 * var_s
    slack = 1 + 1e-12
    assert reached <= min(var_t, var_s) * slack
    assert reached <= (other**2 * var_t + (1 - other) ** 2 * var_s) * slack
