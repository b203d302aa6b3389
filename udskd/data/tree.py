"""One split of an ImageFolder tree: its class folders, the image files below them, and the ignored files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from udskd.data.formats import SUFFIXES, begins_as_image, suffix_of
from udskd.errors import DataError

READ_ALREADY = "link to a folder that is read already"
BROKEN = "broken link"
OUTSIDE = "outside the class folders"
NO_SUFFIX = "without suffix"
OTHER = "other"
_LONGEST_SUFFIX = 10  # characters; a longer one is probably a part of the name


class Tree:
    """The folder of one split. Hidden files and folders, whose names begin with a dot, are ignored at any depth.

    Every folder is read once. A link to a folder is followed unless this folder is below or above a class folder, or
    below or above the target of another link that was followed. So no link can cause a loop or repeat an image.

    Raises:
        DataError: the folder is missing or cannot be listed.
    """

    def __init__(self, split: Path, other: Path | None = None) -> None:
        """other: the folder of the other split; links to its class folders are not followed."""
        self.split = split
        self.ignored: Counter[str] = Counter()
        """The number of ignored files and links, by kind, without hidden ones."""
        self.folders: dict[str, int] = {}
        """The number of images in each folder that has been read, by its real path."""
        self.classes = self._find_classes()
        """Names of the class folders, sorted."""
        if other is not None and other.is_dir():
            self._read.add(*Tree(other)._read.folders)

    def files(self, name: str) -> list[str]:
        """Paths of the image files below a class folder, folder by folder, in the order of torchvision's ImageFolder.

        An image file has the suffix of a known format, or no suffix and the first bytes of an image. A broken link with
        such a suffix counts as an image that cannot be read.

        Raises DataError if a folder cannot be listed.
        """
        found: dict[str, list[str]] = {}
        waiting = [os.path.join(self.split, name)]
        while waiting:
            folder = waiting.pop()
            entries = list(_visible(folder))
            found[folder] = [entry.path for entry in entries if not _is_folder(entry) and self._is_image(entry)]
            self.folders[os.path.realpath(folder)] = len(found[folder])
            inner = [entry for entry in entries if _is_folder(entry)]
            read = [entry.path for entry in inner if not entry.is_symlink() or self._follows(entry)]
            waiting += reversed(read)
        return [path for folder in sorted(found) for path in found[folder]]

    def _find_classes(self) -> list[str]:
        base = Path(os.path.realpath(self.split))
        self._read = _Folders()
        self._read.add_above(base)
        names, links = [], []
        for entry in _visible(self.split):
            if not _is_folder(entry):
                self.ignored[BROKEN if _is_broken(entry) else OUTSIDE] += 1
            elif entry.is_symlink():
                links.append(entry)
            else:
                names.append(entry.name)
        self._read.add(*(base / name for name in names))
        return sorted([*names, *(link.name for link in links if self._follows(link))])

    def _follows(self, link: os.DirEntry[str]) -> bool:
        """Whether the target of a link overlaps no folder that is read; if so, it is added to these folders."""
        target = Path(os.path.realpath(link.path))
        if self._read.overlap(target):
            self.ignored[READ_ALREADY] += 1
            return False
        self._read.add(target)
        return True

    def _is_image(self, entry: os.DirEntry[str]) -> bool:
        """Whether a file is an image. Any other is counted as ignored."""
        suffix = suffix_of(entry.name)
        if suffix in SUFFIXES:
            return True
        if not suffix and _begins_as_image(entry):
            return True
        self.ignored[_kind(entry, suffix)] += 1
        return False


class _Folders:
    """A set of folders, by their real paths, each with everything below it."""

    def __init__(self) -> None:
        self.folders: set[Path] = set()
        self._above: set[Path] = set()

    def add(self, *folders: Path) -> None:
        self.folders.update(folders)
        for folder in folders:
            self._above.update(folder.parents)

    def add_above(self, folder: Path) -> None:
        """Count this folder and those above it as overlapping, but not other folders below it."""
        self._above.update((folder, *folder.parents))

    def overlap(self, folder: Path) -> bool:
        """Whether a folder is in the set, or below or above a folder of the set."""
        return folder in self._above or not self.folders.isdisjoint((folder, *folder.parents))


def _visible(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder without hidden ones, sorted by name. DataError if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            yield from sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror or error}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder without permission
        return False


def _is_broken(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _begins_as_image(entry: os.DirEntry[str]) -> bool:
    try:
        return begins_as_image(entry.path)
    except OSError:
        return False


def _kind(entry: os.DirEntry[str], suffix: str) -> str:
    if _is_broken(entry):
        return BROKEN
    if not suffix:
        return NO_SUFFIX
    return suffix if len(suffix) <= _LONGEST_SUFFIX and suffix.isprintable() else OTHER


def find_files(tree: Tree, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """Paths and labels of the images of the given classes, class by class in the order of their names. A label is the
    index of a class in `classes`. Raises DataError if a folder cannot be listed."""
    paths: list[str] = []
    labels: list[int] = []
    for name, label in sorted((name, label) for label, name in enumerate(classes)):
        files = tree.files(name)
        paths += files
        labels += [label] * len(files)
    return paths, labels
