"""hashing: splitmix64, with the same bits everywhere, and numbers that are uniform and unrelated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.helpers.statistics import MANY, SEEDS, distance_to_cdf
from udskd.data import hashing
from udskd.data.hashing import derive_seed, random_bits, uniform


def test_hash_is_splitmix64() -> None:
    # First outputs of the published splitmix64 for the seed 1234567, reproduced by starting its counter there.
    state = np.uint64(1234567)
    counter = np.arange(1, 4, dtype=np.uint64) * hashing._GOLDEN + state
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert hashing._finalise(counter).tolist() == expected


def test_numbers_are_the_same_on_every_machine() -> None:
    def finalise(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    golden, state = 0x9E3779B97F4A7C15, 0
    for word in (-7 % 2**64, 3, 5):  # seed, epoch, stream
        state = finalise(((state ^ word) + golden) % 2**64)
    expected = [finalise((state + (index + 1) * golden) % 2**64) for index in (0, 1, 10**6)]
    assert random_bits(-7, 3, [0, 1, 10**6], 5).tolist() == expected


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, epoch=st.integers(0, 10**6), indices=st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_a_number_does_not_depend_on_the_other_indices(seed: int, epoch: int, indices: list[int]) -> None:
    together = uniform(seed, epoch, indices, 3)
    alone = np.concatenate([uniform(seed, epoch, [index], 3) for index in indices])
    assert ((together >= 0) & (together < 1)).all()
    np.testing.assert_array_equal(together, alone)


def test_uniform_is_uniform() -> None:
    assert distance_to_cdf(*[np.sort(uniform(1, 2, MANY, 3))] * 2) < 2.3


@pytest.mark.parametrize("other", [(2, 2, 3), (1, 3, 3), (1, 2, 4)], ids=["seed", "epoch", "stream"])
def test_seed_epoch_and_stream_each_give_unrelated_numbers(other: tuple[int, int, int]) -> None:
    first, second = uniform(1, 2, MANY, 3), uniform(other[0], other[1], MANY, other[2])
    for shift in (0, 1, 2):
        assert abs(np.corrcoef(first, np.roll(second, shift))[0, 1]) < 5 / math.sqrt(len(MANY))


def test_swapped_seed_and_epoch_give_other_numbers() -> None:
    assert not np.isin(random_bits(1, 2, MANY, 3), random_bits(2, 1, MANY, 3)).any()


def test_neighbouring_indices_are_unrelated() -> None:
    numbers = uniform(0, 0, MANY, 0)
    for shift in (1, 2, 64):
        assert abs(np.corrcoef(numbers, np.roll(numbers, shift))[0, 1]) < 5 / math.sqrt(len(MANY))


def test_derived_seeds_are_the_same_on_every_machine() -> None:
    assert derive_seed() == 5700357409661599242
    assert derive_seed(0, 1) == 3715005276098144690
    assert derive_seed(3, -1, 5) == derive_seed(3 + 2**64, -1, 5) == 2994355225176359900


def test_derived_seeds_do_not_collide() -> None:
    seeds = {derive_seed(a, b, c) for a in range(20) for b in range(3) for c in range(50)}
    assert len(seeds) == 20 * 3 * 50
    assert all(0 <= s < 2**63 for s in seeds)
