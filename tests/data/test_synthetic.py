"""synthetic: labels and pixels follow the posterior, and the set is the same on every machine."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from udskd.data import EmbeddedSet
from udskd.data.synthetic import PROTOTYPES, posterior


@pytest.fixture(scope="module")
def train() -> EmbeddedSet:
    return EmbeddedSet("train")


@pytest.fixture(scope="module")
def val() -> EmbeddedSet:
    return EmbeddedSet("val")


def test_sizes_and_shapes(train: EmbeddedSet, val: EmbeddedSet) -> None:
    assert (len(train), len(val)) == (2000, 1000)
    assert train.classes == val.classes
    assert train.posterior.shape == (2000, len(train.classes))
    assert (train.pixels(7).dtype, train.pixels(7).shape) == (np.uint8, (32, 32, 3))


def test_the_set_is_the_same_on_every_machine(train: EmbeddedSet, val: EmbeddedSet) -> None:
    digest = hashlib.sha256()
    for images in (train, val):
        for index in range(len(images)):
            digest.update(images.pixels(index).tobytes())
        digest.update(images.labels.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "6ec9fd9dbfe95cce"


def test_a_smaller_set_is_the_beginning_of_the_whole(train: EmbeddedSet) -> None:
    smaller = EmbeddedSet("train", 300)
    np.testing.assert_array_equal(smaller.labels, train.labels[:300])
    np.testing.assert_array_equal(smaller.posterior, train.posterior[:300])
    for index in (0, 249, 250, 299):
        assert smaller.pixels(index).tobytes() == train.pixels(index).tobytes()


def test_no_image_is_in_both_splits(train: EmbeddedSet, val: EmbeddedSet) -> None:
    assert not {train.pixels(i).tobytes() for i in range(2000)} & {val.pixels(i).tobytes() for i in range(1000)}


def test_posteriors_are_distributions(train: EmbeddedSet) -> None:
    assert (train.posterior >= 0).all()
    np.testing.assert_allclose(train.posterior.sum(axis=1), 1, rtol=1e-12)


def test_a_class_is_the_likeliest_at_its_own_factors() -> None:
    hues, outlines = np.array(list(PROTOTYPES.values())).T
    assert posterior(hues, np.ones(10), outlines).argmax(axis=1).tolist() == list(range(10))


def test_half_way_between_two_classes_they_are_equally_likely() -> None:
    red, green = 0, 1
    p = posterior(np.array([1 / 6]), np.ones(1), np.zeros(1))[0]
    assert p[red] == pytest.approx(p[green], rel=1e-9)
    assert p[red] + p[green] > 0.95


def test_a_grey_diamond_may_be_any_diamond() -> None:
    p = posterior(np.array([0.123]), np.zeros(1), np.zeros(1))[0]
    np.testing.assert_allclose(p[:3], 1 / 3, atol=1e-3)


def test_labels_follow_the_posterior(train: EmbeddedSet) -> None:
    """For images whose likeliest class has probability p, that class is the label of a fraction p of them."""
    likeliest, label_is_likeliest = train.posterior.max(axis=1), train.posterior.argmax(axis=1) == train.labels
    for low, high in ((0.0, 0.6), (0.6, 0.8), (0.8, 0.95), (0.95, 1.01)):
        some = (likeliest >= low) & (likeliest < high)
        spread = math.sqrt((likeliest[some] * (1 - likeliest[some])).sum())
        assert some.sum() > 100
        assert abs(label_is_likeliest[some].sum() - likeliest[some].sum()) < 4 * spread


def test_every_class_has_its_expected_frequency(train: EmbeddedSet) -> None:
    spread = np.sqrt((train.posterior * (1 - train.posterior)).sum(axis=0))
    counts = np.bincount(train.labels, minlength=10)
    assert (np.abs(counts - train.posterior.sum(axis=0)) < 4 * spread).all()
    assert counts.min() > 100


def test_many_images_are_clear_and_many_ambiguous(val: EmbeddedSet) -> None:
    assert (val.entropy < 0.2).mean() > 0.3
    assert (val.entropy > 0.6).mean() > 0.2
    assert 0.8 < val.bayes_accuracy < 0.9


def test_entropy_is_that_of_the_posterior() -> None:
    images = EmbeddedSet("val", 50)
    expected = [-sum(q * math.log(q) for q in p if q > 0) for p in images.posterior.tolist()]
    np.testing.assert_allclose(images.entropy, expected, rtol=1e-12)


def test_the_pixels_determine_the_posterior(val: EmbeddedSet) -> None:
    """Hue and chroma, measured at the brightest pixels, give the likeliest class."""
    groups = np.array([outline for _, outline in PROTOTYPES.values()])
    agreed, n = 0, 300
    for index in range(n):
        pixels = val.pixels(index).reshape(-1, 3) / 255.0
        colour = np.median(pixels[np.argsort(pixels.max(axis=1))[-150:]], axis=0)
        top, bottom = colour.max(), colour.min()
        r, g, b = colour
        turns = {0: (g - b) / 6, 1: 1 / 3 + (b - r) / 6, 2: 2 / 3 + (r - g) / 6}
        hue = 0.0 if top == bottom else _unscaled(turns, int(colour.argmax()), top - bottom)
        outline = groups[val.posterior[index].argmax()]
        p = posterior(np.array([hue]), np.array([1 - bottom / top]), np.array([outline]))[0]
        agreed += int(p.argmax() == val.posterior[index].argmax())
    assert agreed / n > 0.93


def _unscaled(turns: dict[int, float], channel: int, spread: float) -> float:
    base = channel / 3
    return (base + (turns[channel] - base) / spread) % 1.0


def test_names_contain_the_index(val: EmbeddedSet) -> None:
    assert val.name(12) == "embedded/val/12"
