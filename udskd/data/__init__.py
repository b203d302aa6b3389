"""Image sets, their views, and the loaders that turn them into batches. Importing this imports torchvision."""

from __future__ import annotations

from udskd.config import DataConfig
from udskd.data.batch import Batch
from udskd.data.embedded import EmbeddedSet
from udskd.data.folder import FolderSet, open_folder
from udskd.data.loader import EvalLoader, TrainLoader, check_readable
from udskd.data.prepare import to_device
from udskd.data.sets import ImageSet, UnreadableImage, class_hash
from udskd.errors import DataError

__all__ = [
    "Batch",
    "EmbeddedSet",
    "EvalLoader",
    "FolderSet",
    "ImageSet",
    "TrainLoader",
    "UnreadableImage",
    "check_readable",
    "class_hash",
    "open_folder",
    "open_sets",
    "to_device",
]


def open_sets(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    """The train and val sets that `config.root` names: an ImageFolder tree, or the generated set for "embedded".

    Raises:
        DataError: the tree is not as it should be, or data.classes does not fit.
    """
    if config.root != "embedded":
        return open_folder(config.root, config.classes)
    train, val = EmbeddedSet("train"), EmbeddedSet("val")
    count = len(train.classes)
    if config.classes not in (None, count):
        raise DataError(f"data.classes is {config.classes}, but the embedded set always has {count} classes")
    return train, val
