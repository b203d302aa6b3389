"""Every method with its variants, in runs of two epochs, for the tests of methods through the training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from udskd import methods
from udskd.config import schema
from udskd.config.schema import Config
from udskd.data import EmbeddedSet
from udskd.doctor.step_benchmark import StepBenchmark

SHORT = {"teacher.epochs": 1, "training.epochs": 2, "cud.stage_epochs": 2, "sdkd.stages": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in methods.names()},
    "variance from views": {"method": "variance", "variance.source": "views"},
    "variance from dropout": {"method": "variance", "variance.source": "dropout"},
    "akd, learned": {"method": "akd", "akd.alpha": "learned"},
    "akd, kendall": {"method": "akd", "akd.alpha": "learned", "akd.guard": "kendall"},
    "akd, sample": {"method": "akd", "akd.alpha": "sample", "akd.gap": "js"},
    "udskd of everything": {
        **{"method": "udskd", "teacher.stage": "uncertainty_shaping"},
        **{"target.shape": "average+wrong_mass_clip+context", "target.weight": "margin"},
    },
    "sdkd of clipped targets": {"method": "sdkd", "target.shape": "wrong_mass_clip", "target.weight": "wsl"},
    "variance from draws, peers": {"method": "variance", "variance.student": "peers"},
    "udskd within bounds": {"method": "udskd", "target.shape": "mass_bounds"},
}


def options(config: Config, values: dict[str, Any]) -> Config:
    return schema.with_values(config, {**SHORT, **values})


def run_of(config: Config) -> Path:
    return Path(config.output or "")


def step_benchmark(config: Config) -> StepBenchmark:
    """The step of a run with these options, before its first update."""
    return StepBenchmark(schema.with_values(config, {"teacher.checkpoint": None}), EmbeddedSet("train", 48))


def module_weights(benchmark: StepBenchmark, name: str) -> dict[str, Tensor]:
    """A copy of the state of one of the method's modules."""
    (part,) = (part for part in benchmark.task.method_modules if part.role == name)
    return {key: value.clone() for key, value in part.module.state_dict().items()}
