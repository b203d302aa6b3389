"""Photograph-like JPEG files for benchmarks where no images are at hand: as large, as detailed and as hard to decode as
ImageNet's (469 x 401 pixels and 110 KB on average)."""

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

SHAPES = ((500, 375), (375, 500), (500, 400), (440, 440))  # width and height
CLASSES = 10
VAL = 2  # images of each class: a tree must have some
QUALITY = 90
NOISES = 8  # different patterns of detail, each of which costs as much to make as several images to save


def photo(number: int, noises: list[np.ndarray]) -> Image.Image:
    """Soft shapes of a few colours, and detail of all scales: what a JPEG's size comes from."""
    rng = np.random.default_rng(number)
    width, height = SHAPES[number % len(SHAPES)]
    ground = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    soft = np.asarray(ground.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    detail = noises[number % len(noises)][:height, :width]
    return Image.fromarray(np.clip(soft + detail, 0, 255).astype(np.uint8))


def details() -> list[np.ndarray]:
    """float32 [500, 500, 1] each: noise of several scales, the larger the stronger, as in photographs."""
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
    noises, jobs = details(), []
    for split, number in (("train", count), ("val", VAL * CLASSES)):
        for k in range(number):
            folder = root / split / f"class{k % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            jobs.append((k if split == "train" else count + k, folder / f"{k:06d}.jpg"))

    def one(job: tuple[int, Path]) -> None:
        number, path = job
        file = io.BytesIO()
        photo(number, noises).save(file, "JPEG", quality=QUALITY)
        path.write_bytes(file.getvalue())

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, jobs))
    return root


def link(root: Path, folder: Path, count: int) -> Path:
    """A tree of links to `count` training images of another tree, of all classes alike, and to a few of val."""
    for split, images, wanted in zip(("train", "val"), open_folder(root), (count, 1), strict=True):
        each = -(-wanted // len(images.classes))
        taken: Counter[int] = Counter()
        for path, label in zip(images.paths, images.labels.tolist(), strict=True):
            if taken[label] < each:
                target = folder / split / images.classes[label] / f"{taken[label]:06d}{Path(path).suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(Path(path).resolve())
                taken[label] += 1
    return folder


@contextmanager
def tree(root: str | None, count: int, threads: int) -> Iterator[Path]:
    """A tree of about `count` training images, of the one that is given or generated, that is gone afterwards."""
    with TemporaryDirectory(prefix="udskd-bench-") as name:
        if root is None:
            print(f"generating {count} JPEG files", flush=True)
        yield write(Path(name), count, threads) if root is None else link(Path(root), Path(name), count)
