"""batch: the pixels of a view, and the effect of unreadable images on batches and mixup."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as F

from tests.data.helpers.images import MemorySet, photo
from udskd.config.schema import DataConfig
from udskd.data import augment, normalize_batch
from udskd.data.augment import central_view
from udskd.data.batch import Batch, BatchRequest, EvalViews, TrainViews
from udskd.data.resize import View, crop_resize

CONFIG = DataConfig(image_size=8, workers=0)


def cut(image: Image.Image, view: View, size: int) -> np.ndarray:
    out = np.empty((size, size, 3), dtype=np.uint8)
    crop_resize(np.asarray(image), view, out)
    return out


def fetch(config: DataConfig, indices: list[int], bad: tuple[int, ...] = (), seed: int = 0, epoch: int = 0) -> Batch:
    result = TrainViews(MemorySet(100, bad), config, seed)[BatchRequest(epoch, 0, np.array(indices))]
    assert result.batch is not None
    return result.batch


@settings(deadline=None, max_examples=60)
@given(width=st.integers(2, 60), height=st.integers(2, 60), size=st.integers(1, 40), index=st.integers(0, 10**4))
def test_random_view_has_torchvisions_pixels(width: int, height: int, size: int, index: int) -> None:
    image = photo(1, (width, height))
    images = MemorySet(index + 1, size=(width, height))
    images.pixels = lambda _: np.asarray(image)  # type: ignore[method-assign]
    result = TrainViews(images, replace(CONFIG, image_size=size), 0)[BatchRequest(0, 0, np.array([index]))]
    left, top, right, bottom = augment.crop_box(augment.crop_draws(0, 0, [index])[0], width, height, (0.08, 1.0))
    theirs = F.resized_crop(image, top, left, bottom - top, right - left, [size, size])
    assert result.batch is not None
    np.testing.assert_array_equal(result.batch.images[0].permute(1, 2, 0).numpy(), np.asarray(theirs))


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 80),
    height=st.integers(1, 80),
    size=st.integers(4, 40),
    eval_crop=st.sampled_from([1.0, 0.875, 0.5]),
)
def test_central_view_has_torchvisions_pixels(width: int, height: int, size: int, eval_crop: float) -> None:
    image = photo(1, (width, height))
    theirs = F.center_crop(F.resize(image, [round(size / eval_crop)]), [size, size])
    np.testing.assert_array_equal(cut(image, central_view(width, height, size, eval_crop), size), np.asarray(theirs))


def test_views_depend_on_seed_epoch_and_index_only() -> None:
    in_batch = fetch(CONFIG, [5, 9, 2])
    alone = fetch(CONFIG, [9])
    assert torch.equal(in_batch.images[1], alone.images[0])
    assert in_batch.flips[1] == alone.flips[0]


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}])
def test_another_seed_or_epoch_gives_another_view(other: dict[str, int]) -> None:
    assert not torch.equal(fetch(CONFIG, [5]).images, fetch(CONFIG, [5], **other).images)


def test_labels_and_indices_belong_to_the_images() -> None:
    batch = fetch(CONFIG, [5, 9, 2])
    assert batch.indices.tolist() == [5, 9, 2]
    assert batch.labels.tolist() == [2, 0, 2]
    assert (batch.images.dtype, batch.labels.dtype, batch.indices.dtype) == (torch.uint8, torch.int64, torch.int64)
    assert batch.mix is None
    assert len(batch) == 3


def test_images_are_channels_last_without_a_copy() -> None:
    images = fetch(CONFIG, [5, 9, 2]).images
    assert images.shape == (3, 3, 8, 8)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_unreadable_rows_are_left_out_and_reported() -> None:
    result = TrainViews(MemorySet(100, bad=[9]), CONFIG, 0)[BatchRequest(0, 7, np.array([5, 9, 2]))]
    whole = fetch(CONFIG, [5, 9, 2])
    assert result.batch is not None
    assert result.unreadable == [("memory/9", "bad on purpose")]
    assert result.batch.indices.tolist() == [5, 2]
    assert result.batch.labels.tolist() == [2, 2]
    assert result.batch.flips.tolist() == whole.flips[[0, 2]].tolist()
    assert torch.equal(result.batch.images, whole.images[[0, 2]])
    assert result.batch.step == 7


def test_flips_and_labels_stay_with_their_rows_when_others_are_left_out() -> None:
    whole, rest = fetch(CONFIG, list(range(30))), fetch(CONFIG, list(range(30)), bad=(0, 3, 4))
    kept = [row for row in range(30) if row not in (0, 3, 4)]
    assert rest.flips.tolist() == whole.flips[kept].tolist()
    assert rest.labels.tolist() == whole.labels[kept].tolist()


def test_an_unreadable_last_partner_is_replaced_by_a_readable_image() -> None:
    batch = fetch(replace(CONFIG, mixup=0.4), [5, 9, 2, 7], bad=(7,))
    assert torch.equal(batch.images[-1], batch.images[-2])


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, mixup=0.4)], ids=["plain", "mixup"])
def test_a_batch_without_readable_images_has_no_rows(config: DataConfig) -> None:
    result = TrainViews(MemorySet(10, bad=[1, 2]), config, 0)[BatchRequest(0, 0, np.array([1, 2]))]
    assert result.batch is not None
    assert len(result.unreadable) == 2
    assert len(result.batch) == 0
    assert result.batch.images.shape == (0, 3, 8, 8)
    assert len(result.batch.labels) == len(result.batch.flips) == 0
    images, target = normalize_batch(result.batch, config, "cpu", 3)
    assert (len(images), len(target)) == (0, 0)


def test_a_batch_can_be_pickled() -> None:
    for config in (CONFIG, replace(CONFIG, mixup=0.4)):
        batch = fetch(config, [5, 9, 2])
        again = pickle.loads(pickle.dumps(batch))
        for key, value in vars(batch).items():
            other = getattr(again, key)
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_with_mixup_the_last_row_is_the_partner_of_the_one_before() -> None:
    config = replace(CONFIG, mixup=0.4)
    batch = fetch(config, [5, 9, 2])
    assert batch.indices.tolist() == [5, 9]
    assert batch.labels.tolist() == [2, 0, 2]
    assert torch.equal(batch.images, fetch(CONFIG, [5, 9, 2]).images)
    assert batch.mix is not None
    np.testing.assert_array_equal(batch.mix.numpy(), augment.mixup_strengths(0, 0, [5, 9], 0.4).astype(np.float32))


@pytest.mark.parametrize(
    ("bad", "unmixed"),
    [((5,), []), ((9,), [5]), ((2,), [9]), ((7,), [2]), ((5, 2), [9]), ((9, 7), [5, 2]), ((5, 9, 7), [2])],
)
def test_an_image_whose_partner_is_unreadable_is_not_mixed(bad: tuple[int, ...], unmixed: list[int]) -> None:
    config = replace(CONFIG, mixup=0.4)
    batch, whole = fetch(config, [5, 9, 2, 7], bad), fetch(config, [5, 9, 2, 7])
    assert batch.mix is not None
    assert whole.mix is not None
    kept = batch.indices.tolist()
    assert kept == [index for index in (5, 9, 2) if index not in bad]  # 7 is only the partner of 2
    assert len(batch.images) == len(batch.labels) == len(batch.flips) == len(kept) + 1
    for row, index in enumerate(kept):
        position = [5, 9, 2].index(index)
        assert batch.mix[row] == (1.0 if index in unmixed else whole.mix[position])
        if index not in unmixed:
            assert torch.equal(batch.images[row + 1], whole.images[position + 1])
            assert batch.labels[row + 1] == whole.labels[position + 1]


def test_evaluation_has_no_randomness_and_no_skipping() -> None:
    images = MemorySet(10, bad=[4])
    good = EvalViews(images, CONFIG)[BatchRequest(0, 1, np.array([0, 1, 2]))]
    bad = EvalViews(images, CONFIG)[BatchRequest(0, 1, np.array([3, 4, 5]))]
    assert good.batch is not None
    expected = cut(photo(2, images.size), central_view(*images.size, 8, 0.875), 8)
    np.testing.assert_array_equal(good.batch.images[2].permute(1, 2, 0).numpy(), expected)
    assert not good.batch.flips.any()
    assert bad.batch is None
    assert bad.unreadable == [("memory/4", "bad on purpose")]
