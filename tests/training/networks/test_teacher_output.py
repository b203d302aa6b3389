"""The teacher's output beside its logits: responses from dropout and from random views, and features of layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from udskd.config import schema
from udskd.config.schema import Config


def test_responses_from_dropout_scatter_around_the_plain_logits() -> None:
    from udskd.methods import Needs
    from udskd.training.networks.teacher_output import build_teacher_forward
    from udskd.training.runtime.device import Runtime

    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 3))
    config = schema.with_values(Config(), {"training.device": "cpu", "variance.dropout": 0.3})
    runtime = Runtime.from_config(config.training)
    output = build_teacher_forward(config, runtime, module, Needs(responses=2000, source="dropout"), True)(
        torch.randn(5, 3, 2, 2)
    )
    assert output.responses is not None
    assert output.logits is not None
    error = output.responses.std(0) / math.sqrt(2000)
    assert ((output.responses.mean(0) - output.logits).abs() < 5 * error).all()
    assert output.responses.std(0).min() > 0


def test_a_view_is_mirrored_or_not_and_moved_by_an_eighth_at_most() -> None:
    from udskd.training.networks.teacher_output import random_view

    torch.manual_seed(0)
    ramp = torch.linspace(-1, 1, 64).expand(200, 3, 64, 64).contiguous()
    centre = random_view(ramp, 0.5)[:, 0, 32, 24:40]
    slope = centre[:, -1] - centre[:, 0]
    assert 60 < (slope < 0).sum() < 140
    middle = centre.mean(1).abs() / (2 / 63)  # in pixels
    assert middle.max() < 9
    assert middle.max() > 6


def test_a_view_is_not_mirrored_if_the_images_are_not() -> None:
    from udskd.training.networks.teacher_output import random_view

    ramp = torch.linspace(-1, 1, 64).expand(200, 3, 64, 64).contiguous()
    centre = random_view(ramp, 0.0)[:, 0, 32, 24:40]
    assert (centre[:, -1] > centre[:, 0]).all()


def test_features_come_from_the_synchronised_batch_norms(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """training.sync_batchnorm replaces the batch-norms, and a method may need the output of one of them."""
    from udskd.config.schema import StudentConfig
    from udskd.models import zoo
    from udskd.training.networks.trainable import Network
    from udskd.training.runtime.device import Runtime
    from udskd.training.runtime.distributed import World

    monkeypatch.setattr(Runtime, "data_parallel", lambda self, module, size: module)
    world = World(ranks=2, control=object())
    runtime = Runtime(torch.device("cpu"), "fp32", torch.contiguous_format, world, sync_batchnorm=True)
    model = zoo.build("densenet121", 3, 32)
    layers = ("features.norm5",)
    network = Network("student_a", model, StudentConfig(), config.training, runtime, 1, 1, layers)
    tapped = network.module.get_submodule(*layers)
    assert isinstance(tapped, nn.SyncBatchNorm)
    assert tapped._forward_hooks
