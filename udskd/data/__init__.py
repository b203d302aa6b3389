"""Image sets, and the loaders that make batches of their views."""

from __future__ import annotations

from udskd.config.schema import DataConfig
from udskd.data.batch import Batch
from udskd.data.dataset import ImageSet, UnreadableImage, class_hash
from udskd.data.folder import FolderSet, describe_shared_images, open_folder
from udskd.data.loader import EvalLoader, TrainLoader, check_readable
from udskd.data.normalize import normalize_batch
from udskd.data.pack import pack
from udskd.data.packed import PackedSet, has_packs, open_packs
from udskd.data.prefetch import prefetch_to_device
from udskd.data.shard import Shard
from udskd.data.synthetic import EmbeddedSet
from udskd.errors import DataError
from udskd.files import expand_user

__all__ = [
    "Batch",
    "EmbeddedSet",
    "EvalLoader",
    "FolderSet",
    "ImageSet",
    "PackedSet",
    "Shard",
    "TrainLoader",
    "UnreadableImage",
    "check_readable",
    "class_hash",
    "describe_shared_images",
    "normalize_batch",
    "open_folder",
    "open_sets",
    "pack",
    "prefetch_to_device",
]


def open_sets(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    """The train and val sets at `config.root`: packs, an ImageFolder tree, or the generated set ("embedded").

    Raises:
        DataError: the packs or the tree are invalid, or data.classes does not fit them.
    """
    if config.root != "embedded":
        root = expand_user(config.root)
        open_splits = open_packs if has_packs(root) else open_folder
        return open_splits(root, config.classes, config.max_pixels)
    train, val = EmbeddedSet("train"), EmbeddedSet("val")
    count = len(train.classes)
    if config.classes not in (None, count):
        raise DataError(f"data.classes is {config.classes}, but the embedded set always has {count} classes")
    return train, val
