"""The formats of image files: their suffixes, their first bytes, and which of them the installed Pillow can decode."""

from __future__ import annotations

import os
import re
import warnings
from typing import NamedTuple

from PIL import features

from udskd.files import open_regular


class Format(NamedTuple):
    """One format, by Pillow's name."""

    name: str
    suffixes: tuple[str, ...]
    beginning: bytes
    """A regular expression for the first bytes of every such file."""
    codec: str | None = None
    """The codec that Pillow must be built with, by its name in PIL.features; None if it needs none."""


_ALL = (
    Format("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), rb"\xff\xd8\xff"),
    Format("PNG", (".png", ".apng"), rb"\x89PNG\r\n\x1a\n"),
    Format("BMP", (".bmp",), rb"BM.{4}\0{4}.{4}[\x0c(48@l|]\0\0\0"),
    Format("PPM", (".ppm", ".pgm", ".pbm", ".pnm"), rb"P[1-6]\s+[\d#]"),
    Format("TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]"),
    Format("WEBP", (".webp",), rb"RIFF.{4}WEBP", "webp"),
    Format("GIF", (".gif",), rb"GIF8[79]a"),
    Format("AVIF", (".avif",), rb".{4}ftypavi[fs]", "avif"),
    Format(
        "JPEG2000",
        (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
        "jpg_2000",
    ),
)
_LONGEST = 32  # bytes: no beginning is longer


def _has_codec(name: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a name that an older Pillow does not have
        return bool(features.check(name))


FORMATS = tuple(format for format in _ALL if format.codec is None or _has_codec(format.codec))
"""The formats that the installed Pillow can decode."""
NAMES = tuple(format.name for format in FORMATS)
SUFFIXES = tuple(suffix for format in FORMATS for suffix in format.suffixes)
JPEG_SUFFIXES = _ALL[0].suffixes
_BEGINNING = re.compile(b"|".join(b"(?:%s)" % format.beginning for format in FORMATS), re.DOTALL)


def missing_codec(name: str) -> str | None:
    """The format that a file's suffix names, if Pillow lacks its codec; else None."""
    suffix = suffix_of(name)
    return next((format.name for format in _ALL if format not in FORMATS and suffix in format.suffixes), None)


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case, with the dot; "" if there is none."""
    suffix = os.path.splitext(name)[1].lower()
    return "" if suffix == "." else suffix


def begins_as_image(path: str) -> bool:
    """Whether a regular file's first bytes are those of an image. Raises OSError if it cannot be read."""
    with open_regular(path) as file:
        return _BEGINNING.match(file.read(_LONGEST)) is not None
