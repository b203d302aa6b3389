"""From a worker's uint8 batch to what the networks take: cast, flip, mix and normalise once, on the device."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from udskd.config import DataConfig
from udskd.data.batch import Batch


def to_device(
    batch: Batch,
    config: DataConfig,
    device: torch.device | str,
    num_classes: int,
    memory_format: torch.memory_format = torch.channels_last,
) -> tuple[Tensor, Tensor]:
    """Images float32 [B, 3, S, S], normalised, and their target; nothing here waits for the device.

    The target is int64 [B], or with mixup a distribution float32 [B, num_classes] (Zhang et al. 2018: image and target
    are mixed with the same strength).
    """
    device = torch.device(device)
    pixels = batch.images.to(device, non_blocking=True)
    labels = batch.labels.to(device, non_blocking=True)
    if batch.flips.any():  # a tensor of the host: no synchronisation
        flips = batch.flips.to(device, non_blocking=True)
        pixels = torch.where(flips[:, None, None, None], pixels.flip(-1), pixels)
    images = pixels.to(torch.float32, memory_format=memory_format)
    target = labels
    if batch.mix is not None:
        mix = batch.mix.to(device, non_blocking=True)
        hot = (labels[:, None] == torch.arange(num_classes, device=device)).to(torch.float32)
        target = _mix_rows(hot, mix)
        images = _mix_rows(images, mix)
    offset, factor = _normalisation(config.mean, config.std, device)
    return images.mul_(factor).add_(offset), target


def _mix_rows(rows: Tensor, mix: Tensor) -> Tensor:
    """mix[i] * rows[i] + (1 - mix[i]) * rows[i + 1]: [B + 1, ...] to [B, ...]."""
    return torch.lerp(rows[1:], rows[:-1], mix.view(-1, *[1] * (rows.dim() - 1)))


@lru_cache(maxsize=16)  # creating them every step would copy from the host and wait
def _normalisation(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(x / 255 - mean) / std as x * factor + offset, each [1, 3, 1, 1]."""
    m, s = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (mean, std))
    return (-m / s).to(device, torch.float32), (1 / (255 * s)).to(device, torch.float32)
