"""decode: every kind of image file becomes RGB; every kind of bad file raises UnreadableImage."""

from __future__ import annotations

import io
import os
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.helpers.images import photo
from udskd.data import decode
from udskd.data.dataset import UnreadableImage
from udskd.data.decode import read_pixels


def saved(path: Path, image: Image.Image, **options: object) -> str:
    image.save(path, **options)
    return str(path)


def pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("extension", ["png", "bmp", "ppm", "tiff"])
def test_lossless_files_come_back_exactly(tmp_path: Path, extension: str) -> None:
    read = read_pixels(saved(tmp_path / f"x.{extension}", photo()))
    assert (read.dtype, read.flags.c_contiguous) == (np.uint8, True)
    np.testing.assert_array_equal(pixels(read), pixels(photo()))


@pytest.mark.parametrize("extension", ["jpg", "webp"])
def test_lossy_files_come_back_nearly(tmp_path: Path, extension: str) -> None:
    read = read_pixels(saved(tmp_path / f"x.{extension}", photo(), quality=95))
    assert np.abs(pixels(read) - pixels(photo())).mean() < 6


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    extension = "jpg" if mode == "CMYK" else "png"
    read = read_pixels(saved(tmp_path / f"x.{extension}", photo().convert(mode)))
    assert (read.dtype, read.shape) == (np.uint8, (30, 40, 3))
    tolerance = {"P": 20, "1": 130, "CMYK": 8}.get(mode, 1)
    grey = photo().convert("L").convert("RGB") if mode in ("L", "LA", "1") else photo()
    assert np.abs(pixels(read) - pixels(grey)).mean() < tolerance


def test_palette_with_transparency_becomes_rgb_without_a_warning(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", photo().convert("P"), transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_pixels(path).shape == (30, 40, 3)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))
    read = read_pixels(saved(tmp_path / "x.png", Image.fromarray(ramp)))
    np.testing.assert_array_equal(pixels(read)[..., 0], ramp // 256)


RAMP = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))


def pgm(maximum: int, plain: bool = False) -> bytes:
    """RAMP, scaled to a PGM's maximum."""
    values = np.rint(RAMP / 65535 * maximum).astype(">u2" if maximum > 255 else "u1")
    body = " ".join(map(str, values.reshape(-1))).encode() if plain else values.tobytes()
    return b"P%d 64 8 %d\n" % (2 if plain else 5, maximum) + body


