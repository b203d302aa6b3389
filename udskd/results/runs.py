"""Finished runs, read from their folders and grouped by what they trained. Imports no training code."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udskd.config import schema, toml
from udskd.errors import DataError, printable
from udskd.results.disagreement import disagreement, read

# Options that say where and how a run was made, not what was trained; the teacher's file differs from seed to seed.
INCIDENTAL = {
    *("seed", "output", "teacher.checkpoint", "teacher.cache", "data.root", "data.loader", "data.workers"),
    *("training.tensorboard", "training.save_every", "training.cuda_graph"),
}


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, summary.json, config.toml's options by dotted name, and the log's epochs in order."""

    path: Path
    summary: dict[str, Any]
    options: dict[str, Any]
    epochs: list[dict[str, Any]]


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed only; `options` are those that set the group apart from the others."""

    method: str
    options: dict[str, Any]
    runs: list[Run]

    @property
    def label(self) -> str:
        return " ".join(
            [self.method, *(f"{name.split('.')[-1]}={brief(value)}" for name, value in self.options.items())]
        )

    def model(self, role: str) -> str:
        return str(self.runs[0].summary[role]["model"])

    def values(self, role: str, metric: str) -> list[float]:
        """The metric of each run that has it; "disagreement" belongs to all of them together."""
        if metric == "disagreement":
            return self._disagreement(role)
        return [run.summary[role][metric] for run in self.runs if metric in run.summary[role]]

    def _disagreement(self, role: str) -> list[float]:
        """One number where there are at least two runs, all have left their predictions, and none is known to have
        predicted other images; else none."""
        if len(self.runs) < 2 or other_contents(self.runs) is not None:
            return []
        found = [p for run in self.runs if (p := read(run.path, role)) is not None]
        return [1000 * disagreement(found)] if len(found) == len(self.runs) else []


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """The complete runs among the folders, each once. DataError unless there is one, and all are of one dataset."""
    runs = [run for path in dict.fromkeys(Path(p) for p in paths) if (run := read_run(path))]
    if not runs:
        raise DataError("none of the runs given is complete, so there is nothing to compare")
    for run in runs[1:]:
        if dataset(run) != dataset(runs[0]):
            pair = f"{runs[0].path} ({describe(runs[0])}) and {run.path} ({describe(run)})"
            raise DataError(f"{pair} are of different datasets: compare runs of one dataset")
    if other := other_contents(runs):
        first, second = (run.path for run in other)
        warn(f"{first} and {second} were measured on validation images of different contents, numbers do not compare")
    return runs


def other_contents(runs: Sequence[Run]) -> tuple[Run, Run] | None:
    """Two of the runs whose validation images are known to differ: those of earlier versions do not tell, and one
    checksum ("crc32:...") not what another is."""
    first: dict[str, Run] = {}
    for run in runs:
        if contents := _val_contents(run):
            known = first.setdefault(contents.partition(":")[0], run)
            if _val_contents(known) != contents:
                return known, run
    return None


def _val_contents(run: Run) -> str:
    return run.summary["dataset"].get("val_contents") or ""


def read_run(path: Path) -> Run | None:
    """The run in a folder, or None, with a warning, where it is not complete."""
    if not (path / "config.toml").is_file():
        raise DataError(f"{path} is not a run folder (no config.toml in it): give a folder that udskd train wrote")
    try:
        summary = read_summary(path)
        lines = (path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a run: {error}") from error
    if summary.get("status") != "complete":
        warn_left_out(path, f"it is not complete (udskd train --resume {path} finishes it)")
        return None
    options = schema.flatten(toml.load(path / "config.toml"))
    epochs = [event for line in lines if (event := parse(line)).get("event") == "epoch"]
    return Run(path, summary, options, epochs)


def parse(line: str) -> dict[str, Any]:
    """A line of the log; nothing where a crash tore it."""
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:
        return {}
    return event


def read_summary(path: Path) -> dict[str, Any]:
    """summary.json, or nothing where a run has not written it yet."""
    file = path / "summary.json"
    summary = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(summary, dict):
        raise ValueError("summary.json holds no object")
    return summary


def warn_left_out(path: Path, why: str) -> None:
    warn(f"left out {path}: {why}")


def warn(text: str) -> None:
    print(printable(f"udskd: warning: {text}"), file=sys.stderr)


def dataset(run: Run) -> tuple[Any, ...]:
    """What identifies the images of a run, wherever they lie on the disk."""
    return tuple(run.summary["dataset"][key] for key in ("class_hash", "train_images", "val_images"))


def describe(run: Run) -> str:
    data = run.summary["dataset"]
    return f"{data['root']}: {data['classes']} classes, {data['train_images']} training images"


def brief(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs of equal options together, in the order given; the same seed counts once."""
    grouped: dict[str, dict[int, Run]] = {}
    for run in runs:
        kept = {name: value for name, value in run.options.items() if name not in INCIDENTAL}
        seeds = grouped.setdefault(repr(sorted(kept.items())), {})
        first = seeds.setdefault(run.options["seed"], run)
        if first is not run:
            warn_left_out(run.path, f"it has the options and the seed of {first.path}")
    members = [list(seeds.values()) for seeds in grouped.values()]
    distinct = distinguishing([group[0].options for group in members])
    return [Group(group[0].summary["method"], own, group) for group, own in zip(members, distinct, strict=True)]


def distinguishing(options: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each set of options, those that differ from what most of the sets have; from all, where no value leads."""
    found: list[dict[str, Any]] = [{} for _ in options]
    for name in sorted({name for some in options for name in some} - INCIDENTAL - {"method"}):
        values = [some.get(name) for some in options]
        ranked = Counter(values).most_common(2)
        if len(ranked) == 1:
            continue
        leads = ranked[0][1] > ranked[1][1]
        for own, value in zip(found, values, strict=True):
            if not leads or value != ranked[0][0]:
                own[name] = value
    return found
