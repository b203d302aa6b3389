"""The evaluation of several networks in one pass, which does not change them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from udskd.config import schema
from udskd.config.schema import Config
from udskd.data import EvalLoader, normalize_batch, open_sets
from udskd.files import PREDICTIONS
from udskd.models import zoo
from udskd.progress import Display
from udskd.training import predictions, train
from udskd.training.evaluation.evaluate import Evaluator
from udskd.training.runtime.device import Runtime
from udskd.training.runtime.signals import StopRequest


def loader_of(config: Config, batch_size: int = 7) -> EvalLoader:
    return EvalLoader(open_sets(config.data)[1], config.data, batch_size=batch_size)


def results_of(networks: dict[str, nn.Module], config: Config, batch_size: int = 7) -> dict[str, dict[str, float]]:
    runtime = Runtime.from_config(config.training)
    loader = loader_of(config, batch_size)
    evaluator = Evaluator(loader, config.data, runtime, Display(), StopRequest().poll)
    return {name: evaluation.metrics for name, evaluation in evaluator.evaluate(networks).items()}


def test_networks_are_evaluated_in_eval_mode_and_do_not_change(config: Config) -> None:
    module = zoo.build("mobilenet_v3_small", 3, 8).module.train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    first, second = results_of({"x": module}, config), results_of({"x": module}, config, batch_size=18)
    assert {k: round(v, 6) for k, v in first["x"].items()} == {k: round(v, 6) for k, v in second["x"].items()}
    assert module.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_every_network_sees_every_image_once(config: Config, tree: Path) -> None:
    def predicts(label: int) -> nn.Module:
        class Constant(nn.Module):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return nn.functional.one_hot(torch.full((len(images),), label), 3).float()

        return Constant()

    results = results_of({str(label): predicts(label) for label in range(3)}, config)
    assert [round(results[str(label)]["top1"], 6) for label in range(3)] == [33.333333] * 3


def test_the_metrics_are_those_of_the_networks_logits(config: Config) -> None:
    module = zoo.build("tiny_plain_2", 3, 8).module.eval()
    batches = [normalize_batch(b, config.data, "cpu", 3) for b in loader_of(config)]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        nll = nn.functional.cross_entropy(module(images), labels)
    assert abs(results_of({"x": module}, config)["x"]["nll"] - float(nll)) < 1e-6


def test_predictions_that_would_be_too_large_are_left_out_with_a_message(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predictions, "MAX_BYTES", 100)
    train(schema.with_values(config, {"method": "ce", "training.epochs": 1}))
    assert not (Path(config.output or "") / PREDICTIONS).exists()
    assert "predictions.safetensors: left out" in capsys.readouterr().out
