"""Whether a teacher's answers to the validation images look as if something is wrong with the teacher.

Two faults leave a run without an error and its students without a teacher: the classes in another order than the
image folders', and images that are not as the teacher knows them (normalisation, stem, other data). Both show in the
answers, and neither is to be confused with a teacher that is merely weak.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from udskd.data.dataset import few

Numbers = npt.NDArray[np.int64]
_RARE = 1e-3
"""Level of the tests that raise a doubt: at most 1 false alarm in 1000 teachers."""
_UNLIKELY = 1e-2
"""Level of the test that dispels one: 1 in 100 teachers that answer by chance passes it."""


class Doubt(NamedTuple):
    """What seems to be wrong."""

    cause: str
    """ "class_order" or "chance"."""
    text: str
    """What was observed, in words."""


def doubt(labels: Numbers, answers: Numbers, classes: Sequence[str]) -> Doubt | None:
    """What is wrong with a teacher that gave `answers` [N] to images of classes `labels` [N]; None if nothing shows."""
    moved = moved_classes(labels, answers, len(classes))
    if moved:
        return Doubt("class_order", _in_words(moved, labels, answers, classes))
    if is_at_chance(labels, answers):
        right, expected = 100 * (labels == answers).mean(), 100 * chance(labels, answers)
        text = f"it answers {right:.1f} % of {len(labels)} validation images right, and chance {expected:.1f} %"
        return Doubt("chance", text)
    return None


def chance(labels: Numbers, answers: Numbers) -> float:
    """Share of right answers if these answers were given to the images at random."""
    size = int(max(labels.max(), answers.max())) + 1
    shares = (np.bincount(numbers, minlength=size) / len(numbers) for numbers in (labels, answers))
    return float(np.multiply(*shares).sum())


def is_at_chance(labels: Numbers, answers: Numbers) -> bool:
    """Whether the answers are right no more often than by chance, and there are enough images to know.

    Two one-sided binomial tests: the right answers are not significantly more than chance gives (at 1 in 100), and they
    are significantly fewer than a weak teacher gives, whose odds of being right are twice those of chance (at 1 in
    1000). With few images the second test cannot decide, and the answer is False.
    """
    n, right, p = len(labels), int((labels == answers).sum()), chance(labels, answers)
    if not 0 < p < 1:
        return False
    weak = 2 * p / (1 + p)
    return at_most(n - right, n, 1 - p) > _UNLIKELY and at_most(right, n, weak) < _RARE


def moved_classes(labels: Numbers, answers: Numbers, count: int) -> dict[int, int]:
    """The classes that are answered as if they were in another order, each with the class that it is answered as.

    A class has moved if its images are answered as one other class more than twice as often as right, no other class
    is answered so, and that other class has moved as well: a teacher that only confuses two classes still knows one of
    them. This is looked for in every second image of a class. The other images decide: there the moved classes must be
    answered so for at least a quarter of their images, more than twice as often as right, and by more than chance
    (sign test at 1 in 1000). {} if they do not, or if fewer than two classes, or a tenth, have moved.
    """
    by_class = np.argsort(labels, kind="stable")  # so that each class is in both parts
    first, second = by_class[::2], by_class[1::2]
    moved = _candidates(labels[first], answers[first], count)
    if len(moved) < max(2, count // 10):
        return {}
    order = np.arange(count)
    order[list(moved)] = list(moved.values())
    rest = second[np.isin(labels[second], list(moved))]
    own, given = labels[rest], answers[rest]
    moved_hits, own_hits = int((given == order[own]).sum()), int((given == own).sum())
    clear = moved_hits > 2 * own_hits and 4 * moved_hits >= len(own)
    return moved if clear and at_most(own_hits, moved_hits + own_hits, 0.5) < _RARE else {}


def _candidates(labels: Numbers, answers: Numbers, count: int) -> dict[int, int]:
    right = np.bincount(labels[labels == answers], minlength=count)
    favourites = _favourites(labels, answers, count)
    taken = [answer for answer, _ in favourites.values()]
    moved = {c: answer for c, (answer, times) in favourites.items() if answer != c and times > 2 * right[c]}
    return {c: answer for c, answer in moved.items() if answer in moved and taken.count(answer) == 1}


def _favourites(labels: Numbers, answers: Numbers, count: int) -> dict[int, tuple[int, int]]:
    """The most frequent answer to the images of each class, and how often it came."""
    pairs, times = np.unique(labels * count + answers, return_counts=True)
    most = np.lexsort((pairs, -times))
    found: dict[int, tuple[int, int]] = {}
    for pair, number in zip(pairs[most].tolist(), times[most].tolist(), strict=True):
        found.setdefault(pair // count, (pair % count, number))
    return found


def at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) of a binomial X of n trials with probability p, 0 < p < 1."""
    if k >= n:
        return 1.0
    i = np.arange(k + 1)
    factorial = np.concatenate([[0.0], np.log(np.arange(1, n + 1)).cumsum()])
    log_p = factorial[n] - factorial[i] - factorial[n - i] + i * math.log(p) + (n - i) * math.log1p(-p)
    return float(np.exp(log_p).sum())


def _in_words(moved: dict[int, int], labels: Numbers, answers: Numbers, classes: Sequence[str]) -> str:
    def often(c: int) -> tuple[int, int]:
        return int((answers[labels == c] == moved[c]).sum()), int((labels == c).sum())

    clearest = sorted(moved, key=lambda c: -often(c)[0] / often(c)[1])
    examples = (
        f'images of "{classes[c]}" are mostly answered as "{classes[moved[c]]}" ({often(c)[0]} of {often(c)[1]})'
        for c in clearest[:3]
    )
    return f"{few(examples)}; so for {len(moved)} of {len(classes)} classes"
