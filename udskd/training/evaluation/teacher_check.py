"""Signs of a fault in the teacher, found in its predictions for the validation images.

Two faults raise no error, but leave the students without a useful teacher: classes in another order than the image
folders', and images that differ from those that the teacher was trained on (normalisation, stem, other data). Both show
in the predictions. A teacher that is merely weak must not be reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from udskd.data.dataset import abbreviate
from udskd.results.statistics import Floats

Classes = npt.NDArray[np.int64]
FAULT_LEVEL = 1e-3
"""Significance level of the tests that report a fault: at most 1 false alarm in 1000 teachers."""
CHANCE_LEVEL = 1e-2
"""Significance level of the test for better than chance, which 1 in 100 teachers at chance passes."""
WEAK_ACCURACY = 0.05
"""Fraction of the images that a weak teacher knows. Of 40,000 simulated teachers that know as many (2 to 100 classes,
balanced or not, 100 to 3000 images) 10 are reported. With 0.1 here, up to a quarter of them are."""
EXCHANGE_RATIO = 10
"""Two classes count as exchanged if their images are predicted as the other class so many times as often as correctly.
Unmeasured."""


class SuspectedFault(NamedTuple):
    """A fault that the predictions show."""

    cause: str
    """ "class_order" or "chance"."""
    text: str
    """The observation, for a message."""


def find_fault(labels: Classes, predicted: Classes, names: Sequence[str]) -> SuspectedFault | None:
    """The fault of a teacher that predicts classes `predicted` [N] for images of classes `labels` [N], None if none."""
    permuted = permuted_classes(labels, predicted, len(names))
    if permuted:
        return SuspectedFault("class_order", _describe_permuted(permuted, labels, predicted, names))
    if is_at_chance(labels, predicted):
        accuracy, expected = 100 * (labels == predicted).mean(), 100 * chance(labels, predicted)
        text = (
            f"it classifies {accuracy:.1f} % of {len(labels)} validation images correctly, and chance {expected:.1f} %"
        )
        return SuspectedFault("chance", text)
    return None


def chance(labels: Classes, predicted: Classes) -> float:
    """The expected accuracy if these predictions were assigned to the images at random."""
    return _ClassCounts.from_classes(labels, predicted).mean_hits / len(labels)


def is_at_chance(labels: Classes, predicted: Classes) -> bool:
    """Whether the teacher is right no more often than by chance, as far as the number of images allows a decision.

    Two one-sided tests, both given how often each class occurs among labels and predictions, so that predicting a
    frequent class is no merit. The number of hits must not be significantly (CHANCE_LEVEL) above that of the same
    predictions in random order, and must be significantly (FAULT_LEVEL) below that of a weak teacher, which knows
    WEAK_ACCURACY of the images and predicts the others at random. With few images the second test cannot decide, and
    the result is False.

    Both tests are normal approximations. The number of hits is skewed to the right, so both err towards False.
    """
    counts = _ClassCounts.from_classes(labels, predicted)
    weak_mean, weak_variance = counts.weak_teacher(WEAK_ACCURACY)
    if weak_variance <= 0:
        return False  # all labels are of one class, which every constant prediction hits
    hits, spread = int((labels == predicted).sum()), math.sqrt(counts.variance)
    is_better = spread > 0 and _normal_tail((hits - 0.5 - counts.mean_hits) / spread) <= CHANCE_LEVEL
    return not is_better and _normal_tail((weak_mean - hits - 0.5) / math.sqrt(weak_variance)) < FAULT_LEVEL


class _ClassCounts(NamedTuple):
    """How often each class occurs, [C]; float64, since products of four counts exceed int64.

    A hit is an image whose predicted class is its label.
    """

    labels: Floats
    predicted: Floats

    @staticmethod
    def from_classes(labels: Classes, predicted: Classes) -> _ClassCounts:
        size = int(max(labels.max(), predicted.max())) + 1
        counts = (np.bincount(classes, minlength=size).astype(np.float64) for classes in (labels, predicted))
        return _ClassCounts(*counts)

    @property
    def mean_hits(self) -> float:
        """Mean number of hits over all orders of the predictions."""
        return float((self.labels * self.predicted).sum() / self.labels.sum())

    @property
    def variance(self) -> float:
        """Variance of the number of hits over all orders of the predictions."""
        n, products = self.labels.sum(), self.labels * self.predicted
        if n < 2:
            return 0.0
        within = (products * (n - self.labels) * (n - self.predicted)).sum()
        between = products.sum() ** 2 - (products**2).sum()
        return float((within + between) / (n * n * (n - 1)))

    def weak_teacher(self, known: float) -> tuple[float, float]:
        """Mean and variance of the hits of a teacher that knows each image with probability `known`.

        A known image of class c adds 1 - labels[c] / n to the mean over all orders, which counts its prediction
        already. The variance has two parts: which images are known, and the predictions of the others.
        """
        n = self.labels.sum()
        gain = 1 - self.labels / n
        mean = self.mean_hits + known * float((self.labels * gain).sum())
        beyond_guess = gain - self.predicted / n + self.mean_hits / n
        of_known = known * (1 - known) * float((self.labels * beyond_guess**2).sum())
        return mean, of_known + (1 - known) * self.variance


def _normal_tail(z: float) -> float:
    """P(Z > z) of a standard normal Z."""
    return math.erfc(z / math.sqrt(2)) / 2


def permuted_classes(labels: Classes, predicted: Classes, count: int) -> dict[int, int]:
    """The classes that the teacher seems to have in another order, each with the class that it is predicted as.

    Half of the images of each class yield candidates, see _permutation_candidates(); the other half decides. There the
    candidates must be predicted as permuted for at least a quarter of their images, more than twice as often as
    correctly, and more often than by chance (sign test at FAULT_LEVEL). {} if they are not, or if fewer than two
    classes, or than a tenth of them, are candidates.

    A teacher that confuses two of several classes can look as if the two were exchanged, see _is_confusion().
    """
    by_class = np.argsort(labels, kind="stable")  # so that both halves contain every class
    first, second = by_class[::2], by_class[1::2]
    permuted = _permutation_candidates(labels[first], predicted[first], count)
    permuted = {
        c: other for c, other in permuted.items() if not _is_confusion(labels, predicted, (c, other), permuted, count)
    }
    if len(permuted) < max(2, count // 10):
        return {}
    order = np.arange(count)
    order[list(permuted)] = list(permuted.values())
    rest = second[np.isin(labels[second], list(permuted))]
    own, given = labels[rest], predicted[rest]
    permuted_hits, own_hits = int((given == order[own]).sum()), int((given == own).sum())
    is_clear = permuted_hits > 2 * own_hits and 4 * permuted_hits >= len(own)
    is_significant = binomial_cdf(own_hits, permuted_hits + own_hits, 0.5) < FAULT_LEVEL
    return permuted if is_clear and is_significant else {}


def _permutation_candidates(labels: Classes, predicted: Classes, count: int) -> dict[int, int]:
    """The classes predicted as one other class more than twice as often as correctly, with that class.

    No other class may be predicted mostly as that class, and that class must be a candidate too: a teacher that only
    confuses two classes still knows one of them.
    """
    hits = np.bincount(labels[labels == predicted], minlength=count)
    most_frequent = _most_frequent_predictions(labels, predicted, count)
    all_predictions = [other for other, _ in most_frequent.values()]
    found = {c: other for c, (other, times) in most_frequent.items() if other != c and times > 2 * hits[c]}
    return {c: other for c, other in found.items() if other in found and all_predictions.count(other) == 1}


def _is_confusion(
    labels: Classes, predicted: Classes, pair: tuple[int, int], permuted: Mapping[int, int], count: int
) -> bool:
    """Whether the teacher confuses these two classes, each predicted as the other, rather than having them exchanged.

    If they are exchanged, an image predicted as its label is an error of the teacher: rare, or no more frequent than
    its other errors (twice their mean at most). Longer cycles are no confusion. Of two classes in all, confusion and
    exchange cannot be told apart.
    """
    if count == 2 or permuted.get(pair[1]) != pair[0]:
        return False
    own, given = labels[np.isin(labels, pair)], predicted[np.isin(labels, pair)]
    hits, exchanged = int((given == own).sum()), int((np.isin(given, pair) & (given != own)).sum())
    elsewhere = (len(own) - hits - exchanged) / (count - 2)
    return hits > max(exchanged / EXCHANGE_RATIO, 2 * elsewhere)


def _most_frequent_predictions(labels: Classes, predicted: Classes, count: int) -> dict[int, tuple[int, int]]:
    """The most frequent prediction for the images of each class, and its frequency."""
    pairs, times = np.unique(labels * count + predicted, return_counts=True)
    by_frequency = np.lexsort((pairs, -times))
    found: dict[int, tuple[int, int]] = {}
    for pair, frequency in zip(pairs[by_frequency].tolist(), times[by_frequency].tolist(), strict=True):
        found.setdefault(pair // count, (pair % count, frequency))
    return found


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X <= k) of a binomial X of n trials with probability p, 0 < p < 1."""
    if k >= n:
        return 1.0
    i = np.arange(k + 1)
    log_factorial = np.concatenate([[0.0], np.log(np.arange(1, n + 1)).cumsum()])
    log_choose = log_factorial[n] - log_factorial[i] - log_factorial[n - i]
    log_p = log_choose + i * math.log(p) + (n - i) * math.log1p(-p)
    return float(np.exp(log_p).sum())


def _describe_permuted(permuted: Mapping[int, int], labels: Classes, predicted: Classes, names: Sequence[str]) -> str:
    def frequency(c: int) -> tuple[int, int]:
        return int((predicted[labels == c] == permuted[c]).sum()), int((labels == c).sum())

    clearest = sorted(permuted, key=lambda c: -frequency(c)[0] / frequency(c)[1])
    examples = (
        f'images of "{names[c]}" are mostly classified as "{names[permuted[c]]}" '
        f"({frequency(c)[0]} of {frequency(c)[1]})"
        for c in clearest[:3]
    )
    return f"{abbreviate(examples)}; so for {len(permuted)} of {len(names)} classes"
