"""The training runs of the study: in each seed the run "kd" trains the teacher, which all other runs load."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from udskd.config import schema, toml
from udskd.config.schema import Config
from udskd.demo import demo
from udskd.progress import Display
from udskd.training import train

TEACHER_RUN = "kd"
"""The run that trains the shared teacher; it comes first."""


def _weightings() -> dict[str, dict[str, Any]]:
    """udskd with every measure of certainty, every trust, and plain or normalised weights."""
    runs = {}
    for kind, trust, normalized in itertools.product(
        ("entropy", "max_prob", "margin"), ("confident", "uncertain"), (False, True)
    ):
        runs[f"udskd-{kind}-{trust}" + "-normalized" * normalized] = {
            "method": "udskd",
            "loss.uncertainty": kind,
            "loss.trust": trust,
            "loss.normalize_weights": normalized,
        }
    return runs


RUNS: dict[str, dict[str, Any]] = {
    TEACHER_RUN: {"method": "kd"},
    "ce": {"method": "ce"},
    **_weightings(),
    "kd-longer": {
        "method": "kd",
        "teacher.stage": "cross_entropy",
    },  # for comparison with cud, whose teacher is trained longer
    "cud": {"method": "cud"},
    "variance": {"method": "variance"},
}
"""The options of each run that differ from the recipe, by the name of the run."""


def settings(epochs: int | None) -> Config:
    """The options that all runs share: the recipe of `udskd demo`, with the given epochs for teacher and students."""
    config = toml.load(demo.RECIPE)
    if epochs is None:
        return config
    phases = ("training.epochs", "teacher.epochs", "cud.stage_epochs")
    return schema.with_values(config, dict.fromkeys(phases, epochs))


def folder_of(output: Path, name: str, seed: int) -> Path:
    """The folder of a run."""
    return output / f"{name}-seed{seed}"


def config_of(shared: Config, output: Path, name: str, seed: int) -> Config:
    """The options of a run."""
    values = {"seed": seed, "output": str(folder_of(output, name, seed)), **RUNS[name]}
    if name != TEACHER_RUN:
        values["teacher.checkpoint"] = str(folder_of(output, TEACHER_RUN, seed) / "teacher.safetensors")
    return schema.with_values(shared, values)


def configs_of(shared: Config, output: Path, seed: int) -> dict[str, Config]:
    """The options of all runs of a seed, by name."""
    return {name: config_of(shared, output, name, seed) for name in RUNS}


def train_all(shared: Config, output: Path, seeds: int) -> None:
    """Train the runs that are not complete; interrupted runs continue. Raises what train() raises."""
    total, display = seeds * len(RUNS), Display()
    for number, (seed, name) in enumerate(itertools.product(range(seeds), RUNS), 1):
        display.line("")
        display.line(f"[{number}/{total}] {name}, seed {seed}")
        folder = folder_of(output, name, seed)
        started = (folder / "config.toml").exists()
        train(config_of(shared, output, name, seed), resume=folder if started else None)
