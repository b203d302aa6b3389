"""The study's tables: what each shows, in words, and its numbers as mean ± standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from udskd.config.schema import STUDENTS
from udskd.data import EmbeddedSet
from udskd.results.table import Section, cell, markdown
from udskd.study.measures import by_rank
from udskd.study.seed import BAYES, TEACHER

Numbers = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""By the table's name, the row's and the number's: a value of each seed."""

# Column title, the number's name, decimals.
TARGETS = (
    ("rank corr. with true H", "rank_correlation", 3),
    ("mean H", "mean_entropy", 3),
    ("TV", "total_variation", 3),
)
CALIBRATION = (
    ("KL truth", "kl", 3),
    ("conf. gap", "confidence_gap", 3),
    ("over-conf.", "over_confidence", 3),
    ("ECE truth", "ece", 3),
    ("TV", "total_variation", 3),
)
# By the numbers' name: question and answer.
ACCURACIES = {
    "expected top-1": (
        "Who is right on clear and on ambiguous images? As the truth expects it",
        "The mean true probability of the class predicted (its accuracy but for the labels' noise), in %,",
    ),
    "top-1": ("Who is right on clear and on ambiguous images? Against the labels", "Top-1 accuracy, in %,"),
}


@dataclass(frozen=True)
class Chapter:
    """A question, how it is answered, and the tables that do."""

    title: str
    text: str
    sections: list[Section]

    def markdown(self) -> str:
        """As a part of a document."""
        return f"## {self.title}\n\n{self.text}\n\n{markdown(self.sections)}"


def chapters(measured: Numbers, truth: Numbers, models: Mapping[str, str], images: EmbeddedSet) -> list[Chapter]:
    """All tables, in the order of the questions. models: the networks' names by role."""
    return [
        weights(measured, truth, images),
        targets(measured, images),
        calibration(measured, models),
        *accuracy(measured, truth, models, images),
    ]


def weights(measured: Numbers, truth: Numbers, images: EmbeddedSet) -> Chapter:
    """How well a weight follows the true entropy, beside what the same weight of the true posterior would do."""
    text = (
        f"Spearman's rank correlation of the weight that the teacher's certainty gives each of {len(images)} "
        'validation images with the entropy H of its true p(class | image), and the mean weight; columns "of the '
        'truth": the same for a teacher that knows the true posterior. Trust in the confident should come near -1, in '
        "the uncertain near +1. Weights that are divided by their batch mean have the same ranks and the mean 1 by "
        "construction, and no rows here."
    )
    header = ["weight", "rank corr. with true H", "of the truth", "mean weight", "of the truth"]
    rows = [
        [name, *(cell(numbers["weights"][name][key], 3) for key in ("rank_correlation", "mean") for numbers in both)]
        for both in [(measured, truth)]
        for name in measured["weights"]
    ]
    title = "Does the weight of an image follow its true uncertainty?"
    return Chapter(title, text, [Section("weights of udskd, by measure and trust", header, rows)])


def targets(measured: Numbers, images: EmbeddedSet) -> Chapter:
    """How well the entropy of what the students imitate follows the true entropy."""
    text = (
        "For the methods that weigh all images alike and shape the target instead: Spearman's rank correlation of the "
        "entropy H of the target at temperature 1 with the entropy of the true p(class | image), whose mean is "
        f"{images.entropy.mean():.3f} nats; the mean H of the target; and TV, the mean total variation distance "
        "½ Σ |target - true p|. cud's target knows the label of the image; a target that is drawn at random was drawn "
        f'once. Row "{TEACHER}" is the plain teacher, which all runs share; "{TEACHER} of" a run is what that run made '
        "of it by further training."
    )
    section = Section("targets", *_table("target", measured["targets"], TARGETS))
    return Chapter("Does the entropy of a shaped target?", text, [section])


def calibration(measured: Numbers, models: Mapping[str, str]) -> Chapter:
    """How far every network is from the true posterior."""
    text = (
        "Means over the validation images against the true p(class | image), all 0 for who knows it. KL truth: "
        "KL(true p ‖ predicted p) in nats. With t the true probability of the class that a network predicts, conf. gap "
        "is the mean of |confidence - t|, over-conf. that of confidence - t, and ECE truth the ECE over 15 bins with t "
        "in place of whether the label agrees. TV is the mean total variation distance ½ Σ |predicted p - true p|."
    )
    sections = [
        Section(f"{role}: {models[role]}", *_table("run", _taught(measured, "calibration", role), CALIBRATION))
        for role in STUDENTS
    ]
    return Chapter("Who knows the true posterior?", text, sections)


def accuracy(measured: Numbers, truth: Numbers, models: Mapping[str, str], images: EmbeddedSet) -> list[Chapter]:
    """Accuracy from the clearest tenth of the images to the most ambiguous one."""
    groups = by_rank(images.entropy)
    means = [f"H {images.entropy[group].mean():.2f}" for group in groups]
    columns = [(title, str(number), 1) for number, title in enumerate(means, 1)] + [("all", "all", 1)]
    tenths = (
        "for each tenth of the validation images, from the lowest true entropy to the highest (the columns' titles are "
        f'its mean, in nats). Row "{BAYES}" predicts the most probable class of the true posterior.'
    )
    found = []
    for name, (title, text) in ACCURACIES.items():
        best = truth[f"{name} of {BAYES}"]
        sections = [
            Section(f"{role}: {models[role]}", *_table("run", {**best, **_taught(measured, name, role)}, columns))
            for role in STUDENTS
        ]
        found.append(Chapter(title, f"{text} {tenths}", sections))
    return found


def _taught(measured: Numbers, what: str, role: str) -> dict[str, Mapping[str, Sequence[float]]]:
    """The teachers' rows on top, then one network's in each run."""
    return {**measured[f"{what} of {TEACHER}"], **measured[f"{what} of {role}"]}


def _table(
    first: str, rows: Mapping[str, Mapping[str, Sequence[float]]], columns: Sequence[tuple[str, str, int]]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    header = [first, *(title for title, _, _ in columns)]
    return header, [[name, *(cell(row[key], digits) for _, key, digits in columns)] for name, row in rows.items()]
