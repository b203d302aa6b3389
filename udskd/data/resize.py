"""Views of images: a box of an image, resized, or a window of that, with the same bits as Pillow 13's
`image.crop(box).resize((width, height), Image.Resampling.BILINEAR)`. The compiled library makes them if there is one.

Wrong arguments raise the same ValueError either way. If the height shrinks by more than twice as many pixels as the
width, Pillow 13 resizes the columns before the rows, which earlier versions did not; this module always does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from udskd import _native

Pixels = npt.NDArray[np.uint8]

_OPERATOR = "crop_resize"  # the first word of the error messages of csrc/image
_MAX_SIDE = 1 << 24  # pixels, as in csrc/image


class View(NamedTuple):
    """A window of a resized image: the box (left, top, right, bottom) of the image is resized to width x height, and
    the view is the square window of that, of the size of `out`, whose corner is (x, y)."""

    left: int
    top: int
    right: int
    bottom: int
    width: int
    height: int
    x: int
    y: int


def has_kernel(device_type: str) -> bool:
    """Whether the compiled library cuts views on a device."""
    return _native.has_kernels(device_type) and hasattr(torch.ops.udskd, _OPERATOR)


def crop_resize(pixels: Pixels, view: View, out: Pixels) -> None:
    """Write a view of the image `pixels` [H, W, 3] to `out` [S, S, 3], a row of a batch, which saves a copy.

    Both are C-contiguous uint8, and `pixels` may be read-only. The compiled library releases the GIL.
    """
    if not out.flags.writeable:
        raise ValueError(f"{_OPERATOR}: out is read-only")
    if not has_kernel("cpu"):
        _check_image(pixels, out)
        _with_pillow(pixels, view, out, 0)
        return
    try:
        torch.ops.udskd.crop_resize_one.default(_tensor(pixels), *view, torch.from_numpy(out))
    except RuntimeError as error:
        raise _to_value_error(error) from None


def crop_resize_batch(
    pixels: Tensor, offsets: Tensor, shapes: Tensor, views: npt.NDArray[np.int64], out: Tensor
) -> None:
    """Write the views of B images to `out`, on any device.

    On the CPU, torch.get_num_threads() threads divide the images among them. On CUDA, one kernel runs on the current
    stream, and the host does not wait for it. There the offsets are not on the host, so that the view of an image
    outside of `pixels` is black instead of an error.

    Args:
        pixels: all images in one tensor, uint8 [bytes].
        offsets: first byte of each image, int64 [B], on the same device.
        shapes: height and width of each image, int64 [B, 2], always on the CPU.
        views: a View of each image, int64 [B, 8].
        out: uint8 [B, S, S, 3], contiguous, on the same device.

    Raises:
        NotImplementedError: this build has no kernel for the device.
        ValueError: an argument is not as above, or a CUDA graph is being captured.
    """
    if not has_kernel(pixels.device.type):
        _batch_with_pillow(pixels, offsets, shapes, views, out)
        return
    try:
        torch.ops.udskd.crop_resize.default(pixels, offsets, shapes, _tensor(np.ascontiguousarray(views)), out)
    except RuntimeError as error:
        raise _to_value_error(error) from None


class _Writeable:
    """An array interface that declares the memory of a read-only array writeable."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array = array
        interface = array.__array_interface__
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    """A tensor over an array that is only read, without PyTorch's warning about read-only arrays."""
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Writeable(array)))


def _to_value_error(error: RuntimeError) -> Exception:
    """The operator's message about its arguments as a ValueError, without the location in the source."""
    message = str(error)
    begin = message.find(f"{_OPERATOR}: ")
    return error if begin < 0 else ValueError(message[begin:].splitlines()[0])


# --- without the compiled library -------------------------------------------------------------------------------------


def _batch_with_pillow(
    pixels: Tensor, offsets: Tensor, shapes: Tensor, views: npt.NDArray[np.int64], out: Tensor
) -> None:
    if pixels.device.type != "cpu":
        reason = _native.unavailable(pixels.device.type) if pixels.device.type == "cuda" else None
        raise NotImplementedError(f"views of images on {pixels.device}: {reason or 'there is no kernel for it'}")
    source, target = pixels.numpy(), out.numpy()
    for row, (begin, (height, width)) in enumerate(zip(offsets.tolist(), shapes.tolist(), strict=True)):
        needed = height * width * 3
        if begin < 0 or begin > len(source) - needed:
            where = f"of {needed} bytes at offset {begin} is not within the {len(source)} bytes of pixels"
            raise ValueError(f"{_OPERATOR}: image {row} {where}")
        image = source[begin : begin + needed].reshape(height, width, 3)
        _with_pillow(image, View(*views[row].tolist()), target[row], row)


def _with_pillow(pixels: Pixels, view: View, out: Pixels, row: int) -> None:
    size = len(out)
    _check_view(view, pixels.shape[0], pixels.shape[1], size, row)
    image = Image.fromarray(pixels).crop(view[:4])
    columns_first = image.height > view.height and image.height - view.height > 2 * (image.width - view.width)
    between = (image.width, view.height) if columns_first else (view.width, image.height)
    for shape in (between, (view.width, view.height)):
        image = image.resize(shape, Image.Resampling.BILINEAR)
    out[:] = np.asarray(image.crop((view.x, view.y, view.x + size, view.y + size)))


def _check_image(pixels: Pixels, out: Pixels) -> None:
    if out.ndim != 3 or out.shape[2] != 3 or out.shape[0] != out.shape[1] or not _is_plain(out):
        raise ValueError(f"{_OPERATOR}: out must be contiguous uint8 [size, size, 3]")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not _is_plain(pixels):
        raise ValueError(f"{_OPERATOR}: pixels must be contiguous uint8 [height, width, 3]")


def _is_plain(x: Pixels) -> bool:
    return x.dtype == np.uint8 and x.flags.c_contiguous


def _check_view(v: View, height: int, width: int, size: int, row: int) -> None:
    """The same checks and messages as check_view() in csrc/image/view.h."""
    problem = ""
    if not (0 <= v.left < v.right <= width and 0 <= v.top < v.bottom <= height):
        box = f"(left {v.left}, top {v.top}, right {v.right}, bottom {v.bottom})"
        problem = f"has the box {box}, which is empty or not within its {height} x {width} pixels"
    elif min(v.width, v.height) < 1 or max(v.width, v.height) > _MAX_SIDE:
        problem = f"is to be resized to width {v.width}, height {v.height}, expected 1 to {_MAX_SIDE}"
    elif not (0 <= v.x <= v.width - size and 0 <= v.y <= v.height - size):
        window = f"has the window of {size} pixels at x {v.x}, y {v.y}"
        problem = f"{window}, which is not within width {v.width}, height {v.height}"
    if problem:
        raise ValueError(f"{_OPERATOR}: image {row} {problem}")
