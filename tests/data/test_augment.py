"""augment: pure functions of (seed, epoch, index) with the expected distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from tests.data.helpers.statistics import MANY, SEEDS, distance_to_cdf
from udskd.data import augment


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, epoch=st.integers(0, 1000), n=st.integers(1, 300))
def test_permutation_has_every_index_once(seed: int, epoch: int, n: int) -> None:
    assert sorted(augment.permutation(seed, epoch, n).tolist()) == list(range(n))


def test_permutation_is_uniform() -> None:
    first = np.array([augment.permutation(0, epoch, 10)[0] for epoch in range(5000)])
    counts = np.bincount(first, minlength=10)
    assert ((counts - 500) ** 2 / 500).sum() < 40  # chi-squared, 9 degrees of freedom: exceeded once in 100 000 times


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_flips_have_their_probability(probability: float) -> None:
    fraction = augment.flips(3, 1, MANY, probability).mean()
    assert abs(fraction - probability) <= 5 * math.sqrt(probability * (1 - probability) / len(MANY))


@settings(deadline=None, max_examples=200)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    low=st.floats(0.001, 1.0),
    high=st.floats(0.001, 1.0),
    index=st.integers(0, 10**6),
)
def test_crops_lie_in_the_image(width: int, height: int, low: float, high: float, index: int) -> None:
    scale = (min(low, high), max(low, high))
    left, top, right, bottom = augment.crop_box(augment.crop_draws(0, 0, [index])[0], width, height, scale)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@pytest.mark.parametrize(
    ("size", "scale"),
    [((90, 60), (0.08, 1.0)), ((120, 60), (0.3, 1.0)), ((40, 60), (0.5, 0.9))],
    ids=["photo", "wide", "tall"],
)
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int], scale: tuple[float, float]) -> None:
    n = 4000
    draws = augment.crop_draws(5, 0, np.arange(n))
    ours = np.array([augment.crop_box(one, *size, scale) for one in draws])
    ours[:, 2:] -= ours[:, :2]
    torch.manual_seed(5)
    image = torch.empty(3, size[1], size[0])
    boxes = [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(n)]
    theirs = np.array(boxes)[:, [1, 0, 3, 2]]  # left, top, width, height
    for column in range(4):
        grid = np.union1d(ours[:, column], theirs[:, column])
        cdfs = [np.searchsorted(np.sort(boxes_[:, column]), grid, side="right") / n for boxes_ in (ours, theirs)]
        assert np.abs(cdfs[0] - cdfs[1]).max() * math.sqrt(n / 2) < 2.3
    assert abs(np.corrcoef(ours[:, 2], ours[:, 3])[0, 1] - np.corrcoef(theirs[:, 2], theirs[:, 3])[0, 1]) < 0.06


def test_without_a_try_that_fits_the_crop_is_central() -> None:
    hopeless = np.full((augment.CROP_TRIES, 4), 0.5)
    assert augment.crop_box(hopeless, 300, 30, (1.0, 1.0)) == (130, 0, 170, 30)
    assert augment.crop_box(hopeless, 30, 300, (1.0, 1.0)) == (0, 130, 30, 170)


def test_crop_tries_are_independent() -> None:
    draws = augment.crop_draws(0, 0, np.arange(2000)).reshape(2000, -1)
    correlations = np.corrcoef(draws.T) - np.eye(draws.shape[1])
    assert np.abs(correlations).max() < 6 / math.sqrt(2000)


@pytest.mark.parametrize(
    ("alpha", "cdf"),
    [
        (0.5, lambda x: 2 / np.pi * np.arcsin(np.sqrt(x))),
        (1.0, lambda x: x),
        (2.0, lambda x: 3 * x**2 - 2 * x**3),
    ],
)
def test_mixup_strengths_follow_the_beta_distribution(alpha: float, cdf: object) -> None:
    strengths = np.sort(augment.mixup_strengths(2, 1, MANY, alpha))
    assert distance_to_cdf(strengths, cdf(strengths)) < 2.3  # type: ignore[operator]


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 0.2, 50.0])
def test_mixup_strengths_have_the_betas_mean_and_variance(alpha: float) -> None:
    strengths = augment.mixup_strengths(2, 1, MANY, alpha)
    variance = 1 / (4 * (2 * alpha + 1))
    assert ((strengths >= 0) & (strengths <= 1)).all()
    assert abs(strengths.mean() - 0.5) < 5 * math.sqrt(variance / len(MANY))
    assert strengths.var() == pytest.approx(variance, rel=0.06)


def test_the_mixup_strength_of_an_image_does_not_depend_on_the_others() -> None:
    together = augment.mixup_strengths(2, 1, np.arange(500), 0.4)
    alone = np.concatenate([augment.mixup_strengths(2, 1, [index], 0.4) for index in range(500)])
    np.testing.assert_array_equal(together, alone)
