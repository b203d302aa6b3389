"""Draws of labels, the variance of responses, and two estimates weighted by their inverse variances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.methods.helpers.responses import SIGMAS, B, C, batch, seeded, tempered
from udskd.methods.variance import average, draws, inverse_variance, response_variance


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
