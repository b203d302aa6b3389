"""normalize: the networks' input is the flipped, mixed and normalised view, with its target."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torchvision.transforms import functional as F

from udskd.config.schema import DataConfig
from udskd.data import Batch, normalize_batch

CONFIG = DataConfig()


def make_batch(rows: int = 5, mix: torch.Tensor | None = None, flips: list[bool] | None = None) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (rows, 6, 6, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    count = rows if mix is None else rows - 1
    flipped = torch.tensor(flips if flips is not None else [k % 2 == 1 for k in range(rows)])
    return Batch(pixels, torch.arange(rows) % 3, torch.arange(count), flipped, mix)


def normalized_by_torchvision(batch: Batch) -> torch.Tensor:
    """The same by torchvision, image by image."""
    rows = []
    for image, flip in zip(batch.images, batch.flips.tolist(), strict=True):
        real = image.double() / 255
        rows.append(F.normalize(F.hflip(real) if flip else real, list(CONFIG.mean), list(CONFIG.std)))
    return torch.stack(rows)


@pytest.mark.parametrize("flips", [None, [False] * 5, [True] * 5])
def test_images_are_flipped_and_normalised(flips: list[bool] | None) -> None:
    batch = make_batch(flips=flips)
    images, target = normalize_batch(batch, CONFIG, "cpu", 3)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images.double(), normalized_by_torchvision(batch), rtol=0, atol=2e-6)
    assert torch.equal(target, batch.labels)


def test_flip_0_flips_no_image() -> None:
    batch = make_batch(flips=[False] * 5)
    expected = normalize_batch(batch, CONFIG, "cpu", 3)[0]
    assert torch.equal(normalize_batch(batch, replace(CONFIG, flip=0.0), "cpu", 3)[0], expected)


def test_images_and_targets_are_mixed_with_the_same_weight() -> None:
    mix = torch.tensor([1.0, 0.0, 0.25, 0.7])
    batch = make_batch(5, mix)
    images, target = normalize_batch(batch, CONFIG, "cpu", 3)
    rows, weight = normalized_by_torchvision(batch), mix.double().view(-1, 1, 1, 1)
    torch.testing.assert_close(images.double(), weight * rows[:-1] + (1 - weight) * rows[1:], rtol=0, atol=3e-6)
    expected = torch.tensor([[1, 0, 0], [0, 0, 1], [0.75, 0, 0.25], [0.7, 0.3, 0]])
    torch.testing.assert_close(target, expected)
    assert target.dtype == torch.float32


def test_partners_of_one_class_give_a_certain_target() -> None:
    batch = make_batch(4, torch.tensor([0.3, 0.6, 0.9]))
    batch.labels.fill_(2)
    assert normalize_batch(batch, CONFIG, "cpu", 4)[1].tolist() == [[0, 0, 1, 0]] * 3


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("mix", [None, torch.tensor([0.3, 0.6, 0.9, 0.1])])
def test_the_memory_format_is_the_given_one(memory_format: torch.memory_format, mix: torch.Tensor | None) -> None:
    images, _ = normalize_batch(make_batch(5, mix), CONFIG, "cpu", 3, memory_format)
    assert images.is_contiguous(memory_format=memory_format)


def test_the_batch_is_not_changed() -> None:
    batch = make_batch(5, torch.tensor([0.3, 0.6, 0.9, 0.1]))
    before = batch.images.clone()
    first = normalize_batch(batch, CONFIG, "cpu", 3)[0]
    assert torch.equal(batch.images, before)
    assert torch.equal(first, normalize_batch(batch, CONFIG, "cpu", 3)[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_the_same_and_the_host_does_not_wait() -> None:
    batch = make_batch(5, torch.tensor([0.3, 0.6, 0.9, 0.1]))
    expected = normalize_batch(batch, CONFIG, "cpu", 3)
    pinned = replace(batch, **{k: v.pin_memory() for k, v in vars(batch).items() if isinstance(v, torch.Tensor)})
    normalize_batch(pinned, CONFIG, "cuda", 3)  # fills the cache of constants
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = normalize_batch(pinned, CONFIG, "cuda", 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other)
