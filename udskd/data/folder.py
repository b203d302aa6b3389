"""ImageFolder trees: root/train/CLASS/*, root/val/CLASS/*."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from udskd.data.decode import are_jpegs, read_area, read_pixels
from udskd.data.sets import ImageSet, Pixels, common_classes, few
from udskd.errors import DataError


class FolderSet(ImageSet):
    """One split of an ImageFolder tree: a folder per class, images anywhere below it; hidden files are left out.

    Labels number `classes`, by default all class folders sorted by name.

    Raises:
        DataError: the folder is missing or cannot be listed, holds no class folder, or a class has no image.
    """

    def __init__(self, split: str | Path, classes: Sequence[str] | None = None) -> None:
        self.root = split = Path(split)
        self.classes = tuple(class_folders(split) if classes is None else classes)
        found = _ClassFolders(str(split), self.classes)
        self.paths = [path for path, _ in found.samples]
        self.labels = np.array(found.targets, dtype=np.int64)
        self.frees_lock = are_jpegs(self.paths)
        counts = np.bincount(self.labels, minlength=len(self.classes))
        _refuse_empty(split, [name for name, count in zip(self.classes, counts, strict=True) if count == 0])

    def name(self, index: int) -> str:
        return self.paths[index]

    def pixels(self, index: int) -> Pixels:
        return read_pixels(self.paths[index])

    def area(self, index: int) -> int:
        return read_area(self.paths[index])


class _ClassFolders(ImageFolder):
    """torchvision's tree walk for the given classes, without its own opinion on hidden files and empty classes."""

    def __init__(self, split: str, classes: Sequence[str]) -> None:
        self._wanted = {name: label for label, name in enumerate(classes)}
        super().__init__(split, is_valid_file=_is_image_name, allow_empty=True)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        return list(self._wanted), self._wanted


def _is_image_name(path: str) -> bool:
    name = os.path.basename(path).lower()
    return name.endswith(IMG_EXTENSIONS) and not name.startswith(".")


def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror or error}") from error


def _refuse_empty(split: Path, empty: Sequence[str]) -> None:
    for name in empty:
        _subfolders(split / name)  # a folder that must not be listed looks empty to the tree walk
    if empty:
        what = "class" if len(empty) == 1 else f"{len(empty)} classes"
        raise DataError(
            f"no images in {what} {few(empty)} of {split}: add images ({' '.join(IMG_EXTENSIONS)}) or remove the class "
            "from both splits"
        )


def class_folders(split: Path) -> list[str]:
    """Names of the class folders of one split, sorted; hidden folders are no classes.

    Raises:
        DataError: the split is missing or cannot be listed, or has no class folder.
    """
    if not split.exists():
        wanted = f"{split.parent}/train/CLASS/* and {split.parent}/val/CLASS/*"
        raise DataError(f"the {split.name} split is missing: there is no {split} (expected {wanted})")
    names = _subfolders(split)
    if not names:
        raise DataError(f"no class folders in {split}: expected a folder of images for each class, {split}/CLASS/*")
    return names


def open_folder(root: str | Path, classes: int | None = None) -> tuple[FolderSet, FolderSet]:
    """The train and val splits of an ImageFolder tree, with the first `classes` classes in sorted order (or all).

    Raises:
        DataError: the root or a split is missing, the splits have different classes, a class is empty, or fewer than
            two classes (or than the wanted number) are there.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f'the data root {root} {what}: give a folder with train/CLASS/* and val/CLASS/*, or "embedded"')
    names = common_classes(root, class_folders(root / "train"), class_folders(root / "val"), classes)
    return FolderSet(root / "train", names), FolderSet(root / "val", names)
