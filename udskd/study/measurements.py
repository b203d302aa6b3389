"""The numbers that the study takes from the runs of one seed, and those of the true posterior itself."""

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
from udskd.study.measures import by_rank, calibration, expected_hits, group_means, hits, total_variation
from udskd.study.predictions import RunPredictions, read_run_predictions
from udskd.study.training_runs import TEACHER_RUN, configs_of, folder_of

TableRow = dict[str, float]
"""Numbers by name."""
Tables = dict[str, dict[str, TableRow]]
"""Rows by the name of the table and of the row."""
TEACHER = "teacher"
BAYES = "Bayes-optimal"


def measure_seed(shared: Config, output: Path, seed: int, images: EmbeddedSet) -> tuple[Tables, dict[str, Floats]]:
    """All tables of one seed, and the weights [N] that the shared teacher gives the images, by weighting."""
    configs = configs_of(shared, output, seed)
    teacher = logits_of(folder_of(output, TEACHER_RUN, seed) / "teacher.safetensors", shared, images)
    weights = weights_of(configs.values(), teacher, images)
    runs = []
    for name, config in configs.items():
        predictions = read_run_predictions(folder_of(output, name, seed), config, teacher, images)
        runs += [measure_run(name, predictions, images), measure_targets(name, config, predictions, images)]
    tables = merge_tables(
        measure_weights(weights, images),
        {"targets": {TEACHER: compare_target(_softmax(teacher), images)}},
        measure_network(TEACHER, TEACHER, _softmax(teacher), images),
        *runs,
    )
    return tables, weights


def measure_truth(shared: Config, output: Path, images: EmbeddedSet) -> tuple[Tables, dict[str, Floats]]:
    """The weights of a teacher that knows the true posterior, and the accuracy of the Bayes-optimal prediction."""
    logits = torch.from_numpy(np.log(images.posterior))
    weights = weights_of(configs_of(shared, output, 0).values(), logits, images)
    accuracy = measure_accuracy(BAYES, BAYES, images.posterior, images)
    return merge_tables(measure_weights(weights, images), accuracy), weights


def merge_tables(*parts: Tables) -> Tables:
    """All rows of several tables, in the order given."""
    merged: Tables = {}
    for tables in parts:
        for name, rows in tables.items():
            merged.setdefault(name, {}).update(rows)
    return merged


def merge_seeds(seeds: Iterable[Tables]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """The tables of several seeds, with a list of each number's values in the order of the seeds."""
    merged: dict[str, dict[str, dict[str, list[float]]]] = {}
    for tables in seeds:
        for table, rows in tables.items():
            for row, numbers in rows.items():
                values = merged.setdefault(table, {}).setdefault(row, {})
                for name, value in numbers.items():
                    values.setdefault(name, []).append(value)
    return merged


def measure_run(name: str, predictions: RunPredictions, images: EmbeddedSet) -> Tables:
    """The rows of a run's students, and of its teacher if the run trained it further."""
    parts = []
    if predictions.has_own_teacher:
        label, p = f"{TEACHER} of {name}", _softmax(predictions.teacher)
        parts = [{"targets": {label: compare_target(p, images)}}, measure_network(TEACHER, label, p, images)]
    parts += [measure_network(role, name, p, images) for role, p in predictions.students.items()]
    return merge_tables(*parts)


def measure_network(role: str, name: str, p: Floats, images: EmbeddedSet) -> Tables:
    """The rows of one network with predictions p [N, C]: calibration and accuracy."""
    row = calibration(images.posterior, p)
    return {f"calibration of {role}": {name: row}, **measure_accuracy(role, name, p, images)}


def measure_accuracy(role: str, name: str, p: Floats, images: EmbeddedSet) -> Tables:
    """Top-1 in percent by decile of the true entropy: its expectation under the true posterior, and from the labels."""
    groups = by_rank(images.entropy)
    expected = group_means(100 * expected_hits(images.posterior, p), groups)
    observed = group_means(100 * hits(images.labels, p), groups)
    return {f"expected top-1 of {role}": {name: expected}, f"top-1 of {role}": {name: observed}}


def measure_targets(name: str, config: Config, predictions: RunPredictions, images: EmbeddedSet) -> Tables:
    """The rows of the targets that a method's shapes make of the teacher's logits; one row if both students share it.

    Shapes that draw random numbers are seeded with the run's seed.
    """
    method = methods.build(config)
    if not method.shapes or not isinstance(method, OperatorMethod):
        return {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(config.seed)
        targets, _ = method.targets(predictions.answers(images))
    is_shared = targets["student_a"] is targets["student_b"]
    labels = {"student_a": name} if is_shared else {role: f"{name}, {role}" for role in STUDENTS}
    return {"targets": {label: compare_target(_softmax(targets[role]), images) for role, label in labels.items()}}


@torch.no_grad()
def weights_of(configs: Iterable[Config], teacher: Tensor, images: EmbeddedSet) -> dict[str, Floats]:
    """The weight [N] that each weighting of udskd gives every image, from a teacher's logits [N, C].

    Weights that are divided by their mean differ from the plain ones by a factor, so only the plain ones are listed.
    """
    answers = Answers(teacher, teacher, teacher, torch.from_numpy(images.labels))  # weights do not depend on students
    weights: dict[str, Floats] = {}
    for config in configs:
        method, name = methods.build(config), f"{config.loss.uncertainty}, {config.loss.trust}"
        if name not in weights and isinstance(method, UncertaintyAwareDualStudent):
            weights[name] = method.loss(answers)["weight"].numpy()
    return weights


def measure_weights(weights: dict[str, Floats], images: EmbeddedSet) -> Tables:
    """A row for each weighting: its rank correlation with the true entropy, and its mean."""
    rows = {
        name: {"rank_correlation": spearman(weight, images.entropy), "mean": float(weight.mean())}
        for name, weight in weights.items()
    }
    return {"weights": rows}


def compare_target(p: Floats, images: EmbeddedSet) -> TableRow:
    """A target p [N, C] at temperature 1, compared with the true posterior."""
    own = entropy(p)
    return {
        "rank_correlation": spearman(own, images.entropy),
        "mean_entropy": float(own.mean()),
        "total_variation": float(total_variation(images.posterior, p).mean()),
    }


def _softmax(logits: Tensor) -> Floats:
    p: Floats = logits.softmax(-1).numpy()
    return p
