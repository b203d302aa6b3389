"""The random augmentations of a training image, as pure functions of (seed, epoch, index).

Every random number is a hash of these three and of its purpose (udskd.data.hashing). So the pixels of an image depend
neither on the number of workers nor on the batch that it is in, and a run can resume an epoch at any step.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from udskd.data.hashing import Floats, random_bits, uniform
from udskd.data.resize import View

Box = tuple[int, int, int, int]

CROP_TRIES = 10
CROP_RATIO = (3 / 4, 4 / 3)


class RandomStream(IntEnum):
    """The random quantities. Numbers of different streams are unrelated; CROP and MIXUP are the first of several."""

    ORDER = 0
    FLIP = 1
    CROP = 1000
    MIXUP = 2000


def permutation(seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """The order in which an epoch visits n images: a permutation of range(n)."""
    return np.argsort(random_bits(seed, epoch, np.arange(n), RandomStream.ORDER), kind="stable").astype(np.int64)


def flips(seed: int, epoch: int, indices: npt.ArrayLike, probability: float) -> npt.NDArray[np.bool_]:
    """Whether each image is flipped left to right, [B]."""
    flipped: npt.NDArray[np.bool_] = uniform(seed, epoch, indices, RandomStream.FLIP) < probability
    return flipped


def crop_draws(seed: int, epoch: int, indices: npt.ArrayLike) -> Floats:
    """The uniform numbers of each image's random crop, [B, CROP_TRIES, 4]: area, aspect ratio, left, top."""
    streams = RandomStream.CROP + np.arange(CROP_TRIES * 4)
    return uniform(seed, epoch, np.asarray(indices)[..., None], streams).reshape(-1, CROP_TRIES, 4)


def crop_box(draws: npt.NDArray[Any], width: int, height: int, scale: tuple[float, float]) -> Box:
    """Random resized crop (Szegedy et al. 2015, as torchvision draws it): a box (left, top, right, bottom) in pixels.

    The area is uniform in `scale` (fractions of the image's area), the aspect ratio log-uniform in CROP_RATIO, the
    position uniform. The box is the first of the tries `draws` [CROP_TRIES, 4] that fits into the image, or else the
    largest central box whose aspect ratio is within CROP_RATIO.
    """
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for area, ratio, left, top in draws.tolist():
        pixels = width * height * (scale[0] + (scale[1] - scale[0]) * area)
        aspect = math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
            return x, y, x + w, y + h
    return _central_box(width, height)


def _central_box(width: int, height: int) -> Box:
    w, h = width, height
    if width / height < CROP_RATIO[0]:
        h = round(width / CROP_RATIO[0])
    elif width / height > CROP_RATIO[1]:
        w = round(height * CROP_RATIO[1])
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def central_view(width: int, height: int, size: int, eval_crop: float) -> View:
    """The central square of `size` pixels of the image resized to a shorter side of size / eval_crop."""
    short, target = min(width, height), round(size / eval_crop)
    wide, high = (target if side == short else int(target * side / short) for side in (width, height))
    return View(0, 0, width, height, wide, high, round((wide - size) / 2), round((high - size) / 2))


def mixup_strengths(seed: int, epoch: int, indices: npt.ArrayLike, alpha: float) -> Floats:
    """Weight λ of each image in its mixture, [B], from Beta(alpha, alpha) (Zhang et al. 2018); its partner has 1 - λ.

    An image's partner is the image that follows it in `permutation`, so mixing does not depend on the batch size.
    """
    # X / (X + Y) for X, Y ~ Gamma(alpha); in logarithms, because both underflow for small alpha.
    x, y = (_log_gamma_variates(seed, epoch, indices, alpha, RandomStream.MIXUP + offset) for offset in (0, 500))
    strengths: Floats = 1.0 / (1.0 + np.exp(np.minimum(y - x, 700.0)))
    return strengths


def _log_gamma_variates(seed: int, epoch: int, indices: npt.ArrayLike, alpha: float, stream: int) -> Floats:
    """Logarithms of Gamma(alpha) variates (Marsaglia and Tsang, ACM TOMS 2000); each try reads its own streams."""
    index = np.atleast_1d(np.asarray(indices))
    d = alpha + 2.0 / 3.0  # for Gamma(alpha + 1): the method needs a shape of at least 1
    result: Floats = np.log1p(-uniform(seed, epoch, index, stream)) / alpha  # G(alpha) = G(alpha + 1) U^(1 / alpha)
    pending = np.arange(index.size)
    while pending.size:
        stream += 3
        u1, u2, u3 = (1.0 - uniform(seed, epoch, index[pending], stream + k) for k in range(3))
        normal = np.sqrt(-2.0 * np.log(u1)) * np.cos(2.0 * np.pi * u2)
        v = np.maximum(1.0 + normal / np.sqrt(9.0 * d), 1e-100) ** 3  # log v rejects the values that are not positive
        accepted = np.log(u3) < 0.5 * normal**2 + d * (1.0 - v + np.log(v))
        result[pending[accepted]] += np.log(d * v[accepted])
        pending = pending[~accepted]
    return result
