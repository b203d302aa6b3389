"""Random numbers as hashes of their purpose: without a generator, and without a state that a checkpoint must save.

The hash is splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]

_MASK = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def random_bits(seed: int, epoch: int, indices: npt.ArrayLike, stream: npt.ArrayLike) -> Words:
    """64 random bits for each index; `indices` and `stream` broadcast against each other (at least one dimension).

    It is splitmix64, started from a hash of (seed, epoch, stream) and read at position `index`.
    """
    state = _finalise(_word(seed) + _GOLDEN)
    state = _finalise((state ^ _word(epoch)) + _GOLDEN)
    state = _finalise((state ^ _words(stream)) + _GOLDEN)
    return _finalise(state + (_words(indices) + np.uint64(1)) * _GOLDEN)


def uniform(seed: int, epoch: int, indices: npt.ArrayLike, stream: npt.ArrayLike) -> Floats:
    """Uniform numbers in [0, 1), float64, in steps of 2^-53; shapes as in `random_bits`."""
    numbers: Floats = (random_bits(seed, epoch, indices, stream) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers. Nearby seeds, and the phases of a run, share no random numbers."""
    state = _word(int(_GOLDEN))
    for part in parts:
        state = _multiply(state ^ _word(part))
    return int(state[0]) >> 1


def _finalise(x: Words) -> Words:
    """The finaliser of splitmix64."""
    return _multiply(x ^ (x >> np.uint64(30)))


def _multiply(x: Words) -> Words:
    """The finaliser without its first shift, of which derive_seed has no need."""
    x = x * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: Words = x ^ (x >> np.uint64(31))
    return result


def _word(value: int) -> Words:
    """The low 64 bits of an integer, [1]: of arrays, unlike of scalars, numpy does not report overflows."""
    return np.array([value & _MASK], dtype=np.uint64)


def _words(values: npt.ArrayLike) -> Words:
    return np.atleast_1d(np.asarray(values, dtype=np.int64)).view(np.uint64)
