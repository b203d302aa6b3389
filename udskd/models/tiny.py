"""Two families of tiny convolutional networks, for the demo, for tests, and for a first run on a laptop."""

from __future__ import annotations

import re

from torch import Tensor, nn

from udskd.errors import ConfigError

FAMILIES = ("tiny_plain", "tiny_separable")
_NAME = re.compile(r"(tiny_plain|tiny_separable)_(\d{1,4})")


class TinyNet(nn.Module):
    """Three stages of two convolutions with W, 2W and 4W channels, each with batch-norm and ReLU; then global average
    pooling and a linear layer.

    Input: float [B, 3, S, S] with S >= 8. Output: logits [B, num_classes]. With separable=True every convolution but
    the first is depthwise 3x3 followed by pointwise 1x1, as in MobileNet.
    """

    def __init__(self, width: int, num_classes: int, *, separable: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(3, width, 1, separable=False)]
        channels = width
        for stage in range(3):
            for layer in range(2):
                stride = 2 if stage > 0 and layer == 0 else 1
                layers.append(_convolution(channels, width << stage, stride, separable=separable))
                channels = width << stage
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits


def is_tiny(name: str) -> bool:
    """Whether the name is tiny_plain_W or tiny_separable_W."""
    return _NAME.fullmatch(name) is not None


def build(name: str, num_classes: int) -> TinyNet:
    """tiny_plain_W or tiny_separable_W with W channels in the first stage."""
    match = _NAME.fullmatch(name)
    if match is None or int(match[2]) < 1:
        raise ConfigError(
            f'"{name}" must be tiny_plain_W or tiny_separable_W with a width W of 1 or more, such as tiny_plain_16'
        )
    return TinyNet(int(match[2]), num_classes, separable=match[1] == "tiny_separable")


def _convolution(inputs: int, outputs: int, stride: int, *, separable: bool) -> nn.Sequential:
    def block(c_in: int, c_out: int, kernel: int, stride: int, groups: int) -> list[nn.Module]:
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        return [conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]

    if separable:
        return nn.Sequential(*block(inputs, inputs, 3, stride, inputs), *block(inputs, outputs, 1, 1, 1))
    return nn.Sequential(*block(inputs, outputs, 3, stride, 1))
