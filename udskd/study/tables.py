"""The study's tables with their explanations; numbers are mean ± standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from udskd.config.schema import STUDENTS
from udskd.data import EmbeddedSet
from udskd.results.table import Section, cell, markdown
from udskd.study.measurements import BAYES, TEACHER
from udskd.study.measures import by_rank

Numbers = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""The values of the seeds, by the names of table, row and number."""

TARGETS = (
    ("rank corr. with true H", "rank_correlation", 3),
    ("mean H", "mean_entropy", 3),
    ("TV", "total_variation", 3),
)
"""Column title, name of the number, decimals."""
CALIBRATION = (
    ("KL truth", "kl", 3),
    ("conf. gap", "confidence_gap", 3),
    ("over-conf.", "over_confidence", 3),
    ("ECE truth", "ece", 3),
    ("TV", "total_variation", 3),
)
ACCURACIES = {
    "expected top-1": (
        "How accurate are the networks on clear and on ambiguous images? Expected accuracy",
        "The mean true probability of the predicted class (the accuracy without the labels' noise), in %,",
    ),
    "top-1": (
        "How accurate are the networks on clear and on ambiguous images? Accuracy on the labels",
        "Top-1 accuracy, in %,",
    ),
}


@dataclass(frozen=True)
class Chapter:
    """A question, an explanation of the measures, and the tables that answer it."""

    title: str
    text: str
    sections: list[Section]

    def markdown(self) -> str:
        """The chapter as Markdown."""
        return f"## {self.title}\n\n{self.text}\n\n{markdown(self.sections)}"


def chapters(measured: Numbers, truth: Numbers, models: Mapping[str, str], images: EmbeddedSet) -> list[Chapter]:
    """All chapters in order. models: the networks' names by role."""
    return [
        weights_chapter(measured, truth, images),
        targets_chapter(measured, images),
        calibration_chapter(measured, models),
        *accuracy_chapters(measured, truth, models, images),
    ]


def weights_chapter(measured: Numbers, truth: Numbers, images: EmbeddedSet) -> Chapter:
    """The correlation of each weight with the true entropy, for the teacher and for the true posterior."""
    text = (
        f"Spearman's rank correlation of the weight that the teacher's certainty gives each of {len(images)} "
        'validation images with the entropy H of its true p(class | image), and the mean weight; columns "of the '
        'truth": the same for a teacher that knows the true posterior. Trust in the confident should come near -1, in '
        "the uncertain near +1. Weights that are divided by their batch mean have the same ranks and the mean 1, so "
        "they have no rows."
    )
    header = ["weight", "rank corr. with true H", "of the truth", "mean weight", "of the truth"]
    rows = [
        [name, *(cell(numbers["weights"][name][key], 3) for key in ("rank_correlation", "mean") for numbers in both)]
        for both in [(measured, truth)]
        for name in measured["weights"]
    ]
    title = "Does the weight of an image follow its true uncertainty?"
    return Chapter(title, text, [Section("weights of udskd, by measure and trust", header, rows)])


def targets_chapter(measured: Numbers, images: EmbeddedSet) -> Chapter:
    """The correlation of the entropy of each target with the true entropy."""
    text = (
        "For the methods that weight all images equally and shape the target instead: Spearman's rank correlation of "
        "the entropy H of the target at temperature 1 with the entropy of the true p(class | image), whose mean is "
        f"{images.entropy.mean():.3f} nats; the mean H of the target; and TV, the mean total variation distance "
        "½ Σ |target - true p|. cud's target depends on the label of the image; random targets were drawn once. "
        f'Row "{TEACHER}" is the teacher that all runs share; "{TEACHER} of" a run is that teacher after the run\'s '
        "further training."
    )
    section = Section("targets", *_table("target", measured["targets"], TARGETS))
    return Chapter("Does the entropy of a shaped target follow the true uncertainty?", text, [section])


def calibration_chapter(measured: Numbers, models: Mapping[str, str]) -> Chapter:
    """The distance of every network from the true posterior."""
    text = (
        "Means over the validation images against the true p(class | image); the true posterior has 0 everywhere. KL "
        "truth: KL(true p ‖ predicted p) in nats. With t the true probability of the predicted class, conf. gap "
        "is the mean of |confidence - t|, over-conf. that of confidence - t, and ECE truth the ECE over 15 bins with t "
        "in place of the accuracy. TV is the mean total variation distance ½ Σ |predicted p - true p|."
    )
    sections = [
        Section(f"{role}: {models[role]}", *_table("run", _with_teachers(measured, "calibration", role), CALIBRATION))
        for role in STUDENTS
    ]
    return Chapter("How close is every network to the true posterior?", text, sections)


def accuracy_chapters(
    measured: Numbers, truth: Numbers, models: Mapping[str, str], images: EmbeddedSet
) -> list[Chapter]:
    """Accuracy by tenth of the images, from the lowest true entropy to the highest."""
    groups = by_rank(images.entropy)
    means = [f"H {images.entropy[group].mean():.2f}" for group in groups]
    columns = [(title, str(number), 1) for number, title in enumerate(means, 1)] + [("all", "all", 1)]
    tenths = (
        "for each tenth of the validation images, from the lowest true entropy to the highest (a column's title is the "
        f'mean entropy of its tenth, in nats). Row "{BAYES}" predicts the most probable class of the true posterior.'
    )
    found = []
    for name, (title, text) in ACCURACIES.items():
        best = truth[f"{name} of {BAYES}"]
        sections = [
            Section(
                f"{role}: {models[role]}", *_table("run", {**best, **_with_teachers(measured, name, role)}, columns)
            )
            for role in STUDENTS
        ]
        found.append(Chapter(title, f"{text} {tenths}", sections))
    return found


def _with_teachers(measured: Numbers, what: str, role: str) -> dict[str, Mapping[str, Sequence[float]]]:
    """The rows of the teachers, then those of one student in each run."""
    return {**measured[f"{what} of {TEACHER}"], **measured[f"{what} of {role}"]}


def _table(
    first: str, rows: Mapping[str, Mapping[str, Sequence[float]]], columns: Sequence[tuple[str, str, int]]
) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a section."""
    header = [first, *(title for title, _, _ in columns)]
    return header, [[name, *(cell(row[key], digits) for _, key, digits in columns)] for name, row in rows.items()]
