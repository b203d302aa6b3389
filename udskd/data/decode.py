"""Image files of the known formats as RGB; and one error for all the ways in which a file can be bad."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from udskd.data.dataset import Pixels, UnreadableImage
from udskd.data.formats import JPEG_SUFFIXES, NAMES

try:
    import simplejpeg  # type: ignore[import-untyped]  # PIL's bits, from the same library, in less time
except ImportError:
    simplejpeg = None

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Segments of a JPEG; those in _SIMPLE (the last three are tables and restarts) leave no question about its pixels.
_JFIF, _BASELINE, _PROGRESSIVE, _SCAN = 0xFFE0, 0xFFC0, 0xFFC2, 0xFFDA
_SIMPLE = {_JFIF, _BASELINE, _PROGRESSIVE, 0xFFDB, 0xFFC4, 0xFFDD}
# Tags of a TIFF.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def read_pixels(path: str) -> Pixels:
    """Decode an image file, see `decode`.

    Raises:
        UnreadableImage: the file is missing, damaged, not an image, or claims more pixels than PIL thinks safe.
    """
    return decode(read_bytes(path), path)


def read_bytes(path: str) -> bytes:
    """The bytes of a regular file. Raises UnreadableImage if it is missing, must not be read or is empty."""
    with translate_errors(path):
        _check(path)
        with open(path, "rb") as file:
            return file.read()


def decode(data: bytes, name: str) -> Pixels:
    """Decode an image file's bytes into RGB as a person sees it, uint8 [H, W, 3], C-contiguous, perhaps read-only.

    The camera's EXIF orientation is applied (torchvision's ImageFolder ignores it), 16-bit grey is scaled to 8 bits,
    transparency is dropped as torchvision does, and of an animation the first frame is taken. Damage inside a file of
    full length can go unnoticed: JPEG has no checksum.

    Raises:
        UnreadableImage: called `name`; the bytes are damaged, no image, or claim more pixels than PIL thinks safe.
    """
    with translate_errors(name):
        if is_simple_jpeg(data) and (pixels := _decode_jpeg(data)) is not None:
            return pixels
        with open_image(data) as image:
            if _is_plain(image) and (pixels := _decode_jpeg(data)) is not None:
                return pixels
            return pixels_of(image)


def pixels_of(image: Image.Image) -> Pixels:
    """The pixels of an image that PIL has opened, see `decode`. Raises whatever PIL does for a damaged one."""
    image.load()
    turn, rgb = _orientation(image), _to_rgb(image)
    return np.asarray(rgb if turn is None else rgb.transpose(turn))


def read_area(path: str) -> int:
    """H x W of an image file, from its header alone. Raises UnreadableImage as read_pixels does, as far as it looks."""
    with translate_errors(path):
        _check(path)
        with open_image(path) as image:
            return int(image.width * image.height)


def _check(path: str) -> None:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise ValueError("not a regular file")
    if status.st_size == 0:
        raise ValueError("the file is empty")


_warning_filter: object = None


def open_image(source: str | bytes) -> Image.Image:
    """PIL's reader of an image (path or bytes) of a known format, without PIL's remarks on odd but readable files.

    Other formats are refused whatever a file is called: for some of them PIL starts other programs.

    From workers they would break into the progress, epoch after epoch. warnings.catch_warnings is not for threads, so
    the filter stays: it is for PIL's modules alone.
    """
    global _warning_filter
    if warnings.filters[:1] != [_warning_filter]:
        warnings.filterwarnings("ignore", module=r"PIL\.")
        _warning_filter = warnings.filters[0]
    return Image.open(source if isinstance(source, str) else io.BytesIO(source), formats=NAMES)


@contextmanager
def translate_errors(name: str) -> Iterator[None]:
    """Turns whatever goes wrong into UnreadableImage: on damaged files PIL's decoders raise almost anything."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise UnreadableImage(
            name, "not an image of a known format, or of a variant that Pillow cannot decode"
        ) from error
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnreadableImage(name, " ".join(reason.split()) or type(error).__name__) from error


def are_jpegs(names: Iterable[str]) -> bool:
    """Whether most of these files are JPEGs by their names, and are not left to PIL, which is mostly Python."""
    jpegs = [name.lower().endswith(JPEG_SUFFIXES) for name in names]
    return simplejpeg is not None and 2 * sum(jpegs) > len(jpegs)


def is_plain_jpeg(data: bytes) -> bool:
    """Whether the bytes of an image that was decoded are a JPEG, grey or in colours, to be shown as it is stored."""
    if is_simple_jpeg(data):
        return True
    with open_image(data) as image:
        return _is_plain(image)


def _is_plain(image: Image.Image) -> bool:
    return image.format == "JPEG" and image.mode in ("L", "RGB") and _orientation(image) is None


def is_simple_jpeg(data: bytes) -> bool:
    """Whether this is a JPEG, grey or in colours, whose header is all that there is to know: no EXIF, no profiles.

    A look at its segments, for asking PIL takes a tenth of the time of decoding a small image.
    """
    if data[:4] != b"\xff\xd8\xff\xe0":
        return False
    place = 2
    try:
        while True:
            marker, length = struct.unpack_from(">HH", data, place)
            if marker not in _SIMPLE:
                return bool(marker == _SCAN)
            if marker in (_BASELINE, _PROGRESSIVE):
                bits, height, width, channels = struct.unpack_from(">BHHB", data, place + 4)
                if bits != 8 or channels not in (1, 3) or not 0 < height * width <= (Image.MAX_IMAGE_PIXELS or 0):
                    return False
            if length < (16 if marker == _JFIF else 2):
                return False
            place += 2 + length
    except struct.error:
        return False


def _decode_jpeg(data: bytes) -> Pixels | None:
    """By libjpeg-turbo itself, without Python's lock; None if it complains: PIL knows what is to be said."""
    if simplejpeg is None:
        return None
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data)
    except ValueError:
        return None
    return pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL would clip at 255
        return Image.fromarray(_high_bits(image)).convert("RGB")
    if image.mode == "I" and image.format == "PPM":  # of PGM, PIL scales all above 8 bits to 16
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(
            f'pixels of mode "{image.mode}" have no known brightness range, save them as whole numbers of 8 or 16 bits '
            "without a sign"
        )
    return image.convert("RGB")


def _high_bits(image: Image.Image) -> Pixels:
    """The upper 8 bits of grey pixels, [H, W]. In a TIFF they may have 12 bits, and 0 may be white; PIL hands both on
    as they are stored."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    (bits,) = tags.get(_BITS_PER_SAMPLE, (16,))
    pixels: Pixels = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return ~pixels if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else pixels


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """What makes a photograph upright, by its EXIF orientation."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata does not make the pixels unreadable
        return None
