"""The loaders that tests compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from udskd.config.schema import DataConfig
from udskd.data import Batch

CONFIG = DataConfig(image_size=8, workers=0)
MIXED = replace(CONFIG, mixup=0.4)
LOADERS = [("threads", 0), ("threads", 1), ("threads", 3), ("processes", 1), ("processes", 3)]
each_loader = pytest.mark.parametrize(("loader", "workers"), LOADERS)


def with_loader(config: DataConfig, loader: str, workers: int) -> DataConfig:
    return replace(config, loader=loader, workers=workers)  # type: ignore[arg-type]


def assert_equal(first: Iterator[Batch], second: Iterator[Batch]) -> None:
    """Assert that two loaders give the same batches, to the last bit."""
    for one, other in zip(first, second, strict=True):
        for key, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(other, key)), key
            else:
                assert value == getattr(other, key), key
