"""Whether a teacher's answers to the validation images look as if something is wrong with the teacher.

Two faults leave a run without an error and its students without a teacher: the classes in another order than the
image folders', and images that are not as the teacher knows them (normalisation, stem, other data). Both show in the
answers, and neither is to be confused with a teacher that is merely weak.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from udskd.data.dataset import abbreviate

Numbers = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]
_RARE = 1e-3
"""Level of the tests that raise a doubt: at most 1 false alarm in 1000 teachers."""
_UNLIKELY = 1e-2
"""Level of the test that dispels one: 1 in 100 teachers that answer by chance passes it."""
_WEAK = 0.05
"""Share of the images that a weak teacher knows. Simulated teachers that know so many, of 2 to 100 classes, balanced
or not, of 100 to 3000 images: 10 of 40,000 are doubted. With 0.1 here, up to a quarter of them are."""
_MIXED_UP = 10
"""Two classes are exchanged if their images are answered as the other one so many times as often as right."""


class SuspectedFault(NamedTuple):
    """What seems to be wrong."""

    cause: str
    """ "class_order" or "chance"."""
    text: str
    """What was observed, in words."""


def find_fault(labels: Numbers, answers: Numbers, classes: Sequence[str]) -> SuspectedFault | None:
    """What is wrong with a teacher that gave `answers` [N] to images of classes `labels` [N]; None if nothing shows."""
    moved = permuted_classes(labels, answers, len(classes))
    if moved:
        return SuspectedFault("class_order", _in_words(moved, labels, answers, classes))
    if is_at_chance(labels, answers):
        right, expected = 100 * (labels == answers).mean(), 100 * chance(labels, answers)
        text = f"it answers {right:.1f} % of {len(labels)} validation images right, and chance {expected:.1f} %"
        return SuspectedFault("chance", text)
    return None


def chance(labels: Numbers, answers: Numbers) -> float:
    """Share of right answers if these answers were given to the images at random."""
    return _ClassCounts.from_classes(labels, answers).hits / len(labels)


def is_at_chance(labels: Numbers, answers: Numbers) -> bool:
    """Whether the answers are right no more often than by chance, and there are enough images to know.

    Two one-sided tests, both with the numbers of labels and answers of each class as they are, so that a frequent class
    is no merit: the right answers are not significantly more than those of the same answers in random order (at 1 in
    100), and they are significantly fewer than those of a weak teacher, which knows 1 in 20 of the images and answers
    the others at random (at 1 in 1000). With few images the second test cannot decide, and the answer is False.

    Normal approximations. The number of right answers is skewed to the right, so that both err towards False.
    """
    by_chance = _ClassCounts.from_classes(labels, answers)
    weak = by_chance.of_weak_teacher(_WEAK)
    if weak.variance <= 0:
        return False  # all labels are of one class, which every teacher of one answer knows
    right = int((labels == answers).sum())
    spread, weak_spread = math.sqrt(by_chance.variance), math.sqrt(weak.variance)
    more = spread > 0 and _normal_tail((right - 0.5 - by_chance.hits) / spread) <= _UNLIKELY
    return not more and _normal_tail((weak.hits - right - 0.5) / weak_spread) < _RARE


class _Hits(NamedTuple):
    """Distribution of the number of right answers."""

    hits: float
    """Its mean."""
    variance: float


class _ClassCounts(NamedTuple):
    """Rows and columns of the table of labels and answers; float64, since products of four counts exceed int64."""

    labels: Shares
    """Images of each class, [C]."""
    answers: Shares
    """Answers of each class, [C]."""

    @staticmethod
    def from_classes(labels: Numbers, answers: Numbers) -> _ClassCounts:
        size = int(max(labels.max(), answers.max())) + 1
        rows, columns = (np.bincount(numbers, minlength=size).astype(np.float64) for numbers in (labels, answers))
        return _ClassCounts(rows, columns)

    @property
    def hits(self) -> float:
        """Mean number of right answers over all orders of the answers."""
        return float((self.labels * self.answers).sum() / self.labels.sum())

    @property
    def variance(self) -> float:
        """Variance of the number of right answers over all orders of the answers."""
        n, products = self.labels.sum(), self.labels * self.answers
        if n < 2:
            return 0.0
        within = (products * (n - self.labels) * (n - self.answers)).sum()
        between = products.sum() ** 2 - (products**2).sum()
        return float((within + between) / (n * n * (n - 1)))

    def of_weak_teacher(self, known: float) -> _Hits:
        """The number of right answers of a teacher that knows this share of the images, each with equal probability.

        An image that it knows adds to the mean over all orders what is left of it when the answer is counted in that
        mean too: 1 - (share of the label). The variance is that of the number and kind of the known images, and of the
        others' answers.
        """
        n = self.labels.sum()
        gain = 1 - self.labels / n
        mean = self.hits + known * float((self.labels * gain).sum())
        beyond_guess = gain - self.answers / n + self.hits / n
        of_known = known * (1 - known) * float((self.labels * beyond_guess**2).sum())
        return _Hits(mean, of_known + (1 - known) * self.variance)


def _normal_tail(z: float) -> float:
    """P(Z > z) of a standard normal Z."""
    return math.erfc(z / math.sqrt(2)) / 2


def permuted_classes(labels: Numbers, answers: Numbers, count: int) -> dict[int, int]:
    """The classes that are answered as if they were in another order, each with the class that it is answered as.

    A class has moved if its images are answered as one other class more than twice as often as right, no other class
    is answered so, and that other class has moved as well: a teacher that only confuses two classes still knows one of
    them. This is looked for in every second image of a class. The other images decide: there the moved classes must be
    answered so for at least a quarter of their images, more than twice as often as right, and by more than chance
    (sign test at 1 in 1000). {} if they do not, or if fewer than two classes, or a tenth, have moved.

    Two classes of more that have moved into each other's places are what a teacher's confusion of the two can look like
    as well, see _is_confusion().
    """
    by_class = np.argsort(labels, kind="stable")  # so that each class is in both parts
    first, second = by_class[::2], by_class[1::2]
    moved = _candidates(labels[first], answers[first], count)
    moved = {c: other for c, other in moved.items() if not _is_confusion(labels, answers, (c, other), moved, count)}
    if len(moved) < max(2, count // 10):
        return {}
    order = np.arange(count)
    order[list(moved)] = list(moved.values())
    rest = second[np.isin(labels[second], list(moved))]
    own, given = labels[rest], answers[rest]
    moved_hits, own_hits = int((given == order[own]).sum()), int((given == own).sum())
    clear = moved_hits > 2 * own_hits and 4 * moved_hits >= len(own)
    return moved if clear and binomial_cdf(own_hits, moved_hits + own_hits, 0.5) < _RARE else {}


def _candidates(labels: Numbers, answers: Numbers, count: int) -> dict[int, int]:
    right = np.bincount(labels[labels == answers], minlength=count)
    favourites = _favourites(labels, answers, count)
    taken = [answer for answer, _ in favourites.values()]
    moved = {c: answer for c, (answer, times) in favourites.items() if answer != c and times > 2 * right[c]}
    return {c: answer for c, answer in moved.items() if answer in moved and taken.count(answer) == 1}


def _is_confusion(
    labels: Numbers, answers: Numbers, pair: tuple[int, int], moved: Mapping[int, int], count: int
) -> bool:
    """Whether a teacher that knows which two classes these are only confuses them; each is answered as the other one.

    If they are exchanged, a right answer is an error of the teacher: no more frequent than other errors (twice their
    mean at the most), or rare. Longer cycles are no confusion, and of two classes alone, nothing else can be told.
    """
    if count == 2 or moved.get(pair[1]) != pair[0]:
        return False
    own, given = labels[np.isin(labels, pair)], answers[np.isin(labels, pair)]
    right, exchanged = int((given == own).sum()), int((np.isin(given, pair) & (given != own)).sum())
    elsewhere = (len(own) - right - exchanged) / (count - 2)
    return right > max(exchanged / _MIXED_UP, 2 * elsewhere)


def _favourites(labels: Numbers, answers: Numbers, count: int) -> dict[int, tuple[int, int]]:
    """The most frequent answer to the images of each class, and how often it came."""
    pairs, times = np.unique(labels * count + answers, return_counts=True)
    most = np.lexsort((pairs, -times))
    found: dict[int, tuple[int, int]] = {}
    for pair, number in zip(pairs[most].tolist(), times[most].tolist(), strict=True):
        found.setdefault(pair // count, (pair % count, number))
    return found


def binomial_cdf(k: int, n: int, p: float) -> float:
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
    return f"{abbreviate(examples)}; so for {len(moved)} of {len(classes)} classes"
