"""A generated image set whose true p(class | image) is known: coloured shapes between the classes.

Each 32 x 32 image shows one shape. The distribution of its class depends on three factors: hue, chroma (the distance
from grey) and outline, which varies from a diamond through a disc to a square. The image determines them, also after a
flip or a resized crop; everything else (position, size, brightness, background, noise) is independent of the class. So
p(class | image) is p(class | factors), see `posterior`. Pale shapes and shapes between two classes are ambiguous.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

from udskd.data.dataset import ImageSet, Pixels
from udskd.data.hashing import Floats, random_bits, uniform

Split = Literal["train", "val"]

SIZE = 32
SIZES = {"train": 2000, "val": 1000}
HUE_SHARPNESS = 10.0
SHAPE_SHARPNESS = 50.0
# The factors of each class: hue in turns from red, and outline (0 diamond, 0.5 disc, 1 square).
PROTOTYPES = {
    "red diamond": (0 / 3, 0.0),
    "green diamond": (1 / 3, 0.0),
    "blue diamond": (2 / 3, 0.0),
    "orange disc": (1 / 12, 0.5),
    "lime disc": (4 / 12, 0.5),
    "azure disc": (7 / 12, 0.5),
    "magenta disc": (10 / 12, 0.5),
    "yellow square": (1 / 6, 1.0),
    "cyan square": (3 / 6, 1.0),
    "pink square": (5 / 6, 1.0),
}
_SEED = 2611
_CHUNK = 250


class _Stream(IntEnum):
    """The random quantities. Numbers of different streams are unrelated; TINT and NOISE are the first of several."""

    HUE = 0
    CHROMA = 1
    OUTLINE = 2
    LABEL = 3
    RADIUS = 4
    LEFT = 5
    TOP = 6
    LIGHT = 7
    GROUND = 8
    SLOPE_X = 9
    SLOPE_Y = 10
    TINT = 20
    NOISE = 1000


class EmbeddedSet(ImageSet):
    """One split, the same on every machine; a smaller `size` gives the first images of a larger one."""

    posterior: Floats
    """p(class | image), [N, C]."""

    def __init__(self, split: Split, size: int | None = None) -> None:
        self.split = split
        self.classes = tuple(PROTOTYPES)
        indices = np.arange(SIZES[split] if size is None else size)
        self.posterior = posterior(*_factors(split, indices))
        above = self.posterior.cumsum(axis=1) < _draw(split, indices, _Stream.LABEL)[:, None]
        self.labels = np.minimum(above.sum(axis=1), len(self.classes) - 1).astype(np.int64)
        chunks = [_render(split, indices[start : start + _CHUNK]) for start in range(0, len(indices), _CHUNK)]
        self._pixels = np.concatenate(chunks)

    @property
    def entropy(self) -> Floats:
        """Entropy of p(class | image) in nats, [N]."""
        p = self.posterior
        entropy: Floats = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)
        return entropy

    @property
    def bayes_accuracy(self) -> float:
        """Expected accuracy of the best possible classifier, in [0, 1]."""
        return float(self.posterior.max(axis=1).mean())

    def name(self, index: int) -> str:
        return f"embedded/{self.split}/{index}"

    def pixels(self, index: int) -> Pixels:
        pixels: Pixels = self._pixels[index]
        return pixels


def posterior(hue: Floats, chroma: Floats, outline: Floats) -> Floats:
    """p(class | hue, chroma, outline), [N, C] from [N] each: a softmax of scores.

    A class's score is the inner product of the image's chroma vector with the direction of the class's hue, which is
    small for pale shapes, minus the squared distance of the outlines; each with its factor.
    """
    hues, outlines = np.array(list(PROTOTYPES.values())).T
    scores = HUE_SHARPNESS * chroma[:, None] * np.cos(2 * np.pi * (hue[:, None] - hues))
    scores -= SHAPE_SHARPNESS / 2 * (outline[:, None] - outlines) ** 2
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    p: Floats = weights / weights.sum(axis=1, keepdims=True)
    return p


def _draw(
    split: Split, indices: npt.NDArray[np.intp], stream: npt.ArrayLike, low: float = 0.0, high: float = 1.0
) -> Floats:
    drawn: Floats = low + (high - low) * uniform(_SEED, list(SIZES).index(split), indices, stream)
    return drawn


def _factors(split: Split, indices: npt.NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
    hue, chroma, outline = (_draw(split, indices, s) for s in (_Stream.HUE, _Stream.CHROMA, _Stream.OUTLINE))
    return hue, 1.0 - 0.9 * chroma**2, outline  # few pale shapes, many vivid ones


def _render(split: Split, indices: npt.NDArray[np.intp]) -> Pixels:
    """Pixels [B, SIZE, SIZE, 3]."""
    hue, chroma, outline = _factors(split, indices)
    light = _draw(split, indices, _Stream.LIGHT, 0.75, 1.0)
    shape = light[:, None] * (1.0 - chroma[:, None] * (1.0 - _hue_to_rgb(hue)))
    cover = _cover(split, indices, outline)[..., None]
    image = cover * shape[:, None, None, :] + (1.0 - cover) * _background(split, indices)
    image += 0.03 * _noise(split, indices)
    return np.clip(np.rint(255.0 * image), 0, 255).astype(np.uint8)


def _hue_to_rgb(hue: Floats) -> Floats:
    """The fully saturated colour, [B, 3]: each channel is a trapezoid function of the hue."""
    phase = (hue[:, None] + np.array([0.0, 2 / 3, 1 / 3])) % 1.0
    rgb: Floats = np.clip(np.abs(6.0 * phase - 3.0) - 1.0, 0.0, 1.0)
    return rgb


def _cover(split: Split, indices: npt.NDArray[np.intp], outline: Floats) -> Floats:
    """The part of each pixel that the shape covers, [B, SIZE, SIZE]: a superellipse |x|^n + |y|^n < r^n, soft-edged.

    1/n falls from 1 (diamond) through about 1/2 (disc) to almost 0 (square). Flips and stretched crops do not change n.
    """
    radius = _draw(split, indices, _Stream.RADIUS, 9.0, 13.0)
    reach = SIZE / 2 - 0.5 - radius
    left, top = (SIZE / 2 + reach * _draw(split, indices, s, -1.0, 1.0) for s in (_Stream.LEFT, _Stream.TOP))
    n = (1.0 / (1.0 - 0.92 * outline))[:, None, None]
    pixels = np.arange(SIZE) + 0.5
    x, y = (np.abs(pixels - centre[:, None]) / radius[:, None] for centre in (left, top))
    distance = (x[:, None, :] ** n + y[:, :, None] ** n) ** (1.0 / n)
    cover: Floats = np.clip(radius[:, None, None] * (1.0 - distance) + 0.5, 0.0, 1.0)
    return cover


def _background(split: Split, indices: npt.NDArray[np.intp]) -> Floats:
    """A dark, slightly tinted gradient, [B, SIZE, SIZE, 3]."""
    ground = _draw(split, indices, _Stream.GROUND, 0.1, 0.3)[:, None, None]
    ramp = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    ground = ground + ramp * _draw(split, indices, _Stream.SLOPE_X, -0.1, 0.1)[:, None, None]
    ground = ground + ramp[:, None] * _draw(split, indices, _Stream.SLOPE_Y, -0.1, 0.1)[:, None, None]
    tint = _draw(split, indices[:, None], _Stream.TINT + np.arange(3), 0.9, 1.0)
    background: Floats = ground[..., None] * tint[:, None, None, :]
    return background


def _noise(split: Split, indices: npt.NDArray[np.intp]) -> Floats:
    """Nearly normal noise, [B, SIZE, SIZE, 3], mean 0, standard deviation 0.58: sums of four uniform numbers."""
    streams = _Stream.NOISE + np.arange(SIZE * SIZE * 3)
    bits = random_bits(_SEED, list(SIZES).index(split), indices[:, None], streams)
    parts = sum((bits >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48))
    noise: Floats = np.asarray(parts, dtype=np.float64) / 65536.0 - 2.0
    return noise.reshape(-1, SIZE, SIZE, 3)
