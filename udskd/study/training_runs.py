"""The runs of the study: of every seed one teacher, which the run "kd" trains, and all others learn from."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from udskd.config import schema, toml
from udskd.config.schema import Config
from udskd.demo import demo
from udskd.training import train

TEACHER_RUN = "kd"
"""The run whose teacher is everybody's; it comes first."""


def _weightings() -> dict[str, dict[str, Any]]:
    """udskd with every measure of certainty, trust, and the weights as they are or divided by their mean."""
    found = {}
    for kind, trust, normalized in itertools.product(
        ("entropy", "max_prob", "margin"), ("confident", "uncertain"), (False, True)
    ):
        found[f"udskd-{kind}-{trust}" + "-normalized" * normalized] = {
            "method": "udskd",
            "loss.uncertainty": kind,
            "loss.trust": trust,
            "loss.normalize_weights": normalized,
        }
    return found


RUNS: dict[str, dict[str, Any]] = {
    TEACHER_RUN: {"method": "kd"},
    "ce": {"method": "ce"},
    **_weightings(),
    "kd-longer": {"method": "kd", "teacher.stage": "cross_entropy"},  # cud's teacher, too, is trained longer
    "cud": {"method": "cud"},
    "variance": {"method": "variance"},
}
"""By name: the options that are not the recipe's."""


def settings(epochs: int | None) -> Config:
    """What all runs share: the recipe of `udskd demo`, with other epochs for teacher and students if given."""
    config = toml.load(demo.RECIPE)
    if epochs is None:
        return config
    phases = ("training.epochs", "teacher.epochs", "cud.stage_epochs")
    return schema.with_values(config, dict.fromkeys(phases, epochs))


def folder_of(output: Path, name: str, seed: int) -> Path:
    """A run's folder."""
    return output / f"{name}-seed{seed}"


def config_of(shared: Config, output: Path, name: str, seed: int) -> Config:
    """A run's options."""
    values = {"seed": seed, "output": str(folder_of(output, name, seed)), **RUNS[name]}
    if name != TEACHER_RUN:
        values["teacher.checkpoint"] = str(folder_of(output, TEACHER_RUN, seed) / "teacher.safetensors")
    return schema.with_values(shared, values)


def configs_of(shared: Config, output: Path, seed: int) -> dict[str, Config]:
    """The options of all runs of a seed, by their names."""
    return {name: config_of(shared, output, name, seed) for name in RUNS}


def train_all(shared: Config, output: Path, seeds: int) -> None:
    """Trains what is not complete yet, and continues what was interrupted. Raises what train() raises."""
    total = seeds * len(RUNS)
    for number, (seed, name) in enumerate(itertools.product(range(seeds), RUNS), 1):
        print(f"\n[{number}/{total}] {name}, seed {seed}", flush=True)
        folder = folder_of(output, name, seed)
        started = (folder / "config.toml").exists()
        train(config_of(shared, output, name, seed), resume=folder if started else None)
