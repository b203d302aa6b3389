"""decode: JPEGs that simplejpeg decodes have the pixels and the errors of PIL."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.data.helpers.images import photo
from udskd.data import decode
from udskd.data.dataset import UnreadableImage

PHOTOS = Path("/tmp/data/caltech-20")
pytestmark = pytest.mark.skipif(decode.simplejpeg is None, reason="simplejpeg is not installed")


@contextmanager
def without_simplejpeg() -> Iterator[None]:
    module, decode.simplejpeg = decode.simplejpeg, None
    try:
        yield
    finally:
        decode.simplejpeg = module


def noise(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def result_of(data: bytes) -> np.ndarray | str:
    try:
        return decode.decode(data, "x.jpg")
    except UnreadableImage as error:
        return error.reason


def assert_as_pil(data: bytes) -> None:
    found = result_of(data)
    with without_simplejpeg():
        expected = result_of(data)
    assert type(found) is type(expected)
    np.testing.assert_array_equal(found, expected)


@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    mode=st.sampled_from(["RGB", "L"]),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    progressive=st.booleans(),
    smooth=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_jpegs_have_pils_bits(
    width: int, height: int, mode: str, quality: int, subsampling: str, progressive: bool, smooth: bool, seed: int
) -> None:
    image = photo(seed, (width, height)) if smooth else noise(width, height, seed)
    options = {} if mode == "L" else {"subsampling": subsampling}
    data = jpeg(image.convert(mode), quality=quality, progressive=progressive, **options)
    assert decode.is_simple_jpeg(data)
    assert_as_pil(data)
    np.testing.assert_array_equal(decode.decode(data, ""), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", range(0, 10))
def test_oriented_jpegs_have_pils_bits(mode: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_as_pil(jpeg(photo().convert(mode), exif=exif))


ODD = {
    "colours without a transform": {"keep_rgb": True},
    "a profile": {"icc_profile": b"not a profile" * 9},
    "a comment": {"comment": b"hello"},
    "restart markers": {"restart_marker_blocks": 2},
    "a frame per colour": {"streamtype": 0, "optimize": True},
    "an orientation in XMP": {"xmp": b'<x:xmpmeta tiff:Orientation="6"></x:xmpmeta>'},
}


@pytest.mark.parametrize("name", ODD)
def test_odd_jpegs_have_pils_bits(name: str) -> None:
    assert_as_pil(jpeg(photo(), **ODD[name]))


@given(seed=st.integers(0, 10**6), count=st.integers(1, 4), header=st.booleans())
def test_damaged_jpegs_give_the_result_of_pil(seed: int, count: int, header: bool) -> None:
    data = bytearray(jpeg(noise(50, 40, 0), quality=80))
    generator = random.Random(seed)
    for _ in range(count):
        data[generator.randrange(620 if header else len(data))] = generator.randrange(256)
    assert_as_pil(bytes(data))


def test_shortened_jpegs_give_the_result_of_pil() -> None:
    for data in (jpeg(photo(), quality=80), jpeg(photo(), progressive=True)):
        for length in range(0, len(data) + 1, 7):
            assert_as_pil(data[:length])
        assert_as_pil(data[:-1])
        assert_as_pil(data + b"trailing bytes")


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"needs {PHOTOS}")
def test_photographs_have_pils_bits() -> None:
    for path in sorted(PHOTOS.rglob("*.jpg"))[::8]:
        assert_as_pil(path.read_bytes())
