"""From a uint8 batch to the input of all networks, on the device: flips, cast, mixup and normalisation."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from udskd import _native
from udskd.config.schema import DataConfig
from udskd.data.batch import Batch


def normalize_batch(
    batch: Batch,
    config: DataConfig,
    device: torch.device | str,
    num_classes: int,
    memory_format: torch.memory_format = torch.channels_last,
) -> tuple[Tensor, Tensor]:
    """Normalised images float32 [B, 3, S, S] on a device, and their target. The host does not wait for the device.

    The target is int64 [B], or with mixup a distribution float32 [B, num_classes] (Zhang et al. 2018: image and target
    are mixed with the same weight). On the CPU the compiled library does all of it to the images in one pass. It rounds
    after each step as PyTorch's operators do, so that both give the same bits.
    """
    device = torch.device(device)
    pixels = batch.images.to(device, non_blocking=True)
    labels = target = batch.labels.to(device, non_blocking=True)
    # not batch.flips.any(), which would wait for the device
    flips = batch.flips.to(device, non_blocking=True) if config.flip > 0 else None
    mix = None if batch.mix is None else batch.mix.to(device, non_blocking=True)
    if mix is not None:
        hot = (labels[:, None] == torch.arange(num_classes, device=device)).to(torch.float32)
        target = _mix_rows(hot, mix)
    offset, factor = _normalisation(config.mean, config.std, device)
    work = _in_one_pass if _has_kernel(device.type) else _step_by_step
    return work(pixels, flips, mix, factor, offset, memory_format), target


def _has_kernel(device_type: str) -> bool:
    """Whether the compiled library, which may be older than this file, normalises images on a device."""
    return device_type == "cpu" and _native.has_kernels("cpu") and hasattr(torch.ops.udskd, "normalize_views")


def _in_one_pass(
    pixels: Tensor,
    flips: Tensor | None,
    mix: Tensor | None,
    factor: Tensor,
    offset: Tensor,
    memory_format: torch.memory_format,
) -> Tensor:
    rows = pixels.permute(0, 2, 3, 1).contiguous()  # no copy for the strides that Views makes
    shape = (len(rows) if mix is None else len(mix), *pixels.shape[1:])
    images = torch.empty(shape, dtype=torch.float32, memory_format=memory_format)
    torch.ops.udskd.normalize_views.default(rows, flips, mix, factor.view(3), offset.view(3), images)
    return images


def _step_by_step(
    pixels: Tensor,
    flips: Tensor | None,
    mix: Tensor | None,
    factor: Tensor,
    offset: Tensor,
    memory_format: torch.memory_format,
) -> Tensor:
    if flips is not None:
        pixels = torch.where(flips[:, None, None, None], pixels.flip(-1), pixels)
    images = pixels.to(torch.float32, memory_format=memory_format)
    if mix is not None:
        images = _mix_rows(images, mix)
    return images.mul_(factor).add_(offset)


def _mix_rows(rows: Tensor, mix: Tensor) -> Tensor:
    """mix[i] * rows[i] + (1 - mix[i]) * rows[i + 1]: [B + 1, ...] to [B, ...].

    Each step is rounded, as in csrc/image/cpu; torch.lerp may fuse two of them. Differences of integers are exact, so
    that two equal rows give this row.
    """
    weights = mix.view(-1, *[1] * (rows.dim() - 1))
    return torch.sub(rows[:-1], rows[1:]).mul_(weights).add_(rows[1:])


@lru_cache(maxsize=16)  # a new tensor in every step would be a copy from the host, which waits
def _normalisation(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(x / 255 - mean) / std as x * factor + offset, each [1, 3, 1, 1]."""
    m, s = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (mean, std))
    return (-m / s).to(device, torch.float32), (1 / (255 * s)).to(device, torch.float32)
