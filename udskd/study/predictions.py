"""The predictions of a run's networks for every validation image: the teacher is evaluated, the students' are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from udskd.config.schema import STUDENTS, Config
from udskd.data import EmbeddedSet
from udskd.demo.demo import logits_of
from udskd.errors import CheckpointError
from udskd.files import PREDICTIONS
from udskd.methods import Answers
from udskd.results.run_files import read_predictions
from udskd.results.statistics import Floats
from udskd.study.measures import restored
from udskd.training.tasks.teacher import SHAPED_TEACHER


@dataclass(frozen=True)
class RunPredictions:
    """The predictions of one run's networks for N images."""

    teacher: Tensor
    """Logits float64 [N, C] of the teacher that the run's students learn from (not in "ce", which has no teacher)."""
    has_own_teacher: bool
    """Whether the run trained the teacher further, so that it is not the one that all runs share."""
    students: dict[str, Floats]
    """By role: probabilities [N, C]."""

    def answers(self, images: EmbeddedSet) -> Answers:
        """The predictions as one batch, for a method."""
        a, b = (torch.from_numpy(np.log(self.students[role])) for role in STUDENTS)
        return Answers(self.teacher, a, b, torch.from_numpy(images.labels))


def read_run_predictions(run: Path, config: Config, shared_teacher: Tensor, images: EmbeddedSet) -> RunPredictions:
    """The predictions of a complete run. CheckpointError or DataError if its files cannot be read."""
    own = run / f"{SHAPED_TEACHER}.safetensors"
    teacher = logits_of(own, config, images) if own.exists() else shared_teacher
    return RunPredictions(teacher, own.exists(), student_predictions(run, images))


def student_predictions(run: Path, images: EmbeddedSet) -> dict[str, Floats]:
    """By role: probabilities [N, C] from the run's file. CheckpointError if it is missing or has other images."""
    file, stored = run / PREDICTIONS, read_predictions(run)
    if stored is None:
        raise CheckpointError(f"there is no {file}: move the folder {run} away, and the study trains the run again")
    for role, p in stored.items():
        if p.shape != images.posterior.shape:
            expected = list(images.posterior.shape)
            raise CheckpointError(f"{file} must hold {role} for the validation images, {expected}, got {list(p.shape)}")
    return {role: restored(p) for role, p in stored.items()}