def tiff(order: str, bits: int = 16, white_is_zero: bool = False) -> bytes:
    """RAMP as an uncompressed TIFF, of 16 or 12 bits, little-endian ("<") or big-endian (">")."""
    values = RAMP >> (16 - bits)
    values = 2**bits - 1 - values if white_is_zero else values
    data = values.astype(f"{order}u2").tobytes()
    if bits == 12:  # two pixels are three bytes, the higher bits first
        pairs = values.reshape(-1, 2).astype(np.uint32)
        whole = (pairs[:, 0] << 12) | pairs[:, 1]
        data = np.stack([whole >> 16, whole >> 8 & 255, whole & 255], axis=1).astype(np.uint8).tobytes()
    tags = {256: 64, 257: 8, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 0, 277: 1, 278: 8, 279: len(data)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4  # offset of the pixels
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + struct.pack(f"{order}I", 0) + data


DEEP = {
    "pgm": pgm(65535),
    "plain pgm": pgm(65535, plain=True),
    "12-bit pgm": pgm(4095),
    "10-bit pgm": pgm(1023),
    "plain 10-bit pgm": pgm(1023, plain=True),
    "little-endian tiff": tiff("<"),
    "big-endian tiff": tiff(">"),
    "inverted tiff": tiff("<", white_is_zero=True),
    "12-bit tiff": tiff("<", bits=12),
}


@pytest.mark.parametrize("content", DEEP.values(), ids=DEEP)
def test_grey_of_more_than_8_bits_is_scaled_in_every_container(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    read = pixels(read_pixels(str(tmp_path / "x.png")))
    assert np.abs(read - RAMP[..., None] // 256).max() <= 1  # 10 bits are rounded


@pytest.mark.parametrize("suffix", ["tiff", "jp2"])
def test_16_bit_grey_that_pil_writes_comes_back_as_its_upper_byte(tmp_path: Path, suffix: str) -> None:
    read = read_pixels(saved(tmp_path / f"x.{suffix}", Image.fromarray(RAMP)))
    np.testing.assert_array_equal(pixels(read)[..., 0], RAMP // 256)


def test_colours_of_16_bits_are_scaled(tmp_path: Path) -> None:
    (tmp_path / "x.ppm").write_bytes(b"P6 64 8 65535\n" + np.repeat(RAMP[..., None], 3, -1).astype(">u2").tobytes())
    read = pixels(read_pixels(str(tmp_path / "x.ppm")))
    assert np.abs(read - RAMP[..., None] // 256).max() <= 1


@pytest.mark.parametrize("content", [b"P4 8 2\n\xaa\x55", b"P1 8 2\n1 0 1 0 1 0 1 0 0 1 0 1 0 1 0 1"])
def test_bitmaps_become_black_and_white(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pbm").write_bytes(content)
    expected = np.tile([[0, 255], [255, 0]], (1, 4))
    np.testing.assert_array_equal(pixels(read_pixels(str(tmp_path / "x.pbm")))[..., 0], expected)


def test_signed_and_32_bit_pixels_are_refused_with_advice(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.tiff", Image.fromarray(RAMP.astype(np.int32)))
    with pytest.raises(UnreadableImage, match=r"save them as whole numbers of 8 or 16 bits without a sign"):
        read_pixels(path)


def test_unknown_formats_are_refused_whatever_the_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL would start Ghostscript for an EPS."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript was started"))
    for name in ("EPS", "ICO", "TGA", "PCX"):
        photo().save(tmp_path / "x.jpg", name)
        with pytest.raises(UnreadableImage, match="not an image of a known format"):
            read_pixels(str(tmp_path / "x.jpg"))


def test_a_file_may_have_the_suffix_of_another_known_format(tmp_path: Path) -> None:
    photo().save(tmp_path / "x.jpg", "PNG")
    np.testing.assert_array_equal(pixels(read_pixels(str(tmp_path / "x.jpg"))), pixels(photo()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    # What makes the stored pixels [H, W] upright for each value, from the EXIF standard.
    transform = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = read_pixels(saved(tmp_path / "x.png", photo(), exif=exif))
    np.testing.assert_array_equal(pixels(read), transform(pixels(photo())))


def test_damaged_exif_leaves_the_pixels(tmp_path: Path) -> None:
    read = read_pixels(saved(tmp_path / "x.jpg", photo(), exif=b"Exif\0\0MM\0*" + b"\xff" * 9))
    assert read.shape == (30, 40, 3)


def test_exif_that_pil_cannot_parse_leaves_the_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Image.Image) -> Image.Exif:
        raise SyntaxError("not a TIFF file")

    path = saved(tmp_path / "x.png", photo())
    monkeypatch.setattr(Image.Image, "getexif", broken)
    np.testing.assert_array_equal(pixels(read_pixels(path)), pixels(photo()))


def test_the_reason_is_one_line_even_if_pils_message_has_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_with_two_lines(_: str, **options: object) -> Image.Image:
        raise ValueError("two\nlines")

    path = saved(tmp_path / "x.png", photo())
    monkeypatch.setattr(Image, "open", fail_with_two_lines)
    with pytest.raises(UnreadableImage, match="two lines"):
        read_pixels(path)


def test_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.webp", photo(0), save_all=True, append_images=[photo(9)], lossless=True)
    np.testing.assert_array_equal(pixels(read_pixels(path)), pixels(photo(0)))


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def whole(extension: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return Path(saved(Path(folder) / f"x.{extension}", photo(size=(200, 150)), quality=90)).read_bytes()


BAD = {
    "empty.jpg": (b"", "empty"),
    "text.jpg": (b"these are not the pixels you are looking for\n" * 20, "known format"),
    "header_only.jpg": (b"\xff\xd8\xff\xe0", ""),
    "zeros.png": (bytes(5000), "known format"),
    "half.jpg": (whole("jpg")[: len(whole("jpg")) // 2], "truncated"),
    "half.png": (whole("png")[: len(whole("png")) // 2], ""),
    "half.webp": (whole("webp")[: len(whole("webp")) // 2], ""),
    "half.bmp": (whole("bmp")[: len(whole("bmp")) // 2], "truncated"),
    "bomb.png": (png_claiming(60000, 60000), "60000 x 60000 pixels"),
    "short.png": (png_claiming(64, 64), ""),
    "html.png": (b"<!doctype html><html><body>404 Not Found</body></html>", "known format"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_named_with_its_reason_on_one_line(tmp_path: Path, name: str) -> None:
    content, reason = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnreadableImage) as caught:
        read_pixels(str(path))
    assert caught.value.name == str(path)
    assert reason in caught.value.reason
    assert caught.value.reason
    assert "\n" not in caught.value.reason


# --- more pixels than are allowed -------------------------------------------------------------------------------------


def jpeg_claiming(side: int, exif: bytes = b"") -> bytes:
    """The first 1 KB of a JPEG of 13 x 13 pixels whose header claims another size."""
    file = io.BytesIO()
    photo(size=(13, 13)).save(file, "JPEG", exif=exif)
    size = struct.pack(">HH", 13, 13)
    return file.getvalue().replace(size, struct.pack(">HH", side, side), 1)


LARGE = {
    "simple.jpg": jpeg_claiming(13000),
    "with_exif.jpg": jpeg_claiming(13000, b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
    "large.png": png_claiming(13000, 13000),
    "text.ppm": b"P3 13000 13000 255 1 2 3",
    "beyond_pillow.png": png_claiming(13000, 13000 * 13000 * 2),
}


@pytest.mark.parametrize("name", LARGE)
def test_an_image_of_too_many_pixels_is_refused_undecoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: object) -> None:
        pytest.fail("the image was decoded")

    monkeypatch.setattr(decode, "_decode_jpeg", fail)
    monkeypatch.setattr(decode, "pixels_of", fail)
    (tmp_path / name).write_bytes(LARGE[name])
    reason = r"it has 13000 x \d+ pixels, more than the 90000000 that data\.max_pixels allows"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (read_pixels, decode.read_area):
            with pytest.raises(UnreadableImage, match=reason):
                read(str(tmp_path / name))


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_the_limit_is_the_largest_number_of_pixels(tmp_path: Path, extension: str) -> None:
    path = saved(tmp_path / f"x.{extension}", photo(size=(40, 30)))
    assert read_pixels(path, 1200).shape == (30, 40, 3)
    assert decode.read_area(path, 1200) == 1200
    for read in (read_pixels, decode.read_area):
        with pytest.raises(UnreadableImage, match="it has 40 x 30 pixels, more than the 1199"):
            read(path, 1199)


def test_pillows_own_limit_does_not_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_pixels(saved(tmp_path / "x.png", photo(size=(40, 30)))).shape == (30, 40, 3)


def test_a_file_that_is_longer_than_any_image_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "x.jpg", "wb") as file:
        file.truncate(2**32)  # without blocks on the disk
    with pytest.raises(UnreadableImage, match="it has 4294967296 bytes, more than"):
        read_pixels(str(tmp_path / "x.jpg"))


def test_every_shortened_file_is_refused(tmp_path: Path) -> None:
    for extension in ("jpg", "png", "webp"):
        content, path = whole(extension), tmp_path / f"x.{extension}"
        for length in range(0, len(content) - 64, 97):
            path.write_bytes(content[:length])
            with pytest.raises(UnreadableImage):
                read_pixels(str(path))


def test_flipped_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    refused = 0
    for extension in ("jpg", "png", "webp", "tiff", "bmp"):
        content, path = np.frombuffer(whole(extension), dtype=np.uint8), tmp_path / f"x.{extension}"
        for _ in range(60):
            damaged = content.copy()
            positions = generator.integers(0, min(len(content), 400), 5)
            damaged[positions] = generator.integers(0, 256, 5)
            path.write_bytes(damaged.tobytes())
            try:
                assert read_pixels(str(path)).shape[2] == 3
            except UnreadableImage:
                refused += 1
    assert refused > 50


def test_missing_file_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="No such file"):
        read_pixels(str(tmp_path / "gone.jpg"))


def test_a_pipe_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadableImage, match="it is a FIFO, not a file"):
        read_pixels(str(tmp_path / "pipe.jpg"))


def test_float_image_has_no_known_range(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.tiff", Image.fromarray(np.ones((4, 4), dtype=np.float32)))
    with pytest.raises(UnreadableImage, match="no known brightness range"):
        read_pixels(path)


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder that every user can read, and the permissions of an ordinary user: root can read any file."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        is_root = os.geteuid() == 0
        if is_root:
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if is_root:
                os.seteuid(0)


def test_forbidden_file_is_unreadable(unprivileged: Path) -> None:
    path = saved(unprivileged / "x.png", photo())
    assert read_pixels(path).shape == (30, 40, 3)
    os.chmod(path, 0)
    with pytest.raises(UnreadableImage, match="Permission denied"):
        read_pixels(path)
