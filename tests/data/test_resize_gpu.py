"""resize on a GPU: views have the CPU's bits, and the host does not wait for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from tests.data.helpers.resizing import ViewCase, batch_of, cases, ours, some_cases
from udskd.data import resize
from udskd.data.resize import crop_resize_batch

needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and resize.has_kernel("cuda")), reason="no CUDA device, or no kernels for one"
)


def on_gpu(some: list[ViewCase]) -> Tensor:
    pixels, offsets, shapes, views, out = batch_of(some)
    moved = out.cuda()
    crop_resize_batch(pixels.cuda(), offsets.cuda(), shapes, views, moved)
    return moved


@pytest.mark.gpu
@needs_gpu
@given(cases())
def test_a_gpu_has_the_cpus_bits(case: ViewCase) -> None:
    np.testing.assert_array_equal(on_gpu([case])[0].cpu().numpy(), ours(case))


@pytest.mark.gpu
@needs_gpu
def test_a_batch_on_a_gpu_has_the_bits_of_its_images() -> None:
    some = some_cases() * 40
    out = on_gpu(some).cpu().numpy()
    for row, case in enumerate(some):
        np.testing.assert_array_equal(out[row], ours(case))


@pytest.mark.gpu
@needs_gpu
def test_the_host_does_not_wait_for_the_gpu() -> None:
    pixels, offsets, shapes, views, out = batch_of(some_cases())
    moved = pixels.cuda(), offsets.cuda(), shapes, views, out.cuda()
    crop_resize_batch(*moved)
    torch.cuda.set_sync_debug_mode("error")
    try:
        crop_resize_batch(*moved)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_gpu
def test_consecutive_batches_do_not_overwrite_each_others_tables() -> None:
    some = [some_cases(32)[k % 8 :][:1] * 50 for k in range(24)]
    outs = [on_gpu(batch) for batch in some]
    for batch, out in zip(some, outs, strict=True):
        np.testing.assert_array_equal(out[-1].cpu().numpy(), ours(batch[0]))


@pytest.mark.gpu
@needs_gpu
def test_a_cuda_graph_cannot_capture_views_whose_boxes_are_on_the_host() -> None:
    pixels, offsets, shapes, views, out = batch_of(some_cases())
    moved = pixels.cuda(), offsets.cuda(), shapes, views, out.cuda()
    crop_resize_batch(*moved)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        moved[-1].add_(0)  # PyTorch warns of empty graphs
        with pytest.raises(ValueError, match=r"^crop_resize: it cannot be part of a CUDA graph"):
            crop_resize_batch(*moved)
