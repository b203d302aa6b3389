"""Finished runs, read from their folders and grouped by what they trained."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from udskd.config import schema, toml
from udskd.errors import DataError, UdskdError, printable
from udskd.process.streams import print_error
from udskd.results.run_files import LOG, read_events, read_predictions, read_summary
from udskd.results.statistics import Floats, disagreement

INCIDENTAL_OPTIONS = {
    *("seed", "output", "teacher.checkpoint", "teacher.cache", "data.root", "data.loader", "data.workers"),
    *("training.tensorboard", "training.save_every", "training.cuda_graph"),
}
"""Options that say where and how a run was made, not what was trained. The teacher's file differs from seed to seed."""


class DamagedRun(DataError):
    """A file of a run cannot be read."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    path: Path
    summary: dict[str, Any]
    """The content of summary.json."""
    options: dict[str, Any]
    """The options in config.toml, by dotted name."""
    epochs: list[dict[str, Any]]
    """The students' epochs in the log, in order."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed only."""

    method: str
    options: dict[str, Any]
    """The options that distinguish the group from the others."""
    runs: list[Run]

    @property
    def label(self) -> str:
        """The method and the distinguishing options."""
        options = (f"{name.split('.')[-1]}={format_value(value)}" for name, value in self.options.items())
        return printable(" ".join([self.method, *options]))

    def model(self, role: str) -> str:
        """The name of a student's network."""
        return printable(str(self.runs[0].summary[role]["model"]))

    def values(self, role: str, metric: str) -> list[float]:
        """The metric of each run that has it. "disagreement" is one value of all runs together."""
        if metric == "disagreement":
            return self._disagreement(role)
        return [run.summary[role][metric] for run in self.runs if metric in run.summary[role]]

    def _disagreement(self, role: str) -> list[float]:
        """The disagreement in thousandths; none for a single run, a run without predictions, or different images."""
        if len(self.runs) < 2 or find_different_images(self.runs) is not None:
            return []
        found = [p for run in self.runs if (p := _probabilities(run.path, role)) is not None]
        return [1000 * disagreement(found)] if len(found) == len(self.runs) else []


def _probabilities(run: Path, role: str) -> Floats | None:
    """A student's predictions in float64. Each row is normalised, since float16 rounds every class by itself."""
    stored = read_predictions(run)
    if stored is None:
        return None
    p: Floats = stored[role].astype(np.float64)
    p /= p.sum(-1, keepdims=True)
    return p


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """The complete runs among the folders, each once. DataError if none is complete, or if their datasets differ."""
    runs, damaged = [], {}
    for path in dict.fromkeys(Path(p) for p in paths):
        try:
            if run := read_run(path):
                runs.append(run)
        except DamagedRun as error:
            damaged[path] = error
    if not runs:
        none = DataError("none of the runs given is complete, so there is nothing to compare")
        raise next(iter(damaged.values()), none)
    for path, reason in damaged.items():
        warn_left_out(path, str(reason))
    for run in runs[1:]:
        if dataset(run) != dataset(runs[0]):
            pair = f"{runs[0].path} ({describe_dataset(runs[0])}) and {run.path} ({describe_dataset(run)})"
            raise DataError(f"{pair} have different datasets: compare runs of one dataset")
    if different := find_different_images(runs):
        first, second = (run.path for run in different)
        warn(
            f"{first} and {second} were evaluated on validation images of different contents, so their numbers do not "
            "compare"
        )
    return runs


def find_different_images(runs: Sequence[Run]) -> tuple[Run, Run] | None:
    """Two runs whose validation images are known to have different contents, None if there are none.

    Digests by different checksums ("crc32:...", "sha256:...") cannot be compared; runs of earlier versions have none.
    """
    first_by_checksum: dict[str, Run] = {}
    for run in runs:
        if digest := _val_digest(run):
            first = first_by_checksum.setdefault(digest.partition(":")[0], run)
            if _val_digest(first) != digest:
                return first, run
    return None


def _val_digest(run: Run) -> str:
    return run.summary["dataset"].get("val_contents") or ""


def read_run(path: Path) -> Run | None:
    """The run in a folder; None, with a warning, if it is not complete.

    DataError if the folder holds none, DamagedRun if a file of it cannot be read.
    """
    if not (path / "config.toml").exists():
        raise DataError(f"{path} is not a run folder (no config.toml in it): give a folder that udskd train wrote")
    try:
        return _read_complete(path)
    except FileNotFoundError as error:  # a link to nothing
        raise DamagedRun(f"there is no {error.filename}") from None
    except UdskdError as error:
        raise DamagedRun(str(error)) from None


def _read_complete(path: Path) -> Run | None:
    log = path / LOG
    events, damage = read_events(log) if os.path.lexists(log) else ([], "")
    summary = read_summary(path)
    if not summary:
        warn_left_out(path, f"it is not complete (udskd train --resume {path} finishes it)")
        return None
    if not os.path.lexists(log):
        raise DamagedRun(f"there is no {log}")
    if damage:
        warn(damage)
    read_predictions(path)  # now, so that damaged ones leave out this run alone
    flat = schema.flatten(toml.load(path / "config.toml"))
    options = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in flat.items()}
    return Run(path, summary, options, [event for event in events if event["event"] == "epoch"])


def warn_left_out(path: Path, reason: str) -> None:
    warn(f"left out {path}: {reason}")


def warn(text: str) -> None:
    print_error(f"udskd: warning: {text}")


def dataset(run: Run) -> tuple[Any, ...]:
    """What identifies a run's images, wherever they lie on the disk."""
    return tuple(run.summary["dataset"][key] for key in ("class_hash", "train_images", "val_images"))


def describe_dataset(run: Run) -> str:
    """Root and size of a run's images, for messages."""
    data = run.summary["dataset"]
    return f"{data['root']}: {data['classes']} classes, {data['train_images']} training images"


def format_value(value: object) -> str:
    """An option's value in a label."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group the runs of equal options, in the order given. Of runs with the same options and seed the first counts."""
    grouped: dict[str, dict[int, Run]] = {}
    for run in runs:
        kept = {name: value for name, value in run.options.items() if name not in INCIDENTAL_OPTIONS}
        seeds = grouped.setdefault(repr(sorted(kept.items())), {})
        first = seeds.setdefault(run.options["seed"], run)
        if first is not run:
            warn_left_out(run.path, f"it has the options and the seed of {first.path}")
    members = [list(seeds.values()) for seeds in grouped.values()]
    distinct = distinguishing_options([group[0].options for group in members])
    return [Group(group[0].summary["method"], own, group) for group, own in zip(members, distinct, strict=True)]


def distinguishing_options(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each group of options, those whose value is not the most frequent one of all groups.

    Where no value is more frequent than all others, every group keeps its own.
    """
    names = {name for options in groups for name in options} - INCIDENTAL_OPTIONS - {"method"}
    kept: list[dict[str, Any]] = [{} for _ in groups]
    for name in sorted(names):
        values = [options.get(name) for options in groups]
        ranked = Counter(values).most_common(2)
        if len(ranked) == 1:
            continue
        has_majority = ranked[0][1] > ranked[1][1]
        for own, value in zip(kept, values, strict=True):
            if not has_majority or value != ranked[0][0]:
                own[name] = value
    return kept
