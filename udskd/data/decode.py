"""Image files of any kind that PIL reads, as RGB; and one error for all the ways in which a file can be bad."""

from __future__ import annotations

import os
import stat
import warnings

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from udskd.data.sets import UnreadableImage

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str) -> Image.Image:
    """Decode an image file into RGB, as a person sees it.

    The camera's EXIF orientation is applied (torchvision's ImageFolder ignores it), 16-bit grey is scaled to 8 bits,
    transparency is dropped as torchvision does, and of an animation the first frame is taken. Damage inside a file of
    full length can go unnoticed: JPEG has no checksum.

    Raises:
        UnreadableImage: the file is missing, damaged, not an image, or claims more pixels than PIL thinks safe.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise ValueError("not a regular file")
        if status.st_size == 0:
            raise ValueError("the file is empty")
        return _decode(path)
    except UnidentifiedImageError as error:
        raise UnreadableImage(path, "not an image of a known format") from error
    except Exception as error:  # on damaged files PIL's decoders raise almost anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnreadableImage(path, " ".join(reason.split()) or type(error).__name__) from error


def _decode(path: str) -> Image.Image:
    with warnings.catch_warnings():
        # PIL remarks on odd but readable files; from the workers that would break into the progress, epoch after epoch.
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            image.load()
            return _upright(_to_rgb(image), image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f'pixels of mode "{image.mode}" have no known brightness range, save them with 8 or 16 bits')
    return image.convert("RGB")


def _upright(image: Image.Image, source: Image.Image) -> Image.Image:
    try:
        orientation = source.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata does not make the pixels unreadable
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
