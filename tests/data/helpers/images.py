"""Small image trees made with PIL, and image sets in memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from udskd.data.dataset import ImageSet, UnreadableImage


def photo(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A colour image without symmetries, width x height: smooth, so that it survives JPEG."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    channels = [x, y**2, 0.5 + 0.5 * np.sin(3 * x + 5 * y + seed)]
    return Image.fromarray((np.stack(channels, axis=-1) * 255).astype(np.uint8))


def make_tree(root: Path, classes: Iterable[str] = ("cat", "dog"), train: int = 3, val: int = 2) -> Path:
    """An ImageFolder tree of PNGs, with `train` and `val` images in each class."""
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for k in range(count):
                photo(10 * label + k).save(root / split / name / f"{k}.png")
    return root


class MemorySet(ImageSet):
    """n images of 3 classes in memory; those in `bad` cannot be read."""

    def __init__(self, n: int, bad: Iterable[int] = (), size: tuple[int, int] = (12, 10)) -> None:
        self.classes = ("a", "b", "c")
        self.labels = np.arange(n, dtype=np.int64) % 3
        self.bad = frozenset(bad)
        self.size = size

    def name(self, index: int) -> str:
        return f"memory/{index}"

    def pixels(self, index: int) -> np.ndarray:
        if index in self.bad:
            raise UnreadableImage(self.name(index), "bad on purpose")
        return np.asarray(photo(index, self.size))
