"""All that the study measures on the runs of one seed, and what the truth itself would give."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from udskd import methods
from udskd.config.schema import STUDENTS, Config
from udskd.data import EmbeddedSet
from udskd.demo.demo import logits_of
from udskd.methods import Answers
from udskd.methods.operator import OperatorMethod
from udskd.methods.udskd import UncertaintyAwareDualStudent
from udskd.results.statistics import Floats, entropy, spearman
from udskd.study import training_runs
from udskd.study.measures import (
    by_rank,
    calibration,
    expected_hits,
    group_means,
    hits,
    total_variation,
)
from udskd.study.predictions import RunPredictions, read_run_predictions

Row = dict[str, float]
Tables = dict[str, dict[str, Row]]
"""By the table's name and the row's: numbers by their names."""
TEACHER = "teacher"
BAYES = "Bayes-optimal"


def measure_seed(shared: Config, output: Path, seed: int, images: EmbeddedSet) -> tuple[Tables, dict[str, Floats]]:
    """Every number of one seed; and the weight [N] of each image by the shared teacher, by the weighting's name."""
    teacher = logits_of(
        training_runs.folder_of(output, training_runs.TEACHER_RUN, seed) / "teacher.safetensors", shared, images
    )
    weights = weights_of(training_runs.configs_of(shared, output, seed).values(), teacher, images)
    tables: Tables = {
        "weights": {name: agreement(weight, images) for name, weight in weights.items()},
        "targets": {TEACHER: follows(_softmax(teacher), images)},
    }
    add_network(tables, TEACHER, TEACHER, _softmax(teacher), images)
    for name, config in training_runs.configs_of(shared, output, seed).items():
        found = read_run_predictions(training_runs.folder_of(output, name, seed), config, teacher, images)
        add_run(tables, name, found, images)
        add_targets(tables["targets"], name, config, found, images)
    return tables, weights


def measure_truth(shared: Config, output: Path, images: EmbeddedSet) -> tuple[Tables, dict[str, Floats]]:
    """The weights of a teacher that knows the true posterior, and the accuracy of whoever goes by it."""
    logits = torch.from_numpy(np.log(images.posterior))
    weights = weights_of(training_runs.configs_of(shared, output, 0).values(), logits, images)
    tables: Tables = {"weights": {name: agreement(weight, images) for name, weight in weights.items()}}
    add_accuracy(tables, BAYES, BAYES, images.posterior, images)
    return tables, weights


def merge_seeds(seeds: Iterable[Tables]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Each number of all seeds in a list, in their order."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for tables in seeds:
        for table, rows in tables.items():
            for row, numbers in rows.items():
                kept = found.setdefault(table, {}).setdefault(row, {})
                for name, value in numbers.items():
                    kept.setdefault(name, []).append(value)
    return found


def add_run(tables: Tables, name: str, found: RunPredictions, images: EmbeddedSet) -> None:
    """A run's students, and its teacher where it is its own."""
    if found.shaped:
        label = f"{TEACHER} of {name}"
        tables["targets"][label] = follows(_softmax(found.teacher), images)
        add_network(tables, TEACHER, label, _softmax(found.teacher), images)
    for role, p in found.students.items():
        add_network(tables, role, name, p, images)


def add_network(tables: Tables, role: str, name: str, p: Floats, images: EmbeddedSet) -> None:
    """One network's calibration and accuracy."""
    tables.setdefault(f"calibration of {role}", {})[name] = calibration(images.posterior, p)
    add_accuracy(tables, role, name, p, images)


def add_accuracy(tables: Tables, role: str, name: str, p: Floats, images: EmbeddedSet) -> None:
    """In percent, by decile of the true entropy: against the labels, and as the truth expects it."""
    groups = by_rank(images.entropy)
    expected = expected_hits(images.posterior, p)
    tables.setdefault(f"expected top-1 of {role}", {})[name] = group_means(100 * expected, groups)
    tables.setdefault(f"top-1 of {role}", {})[name] = group_means(100 * hits(images.labels, p), groups)


def add_targets(rows: dict[str, Row], name: str, config: Config, found: RunPredictions, images: EmbeddedSet) -> None:
    """What the method's shapes make of the teacher's logits, for both students at once unless they are told apart.

    What a shape draws at random comes from the run's seed.
    """
    method = methods.build(config)
    if not method.shapes or not isinstance(method, OperatorMethod):
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(config.seed)
        targets, _ = method.targets(found.answers(images))
    alike = targets["student_a"] is targets["student_b"]
    for role in STUDENTS[:1] if alike else STUDENTS:
        rows[name if alike else f"{name}, {role}"] = follows(_softmax(targets[role]), images)


@torch.no_grad()
def weights_of(configs: Iterable[Config], teacher: Tensor, images: EmbeddedSet) -> dict[str, Floats]:
    """The weight [N] that each method's own loss gives every image, of a teacher's logits [N, C].

    Of the weightings that differ by a common factor only, the first; methods that weigh all images alike have none.
    """
    answers = Answers(teacher, teacher, teacher, torch.from_numpy(images.labels))  # no weight here asks the students
    found: dict[str, Floats] = {}
    for config in configs:
        method, name = methods.build(config), f"{config.loss.uncertainty}, {config.loss.trust}"
        if name not in found and isinstance(method, UncertaintyAwareDualStudent):
            found[name] = method.loss(answers)["weight"].numpy()
    return found


def agreement(weight: Floats, images: EmbeddedSet) -> Row:
    """A weight [N] beside the true entropy."""
    return {"rank_correlation": spearman(weight, images.entropy), "mean": float(weight.mean())}


def follows(p: Floats, images: EmbeddedSet) -> Row:
    """A target [N, C] at temperature 1 beside the true posterior."""
    own = entropy(p)
    return {
        "rank_correlation": spearman(own, images.entropy),
        "mean_entropy": float(own.mean()),
        "total_variation": float(total_variation(images.posterior, p).mean()),
    }


def _softmax(logits: Tensor) -> Floats:
    p: Floats = logits.softmax(-1).numpy()
    return p
