"""Networks of a user's own, in every form that a recipe can name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class SmallNet(nn.Module):
    """Two convolutions and a linear layer. output: what the network returns its logits in."""

    def __init__(self, num_classes: int, width: int = 4, output: str = "tensor", dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, num_classes)
        self.output = output

    def forward(self, images: Tensor) -> Any:
        features = self.body(self.stem(images)).mean((2, 3))
        logits = self.head(self.dropout(features))
        return {
            "tensor": logits,
            "tuple": (logits, features),
            "dict": {"features": features, "logits": logits},
            "object": SimpleNamespace(logits=logits),
        }[self.output]


def small_net(num_classes: int, width: int = 4, output: str = "tensor", dropout: float = 0.0) -> SmallNet:
    return SmallNet(num_classes, width, output, dropout)


def any_arguments(**options: Any) -> SmallNet:
    return SmallNet(**options)


class ValueReader(SmallNet):
    """Reads a value of its input, which no device without values can run and torch.fx cannot trace."""

    def forward(self, images: Tensor) -> Any:
        return super().forward(images if images.abs().max().item() >= 0 else images.flip(0))


def failing(num_classes: int) -> nn.Module:
    raise ZeroDivisionError("no network today")


def without_classes(width: int = 4) -> nn.Module:
    return SmallNet(10, width)


def needs_depth(num_classes: int, depth: int) -> nn.Module:
    return SmallNet(num_classes, depth)


def ten_classes(num_classes: int) -> nn.Module:
    return SmallNet(10)


def features_only(num_classes: int) -> nn.Module:
    return nn.Conv2d(3, num_classes, 3)


def not_a_module(num_classes: int) -> Any:
    return torch.zeros(num_classes)


def lazy(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


class Tied(nn.Module):
    """One layer under two names."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 3, 3, padding=1)
        self.again = self.body
        self.head = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.again(self.body(images)).mean((2, 3)))
        return logits


class WithoutLogits(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"scores": self.head(images.mean((2, 3)))}


class RefusesSmallImages(SmallNet):
    def forward(self, images: Tensor) -> Any:
        if images.shape[-1] < 64:
            raise ValueError("images must have 64 px")
        return super().forward(images)


NUMBER = 3
