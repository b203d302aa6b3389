"""Readers of the files in a run folder: summary.json, log.jsonl and the students' predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from udskd.config.schema import STUDENTS
from udskd.config.validation import Count, Invalid, parse_json, reading, validate
from udskd.errors import DataError, printable
from udskd.files import PREDICTIONS, read_regular

LOG = "log.jsonl"
SUMMARY = "summary.json"


class _Metrics(TypedDict):
    top1: float
    nll: float


class Metrics(_Metrics, total=False):
    """What evaluation measures. Earlier versions measured less."""

    top5: float
    ece: float
    brier: float
    entropy: float
    posterior_kl: float
    entropy_corr: float
    stage: str
    """The teacher's further training."""


class StudentMetrics(Metrics):
    """A student in summary.json."""

    model: str


class _Dataset(TypedDict):
    root: str
    classes: Count
    class_hash: str
    train_images: Count
    val_images: Count


class Dataset(_Dataset, total=False):
    """The images of a run, in its summary and its log."""

    val_contents: str | None


class _Status(TypedDict):
    status: str


class Summary(_Status):
    """summary.json of a complete run."""

    method: str
    teacher: Metrics | None
    student_a: StudentMetrics
    student_b: StudentMetrics
    dataset: Dataset


class Event(TypedDict):
    """A line of log.jsonl."""

    event: str


class _TrainedEpoch(Event):
    epoch: Count


class Epoch(_TrainedEpoch, total=False):
    """An epoch of the students. Their metrics are in the epochs that are evaluated."""

    images: Count
    seconds: float
    student_a: Metrics
    student_b: Metrics


class Teacher(Event, Metrics):
    """The teacher's metrics on the validation images."""

    fingerprint: str


class _TeacherStage(Event):
    origin: str


class TeacherStage(_TeacherStage, total=False):
    """The beginning of the teacher's further training."""

    stem: str


class _Unreadable(Event):
    name: str
    reason: str


class Unreadable(_Unreadable, total=False):
    """A training image that cannot be read."""

    image: str


class _StartData(TypedDict, total=False):
    class_hash: str
    classes: Count
    train_images: Count
    val_images: Count


class Start(Event, total=False):
    """The beginning of a run."""

    data: _StartData


EVENTS: dict[str, Any] = {
    **{"start": Start, "teacher": Teacher, "teacher_stage": TeacherStage, "unreadable": Unreadable, "epoch": Epoch},
    **{"teacher_epoch": _TrainedEpoch, "teacher_stage_epoch": _TrainedEpoch},
}
"""The schema of each event that is read again."""


def read_events(log: Path) -> tuple[list[dict[str, Any]], str]:
    """The events of a log.jsonl, in order, and a sentence about the damaged lines, which are left out, or "".

    A last line that a crash cut short is left out without a word. FileNotFoundError if there is no log, DataError if it
    cannot be read.
    """
    with reading(log, DataError):
        lines = read_regular(log).split(b"\n")
    events: list[dict[str, Any]] = []
    damaged: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = parse_json(line, Event)
            events.append(validate(event, EVENTS.get(event["event"], Event)))
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                damaged.append(f"line {number} ({_reason(error)})")
    return events, f"{log} is damaged, left out: {_some(damaged)}" if damaged else ""


def _reason(error: Exception) -> str:
    if isinstance(error, Invalid):
        return printable(str(error))
    return "nested too deeply" if isinstance(error, RecursionError) else "no JSON"


def _some(items: list[str]) -> str:
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(items[:3]) + more


def read_summary(run: Path) -> dict[str, Any]:
    """The summary of a run, {} before the run is complete. DataError if it cannot be read."""
    file = run / SUMMARY
    try:
        with reading(file, DataError):
            summary: dict[str, Any] = parse_json(read_regular(file), _Status)
            return validate(summary, Summary) if summary["status"] == "complete" else {}
    except FileNotFoundError:
        return {}


def read_predictions(run: Path) -> dict[str, npt.NDArray[np.float16]] | None:
    """p(class | image) [N, C] of each student by role, for the validation images in order.

    None if the run has no predictions; DataError if the file is damaged.
    """
    file = run / PREDICTIONS
    try:
        with reading(file, DataError, "remove it, or train the run anew"):
            stored = safetensors.numpy.load(read_regular(file))
            missing = [role for role in STUDENTS if role not in stored]
            if missing:
                raise Invalid(f"{missing[0]} is missing")
            return {role: _probabilities(stored[role], role) for role in STUDENTS}
    except FileNotFoundError:
        return None


def _probabilities(rows: npt.NDArray[Any], role: str) -> npt.NDArray[np.float16]:
    if rows.dtype != np.float16 or rows.ndim != 2:
        raise Invalid(f"{role} must be float16 [N, C], got {rows.dtype} {list(rows.shape)}")
    if not ((rows >= 0).all() and (rows.sum(-1, dtype=np.float64) > 0).all() and np.isfinite(rows).all()):
        raise Invalid(f"{role} holds values that are no probabilities")
    return rows
