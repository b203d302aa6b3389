"""Image files of the known formats as RGB, and one error for everything that can be wrong with a file."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from udskd.config.schema import DataConfig
from udskd.data.dataset import Pixels, UnreadableImage
from udskd.data.formats import JPEG_SUFFIXES, NAMES
from udskd.files import open_regular, read_regular

try:
    import simplejpeg  # type: ignore[import-untyped]  # faster than PIL, with the same bits: both use libjpeg-turbo
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
# Segments of a JPEG. Those in _SIMPLE (the last three are tables and restarts) do not change what its pixels mean.
_JFIF, _BASELINE, _PROGRESSIVE, _SCAN = 0xFFE0, 0xFFC0, 0xFFC2, 0xFFDA
_SIMPLE = {_JFIF, _BASELINE, _PROGRESSIVE, 0xFFDB, 0xFFC4, 0xFFDD}
# Tags of a TIFF.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


MAX_PIXELS = DataConfig.max_pixels
_BYTES_PER_PIXEL, _MORE_BYTES = 16, 2**26  # of a file: pixels as text, 16 bits of each of RGBA; and metadata


def read_pixels(path: str, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode an image file, see `decode`.

    Raises:
        UnreadableImage: the file is missing, damaged, not an image, or too large.
    """
    return decode(read_bytes(path, max_pixels), path, max_pixels)


def read_bytes(path: str, max_pixels: int = MAX_PIXELS) -> bytes:
    """The bytes of a regular file. Raises UnreadableImage if it is missing, not permitted, empty, or longer than an
    image of max_pixels can be."""
    with translate_errors(path):
        data = read_regular(path, _BYTES_PER_PIXEL * max_pixels + _MORE_BYTES)
        if not data:
            raise ValueError("the file is empty")
        return data


def decode(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode an image file's bytes into upright RGB, uint8 [H, W, 3], C-contiguous, possibly read-only.

    The EXIF orientation is applied (torchvision's ImageFolder ignores it), 16-bit grey is scaled to 8 bits, and
    transparency is dropped as torchvision does; an animation gives its first frame. Damage inside a file of full length
    can stay undetected: JPEG has no checksum.

    Raises:
        UnreadableImage: with this `name`; the bytes are damaged or not an image, or the image has more than max_pixels,
            which its header shows, so that nothing is decoded.
    """
    _configure_pillow()  # also for later steps, such as cropping what the fast decoder has decoded
    with translate_errors(name):
        if is_simple_jpeg(data, max_pixels) and (pixels := _decode_jpeg(data)) is not None:
            return pixels
        with open_image(data, max_pixels) as image:
            if _is_plain(image) and (pixels := _decode_jpeg(data)) is not None:
                return pixels
            return pixels_of(image)


def pixels_of(image: Image.Image) -> Pixels:
    """The pixels of an image that PIL has opened, see `decode`. Raises what PIL raises for a damaged one."""
    image.load()
    transpose, rgb = _orientation(image), _to_rgb(image)
    return np.asarray(rgb if transpose is None else rgb.transpose(transpose))


def read_area(path: str, max_pixels: int = MAX_PIXELS) -> int:
    """H x W of an image file, from its header alone. Raises UnreadableImage for what the header shows."""
    with translate_errors(path), open_regular(path) as file, open_image(file, max_pixels) as image:
        return int(image.width * image.height)


_warning_filter: object = None


def _configure_pillow() -> None:
    """Switch off PIL's warnings about odd but readable files, and PIL's own limit of pixels.

    The warnings would interrupt the progress display in every epoch. warnings.catch_warnings is not thread-safe, so the
    filter stays installed; it concerns PIL's modules alone. The limit is replaced by max_pixels.
    """
    global _warning_filter
    if warnings.filters[:1] != [_warning_filter]:
        warnings.filterwarnings("ignore", module=r"PIL\.")
        _warning_filter = warnings.filters[0]
    Image.MAX_IMAGE_PIXELS = None


def open_image(source: BinaryIO | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image (a file or bytes) of a known format with PIL, which reads its header.

    Other formats are refused whatever the file's suffix is: PIL starts external programs for some of them.

    Raises ValueError for an image of more than max_pixels; else what PIL raises.
    """
    _configure_pillow()
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=NAMES)
    if image.width * image.height > max_pixels:
        image.close()
        raise ValueError(
            f"it has {image.width} x {image.height} pixels, more than the {max_pixels} that data.max_pixels allows"
        )
    return image


@contextmanager
def translate_errors(name: str) -> Iterator[None]:
    """Raises UnreadableImage in place of any exception: PIL's decoders raise almost any kind for damaged files."""
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
    """Whether most of these files have a JPEG's suffix, and simplejpeg decodes them: PIL holds the GIL for longer."""
    jpegs = [name.lower().endswith(JPEG_SUFFIXES) for name in names]
    return simplejpeg is not None and 2 * sum(jpegs) > len(jpegs)


def is_plain_jpeg(data: bytes, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether the bytes of a readable image are a grey or RGB JPEG whose orientation is upright."""
    if is_simple_jpeg(data, max_pixels):
        return True
    with open_image(data, max_pixels) as image:
        return _is_plain(image)


def _is_plain(image: Image.Image) -> bool:
    return image.format == "JPEG" and image.mode in ("L", "RGB") and _orientation(image) is None


def is_simple_jpeg(data: bytes, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether this is a grey or colour JPEG of at most max_pixels, without EXIF and profiles, by its segments.

    Opening a small image with PIL takes a tenth of the time of decoding it.
    """
    if data[:4] != b"\xff\xd8\xff\xe0":
        return False
    position = 2
    try:
        while True:
            marker, length = struct.unpack_from(">HH", data, position)
            if marker not in _SIMPLE:
                return bool(marker == _SCAN)
            if marker in (_BASELINE, _PROGRESSIVE):
                bits, height, width, channels = struct.unpack_from(">BHHB", data, position + 4)
                if bits != 8 or channels not in (1, 3) or not 0 < height * width <= max_pixels:
                    return False
            if length < (16 if marker == _JFIF else 2):
                return False
            position += 2 + length
    except struct.error:
        return False


def _decode_jpeg(data: bytes) -> Pixels | None:
    """Decode with libjpeg-turbo, which releases the GIL; None if it fails: PIL then gives the reason."""
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
    if image.mode == "I" and image.format == "PPM":  # PIL scales a PGM of more than 8 bits to 16
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(
            f'pixels of mode "{image.mode}" have no known brightness range, save them as whole numbers of 8 or 16 bits '
            "without a sign"
        )
    return image.convert("RGB")


def _high_bits(image: Image.Image) -> Pixels:
    """The upper 8 bits of grey pixels, [H, W]. A TIFF's may have 12 bits, and 0 may mean white; PIL returns them as
    they are stored."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    (bits,) = tags.get(_BITS_PER_SAMPLE, (16,))
    pixels: Pixels = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return ~pixels if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else pixels


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """The transposition that makes an image upright, from its EXIF orientation."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata does not make the pixels unreadable
        return None
