"""Readers of the files in a run folder: summary.json, log.jsonl and the students' predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from udskd.config.schema import STUDENTS
from udskd.errors import DataError
from udskd.files import PREDICTIONS, read_regular, read_text

LOG = "log.jsonl"
SUMMARY = "summary.json"


def read_events(log: Path) -> list[dict[str, Any]]:
    """The events of a log.jsonl, in order. A line that a crash cut short is skipped. OSError if there is no log."""
    events = []
    for line in read_text(log).splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def read_summary(run: Path) -> dict[str, Any]:
    """The summary of a run, {} before the run is complete. Raises OSError or ValueError if it cannot be read."""
    file = run / SUMMARY
    summary = json.loads(read_text(file)) if file.exists() else {}
    if not isinstance(summary, dict):
        raise ValueError(f"{SUMMARY} holds no object")
    return summary


def read_predictions(run: Path) -> dict[str, npt.NDArray[np.float16]] | None:
    """p(class | image) [N, C] of each student by role, for the validation images in order.

    None if the run has no predictions; DataError if the file is damaged.
    """
    file = run / PREDICTIONS
    if not file.exists():
        return None
    try:
        stored = safetensors.numpy.load(read_regular(file))
        return {role: stored[role] for role in STUDENTS}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{file} is damaged ({error}): remove it, or train the run anew") from None
