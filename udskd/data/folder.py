"""ImageFolder trees: root/train/CLASS/*, root/val/CLASS/*."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from udskd.data.dataset import ImageSet, Pixels, abbreviate, common_classes, content_digest, file_mark
from udskd.data.decode import MAX_PIXELS, are_jpegs, read_area, read_bytes, read_pixels
from udskd.data.formats import SUFFIXES
from udskd.data.tree import Tree, find_files
from udskd.errors import DataError
from udskd.files import expand_user


class FolderSet(ImageSet):
    """One split of an ImageFolder tree: a folder for each class, with images at any depth below it, see `Tree`.

    A label is an index into `classes`, by default all class folders sorted by name.

    Raises:
        DataError: the folder is missing, cannot be listed or has no class folder, or a class has no image.
    """

    def __init__(
        self,
        split: str | Path,
        classes: Sequence[str] | None = None,
        other: Path | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """other: the folder of the other split; links to its class folders are not followed."""
        self.root, self.max_pixels = Path(split), max_pixels
        split = self.root
        tree = Tree(split, other)
        self.classes = tuple(_class_names(tree) if classes is None else classes)
        self.paths, labels = find_files(tree, self.classes)
        self.ignored, self.folders = tree.ignored, tree.folders
        self.labels = np.array(labels, dtype=np.int64)
        self.releases_gil = are_jpegs(self.paths)
        counts = np.bincount(self.labels, minlength=len(self.classes))
        _refuse_empty(self, [name for name, count in zip(self.classes, counts, strict=True) if count == 0])

    def name(self, index: int) -> str:
        return self.paths[index]

    def strip_root(self, name: str) -> str:
        return name.removeprefix(os.path.join(self.root, "")).replace(os.sep, "/")

    def mark(self, index: int) -> tuple[int, ...]:
        try:
            return file_mark(os.stat(self.paths[index]))
        except OSError:
            return ()

    def digest(self, index: int, checksum: str) -> str:
        return content_digest(read_bytes(self.paths[index], self.max_pixels), checksum)

    def pixels(self, index: int) -> Pixels:
        return read_pixels(self.paths[index], self.max_pixels)

    def area(self, index: int) -> int:
        return read_area(self.paths[index], self.max_pixels)


def describe_shared_images(train: ImageSet, val: ImageSet) -> str:
    """A sentence about the images that both splits contain through links to folders; "" if there are none."""
    if not isinstance(train, FolderSet) or not isinstance(val, FolderSet):
        return ""
    shared = train.folders.keys() & val.folders.keys()
    count = sum(val.folders[folder] for folder in shared)
    if not count:
        return ""
    first = next(path for path in val.paths if os.path.realpath(os.path.dirname(path)) in shared)
    images = "image" if count == 1 else "images"
    return f"train and val share {count} {images} (first: {first}): accuracy on val is not that of unseen images"


def _refuse_empty(images: FolderSet, empty: Sequence[str]) -> None:
    if empty:
        what = "class" if len(empty) == 1 else f"{len(empty)} classes"
        ignored = images.describe_ignored()
        raise DataError(
            f"no images in {what} {abbreviate(empty)} of {images.root}{f' ({ignored})' if ignored else ''}: add images "
            f"({' '.join(SUFFIXES)}) or remove the class from both splits"
        )


def _class_names(tree: Tree) -> list[str]:
    """The class folders of a split. DataError if there is none."""
    if not tree.classes:
        raise DataError(
            f"no class folders in {tree.split}: expected a folder of images for each class, {tree.split}/CLASS/*"
        )
    return tree.classes


def class_folders(split: Path) -> list[str]:
    """Names of the class folders of one split, sorted, without hidden folders.

    Raises:
        DataError: the split is missing or cannot be listed, or has no class folder.
    """
    if not split.exists():
        wanted = f"{split.parent}/train/CLASS/* and {split.parent}/val/CLASS/*"
        raise DataError(f"the {split.name} split is missing: there is no {split} (expected {wanted})")
    return _class_names(Tree(split))


def open_folder(
    root: str | Path, classes: int | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[FolderSet, FolderSet]:
    """The train and val splits of an ImageFolder tree, with the first `classes` classes in sorted order (or all).

    Images of more than max_pixels are unreadable.

    Raises:
        DataError: the root or a split is missing, the splits have different classes, a class is empty, or there are
            fewer than two classes or fewer than wanted.
    """
    root = expand_user(root)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f'the data root {root} {what}: give a folder with train/CLASS/* and val/CLASS/*, or "embedded"')
    train, val = root / "train", root / "val"
    names = common_classes(root, class_folders(train), class_folders(val), classes)
    return FolderSet(train, names, val, max_pixels), FolderSet(val, names, train, max_pixels)
