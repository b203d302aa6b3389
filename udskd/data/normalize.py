"""From an uint8 batch to what the networks take: flip, cast, mix and normalise once, on the device."""

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
    """Images float32 [B, 3, S, S], normalised, and their target; nothing here waits for the device.

    The target is int64 [B], or with mixup a distribution float32 [B, num_classes] (Zhang et al. 2018: image and target
    are mixed with the same strength). On the CPU the compiled library does all of it to the images in one pass, and
    rounds where PyTorch's operators do: their bits are the same without it.
    """
    device = torch.device(device)
    pixels = batch.images.to(device, non_blocking=True)
    labels = target = batch.labels.to(device, non_blocking=True)
    # batch.flips may be on the device, where looking at it would wait
    flips = batch.flips.to(device, non_blocking=True) if config.flip > 0 else None
    mix = None if batch.mix is None else batch.mix.to(device, non_blocking=True)
    if mix is not None:
        hot = (labels[:, None] == torch.arange(num_classes, device=device)).to(torch.float32)
        target = _mix_rows(hot, mix)
    offset, factor = _normalisation(config.mean, config.std, device)
    work = _in_one_pass if _has_kernel(device.type) else _step_by_step
    return work(pixels, flips, mix, factor, offset, memory_format), target


def _has_kernel(device_type: str) -> bool:
    """Whether the compiled library, which may be older than this file, prepares images on a device."""
    return device_type == "cpu" and _native.has_kernels("cpu") and hasattr(torch.ops.udskd, "normalize_views")


def _in_one_pass(
    pixels: Tensor,
    flips: Tensor | None,
    mix: Tensor | None,
    factor: Tensor,
    offset: Tensor,
    memory_format: torch.memory_format,
) -> Tensor:
    rows = pixels.permute(0, 2, 3, 1).contiguous()  # as they are, unless somebody else made the batch
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

    Each step is rounded, unlike in torch.lerp, which may or may not fuse two of them; csrc/image/cpu/normalize_job.h
    has the same steps. The difference of whole numbers is exact, so that two equal rows give just that row.
    """
    shares = mix.view(-1, *[1] * (rows.dim() - 1))
    return torch.sub(rows[:-1], rows[1:]).mul_(shares).add_(rows[1:])


@lru_cache(maxsize=16)  # creating them every step would copy from the host and wait
def _normalisation(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(x / 255 - mean) / std as x * factor + offset, each [1, 3, 1, 1]."""
    m, s = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (mean, std))
    return (-m / s).to(device, torch.float32), (1 / (255 * s)).to(device, torch.float32)
