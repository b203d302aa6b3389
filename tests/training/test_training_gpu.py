"""Training on a GPU: it never waits for the device within a step, and a CUDA graph changes nothing but the speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import tiny_config
from udskd.config import schema
from udskd.config.schema import Config
from udskd.models.checkpoints import load_weights
from udskd.training import train
from udskd.training.engine.epoch import EpochTrainer
from udskd.training.engine.step import Step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"training.cuda_graph": True},
    {"training.precision": "fp16"},
    {"data.mixup": 0.2},
    {"data.loader": "resident"},
    {"data.loader": "threads", "data.workers": 2},
    {"data.loader": "processes", "data.workers": 2},
    {"training.accumulate": 2},
]
METHODS: list[dict[str, Any]] = [
    {"method": "cud"},
    {"method": "sdkd", "sdkd.stages": 2},
    {"method": "akd"},
    {"method": "akd", "akd.alpha": "learned"},
    {"method": "dkd"},
    {"method": "er_kd"},
    {"method": "wsl"},
    {"method": "udskd", "target.shape": "mass_bounds", "target.weight": "margin"},
]
RANDOM: list[dict[str, Any]] = [{"method": "variance", "variance.source": s} for s in ("draws", "dropout", "views")]


def on_gpu(tree: Path, output: Path, **options: Any) -> Config:
    base = {"training.device": "cuda", "training.clip_grad_norm": 1.0, "training.epochs": 4}
    return schema.with_values(tiny_config(tree, output), base | options)


@pytest.mark.parametrize("options", VARIANTS + METHODS + RANDOM, ids=str)
def test_nothing_waits_for_the_gpu_within_a_step(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Twelve steps of each phase, from the batch on the host to the update, under PyTorch's own alarm."""
    steps = [0]
    inputs, run = EpochTrainer.inputs, Step.run

    def alarmed(function: Any) -> Any:
        def wrapper(*args: Any) -> Any:
            torch.cuda.set_sync_debug_mode("error" if steps[0] > 4 else "default")  # lazy loading may wait
            try:
                return function(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return wrapper

    def counted(*args: Any) -> Any:
        steps[0] += 1
        return alarmed(run)(*args)

    monkeypatch.setattr(EpochTrainer, "inputs", alarmed(inputs))
    monkeypatch.setattr(Step, "run", counted)
    train(on_gpu(tree, tmp_path / "run", **options))
    assert steps[0] >= 24


def test_the_alarm_rings() -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1, device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("options", RANDOM, ids=str)
def test_what_is_random_in_a_cuda_graph_is_anew_in_each_step(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    losses, run = [], Step.run

    def noted(*args: Any) -> Any:
        terms = run(*args)
        losses.append(terms["kd_a"].clone() if "kd_a" in terms else None)
        return terms

    monkeypatch.setattr(Step, "run", noted)
    frozen = {"training.lr": 1e-12, "data.flip": 0.0, "data.crop_scale": (1.0, 1.0), "training.batch_size": 36}
    values = {**options, **frozen, "training.cuda_graph": True, "training.epochs": 8, "teacher.epochs": 1}
    train(on_gpu(tree, tmp_path / "run", **values))
    replayed = torch.stack([loss for loss in losses if loss is not None])[4:]
    assert len(replayed.unique()) == len(replayed)


@pytest.mark.parametrize("options", [{"training.precision": "fp32"}, {"data.mixup": 0.2}, *METHODS], ids=str)
def test_a_cuda_graph_trains_as_the_single_launches_do(tree: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    results = []
    for graph in (False, True):
        run = tmp_path / str(graph)
        train(on_gpu(tree, run, **options, **{"training.cuda_graph": graph}))
        results.append([load_weights(run / f"student_{s}.safetensors")[0] for s in "ab"])
    for one, other in zip(*results, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("loader", ["processes", "threads", "resident"])
def test_every_loader_trains_alike(tree: Path, tmp_path: Path, loader: str) -> None:
    options = {"training.precision": "fp32", "training.epochs": 1}
    runs = {"main": {"data.workers": 0}, loader: {"data.loader": loader, "data.workers": 2}}
    weights = []
    for name, how in runs.items():
        train(on_gpu(tree, tmp_path / name, **options, **how))
        weights.append(load_weights(tmp_path / name / "student_a.safetensors")[0])
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5)


def test_compiled_networks_train(tree: Path, tmp_path: Path) -> None:
    options = {"training.compile": True, "training.epochs": 2}
    assert train(on_gpu(tree, tmp_path / "run", **options))["status"] == "complete"
