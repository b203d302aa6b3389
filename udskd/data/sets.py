"""What an image set is: numbered images with labels, and the error for a file that is not an image."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image


class UnreadableImage(Exception):
    """One image cannot be decoded: `name` says which, `reason` says why. Whether that is fatal, the reader decides."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both go to args, so that the exception survives pickling between processes
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class ImageSet(ABC):
    """N labelled images of C classes, numbered from 0; the same number is always the same image."""

    classes: tuple[str, ...]
    """Names of the C classes, in the order of their labels."""
    labels: npt.NDArray[np.int64]
    """Label of every image, [N]."""

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    @abstractmethod
    def name(self, index: int) -> str:
        """Which image this is, for messages: the path of a file."""

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Decode one image, in mode RGB.

        Raises:
            UnreadableImage: the file is missing, damaged, or not an image.
        """


def few(items: Iterable[str], limit: int = 3) -> str:
    """The first items of a list for a message, and how many more there are."""
    names = list(items)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def class_hash(classes: Iterable[str]) -> str:
    """SHA-256 (hex) of the class names in order, each ended by a newline: sets with the same hash label alike."""
    return hashlib.sha256("".join(f"{name}\n" for name in classes).encode()).hexdigest()
