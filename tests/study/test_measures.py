"""The study's measures, compared with numbers computed by hand and with properties that they must have."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from udskd.results.statistics import Floats, entropy
from udskd.study.measures import (
    LEAST,
    by_rank,
    calibration,
    divergence,
    expected_hits,
    group_means,
    hits,
    restored,
    total_variation,
)

TRUE = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0]])
PREDICTED = np.array([[0.8, 0.1, 0.1], [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])


def posterior(seed: int, n: int = 40, classes: int = 6) -> Floats:
    rng = np.random.default_rng(seed)
    p: Floats = rng.dirichlet(np.full(classes, 0.7), n)
    return p


def test_five_numbers_by_hand() -> None:
    kl = [0.6 * math.log(0.6 / 0.8) + 0.3 * math.log(3), 0.2 * math.log(0.4) + 0.5 * math.log(2) + 0.3 * math.log(1.2)]
    found = calibration(TRUE, PREDICTED)
    # Confidences 0.8, 0.5, 0.5 in classes whose true probabilities are 0.6, 0.2, 1; the last two share a bin.
    assert found == pytest.approx(
        {
            "kl": (sum(kl) + math.log(2)) / 3,
            "confidence_gap": (0.2 + 0.3 + 0.5) / 3,
            "over_confidence": (0.2 + 0.3 - 0.5) / 3,
            "ece": (0.2 + abs(0.3 - 0.5)) / 3,
            "total_variation": (0.2 + 0.3 + 0.5) / 3,
        },
        abs=1e-15,
    )


def test_hits_by_hand() -> None:
    np.testing.assert_array_equal(expected_hits(TRUE, PREDICTED), [0.6, 0.2, 1.0])
    np.testing.assert_array_equal(hits(np.array([0, 1, 2]), PREDICTED), [1, 0, 1])


@given(seed=st.integers(0, 10**6))
def test_entropy_divergence_and_variation_are_those_of_pytorch(seed: int) -> None:
    true, p = posterior(seed), posterior(seed + 1)
    t, q = torch.from_numpy(true), torch.from_numpy(p)
    np.testing.assert_allclose(entropy(p), torch.special.entr(q).sum(-1), atol=1e-12)
    np.testing.assert_allclose(divergence(true, p), F.kl_div(q.log(), t, reduction="none").sum(-1), atol=1e-12)
    np.testing.assert_allclose(total_variation(true, p), torch.cdist(t, q, p=1).diagonal() / 2, atol=1e-12)


def test_a_class_without_mass_adds_nothing_and_an_excluded_one_is_infinitely_far() -> None:
    assert entropy(np.array([0.5, 0.5, 0.0])) == pytest.approx(math.log(2))
    assert divergence(np.array([0.5, 0.5, 0.0]), np.array([0.5, 0.5, 0.0])) == 0
    assert divergence(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == math.inf


@given(seed=st.integers(0, 10**6))
def test_the_true_posterior_has_no_error(seed: int) -> None:
    true = posterior(seed)
    assert set(calibration(true, true).values()) == {0.0}


@given(seed=st.integers(0, 10**6))
def test_the_order_of_the_images_changes_nothing(seed: int) -> None:
    true, p = posterior(seed), posterior(seed + 1)
    order = np.random.default_rng(seed).permutation(len(true))
    assert calibration(true[order], p[order]) == pytest.approx(calibration(true, p), abs=1e-12)
    means = [group_means(expected_hits(t, q), by_rank(entropy(t))) for t, q in ((true, p), (true[order], p[order]))]
    assert means[1] == pytest.approx(means[0], abs=1e-12)


@given(seed=st.integers(0, 10**6), temperature=st.floats(0.1, 0.9))
def test_a_sharpened_posterior_is_over_confident_and_a_flattened_one_under_confident(
    seed: int, temperature: float
) -> None:
    true = posterior(seed)
    sharp, flat = (
        F.softmax(torch.from_numpy(true).log() * power, -1).numpy() for power in (1 / temperature, temperature)
    )
    for p, sign in ((sharp, 1), (flat, -1)):
        found = calibration(true, p)
        assert sign * found["over_confidence"] > 0
        # all images err in the same direction, so nothing cancels
        assert found["confidence_gap"] == pytest.approx(sign * found["over_confidence"])
        assert found["ece"] == pytest.approx(sign * found["over_confidence"])


@given(seed=st.integers(0, 10**6), n=st.integers(10, 200))
def test_every_image_is_in_one_decile_and_they_differ_by_one_image_at_most(seed: int, n: int) -> None:
    values = np.random.default_rng(seed).integers(0, 20, n).astype(np.float64)
    groups = by_rank(values)
    assert len(groups) == 10
    assert sorted(np.concatenate(groups)) == list(range(n))
    sizes = {len(group) for group in groups}
    assert sizes == {n // 10} if n % 10 == 0 else sizes == {n // 10, n // 10 + 1}
    edges = [(values[group].min(), values[group].max()) for group in groups]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(edges))


def test_equal_values_are_ranked_by_their_index() -> None:
    values = np.tile([1.0, 0.0], 50)
    odd_then_even = [*range(1, 100, 2), *range(0, 100, 2)]
    assert [list(group) for group in by_rank(values)] == [odd_then_even[i : i + 10] for i in range(0, 100, 10)]


def test_group_means_by_hand() -> None:
    groups = [np.array([0, 2]), np.array([1, 3])]
    assert group_means(np.array([1.0, 10.0, 3.0, 20.0]), groups) == {"1": 2.0, "2": 15.0, "all": 8.5}


def test_restored_rows_are_positive_and_add_up_to_one() -> None:
    exact = np.array([[1 - 1e-9, 1e-9, 0.0], [0.3, 0.3, 0.4]])
    found = restored(exact.astype(np.float16))
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-15)
    np.testing.assert_allclose(found[0, 1:], LEAST)
    np.testing.assert_allclose(found[1], exact[1], rtol=1e-3)
    assert np.isfinite(divergence(np.full_like(exact, 1 / 3), found)).all()


def test_float16_rounds_probabilities_up_to_least_to_zero() -> None:
    assert np.float16(LEAST) == 0 < np.float16(np.nextafter(LEAST, 1))
