"""Trees of images for benchmarks: links to a given tree, or generated JPEG files whose size and decoding time are those
of ImageNet's (469 x 401 pixels and 110 KB on average)."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from udskd.data import open_folder
from udskd.files import create

SHAPES = ((500, 375), (375, 500), (500, 400), (440, 440))  # width and height
CLASSES = 10
VAL = 2  # validation images of each class, without which a tree is refused
QUALITY = 90
NOISES = 8  # patterns of detail; generating one takes as long as saving several images


def photo(number: int, noises: list[np.ndarray]) -> Image.Image:
    """Soft shapes of a few colours, and detail of all scales, which determines the size of a JPEG file."""
    rng = np.random.default_rng(number)
    width, height = SHAPES[number % len(SHAPES)]
    shapes = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    soft = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    detail = noises[number % len(noises)][:height, :width]
    return Image.fromarray(np.clip(soft + detail, 0, 255).astype(np.uint8))


def make_noises() -> list[np.ndarray]:
    """float32 [500, 500, 1] each: noise of several scales, stronger at larger scales, as in photographs."""
    rng, out = np.random.default_rng(0), []
    for _ in range(NOISES):
        total = np.zeros((500, 500), dtype=np.float32)
        for scale in (1, 2, 4, 8, 16):
            small = rng.normal(0, 10 * scale**0.5, (500 // scale, 500 // scale)).astype(np.float32)
            total += np.asarray(Image.fromarray(small).resize((500, 500), Image.Resampling.BICUBIC))
        out.append(total[..., None])
    return out


def write(root: Path, count: int, threads: int) -> Path:
    """train/ with `count` images of CLASSES classes, and val/ with a few."""
    noises, files = make_noises(), list[tuple[int, Path]]()
    for split, number in (("train", count), ("val", VAL * CLASSES)):
        for k in range(number):
            folder = root / split / f"class{k % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            files.append((k if split == "train" else count + k, folder / f"{k:06d}.jpg"))

    def write_one(file: tuple[int, Path]) -> None:
        number, path = file
        data = io.BytesIO()
        photo(number, noises).save(data, "JPEG", quality=QUALITY)
        with create(path) as target:
            target.write(data.getvalue())

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write_one, files))
    return root


def link(root: Path, folder: Path, count: int) -> Path:
    """A tree of links to `count` training images of another tree, equally many of each class, and to a few of val."""
    for split, images, wanted in zip(("train", "val"), open_folder(root), (count, 1), strict=True):
        each = -(-wanted // len(images.classes))
        linked: Counter[int] = Counter()
        for path, label in zip(images.paths, images.labels.tolist(), strict=True):
            if linked[label] < each:
                target = folder / split / images.classes[label] / f"{linked[label]:06d}{Path(path).suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(Path(path).resolve())
                linked[label] += 1
    return folder


@contextmanager
def tree(root: str | None, count: int, threads: int) -> Iterator[Path]:
    """A temporary tree of about `count` training images: links into `root`, or generated files if root is None."""
    with TemporaryDirectory(prefix="udskd-bench-") as name:
        if root is None:
            print(f"generating {count} JPEG files", flush=True)
        yield write(Path(name), count, threads) if root is None else link(Path(root), Path(name), count)
