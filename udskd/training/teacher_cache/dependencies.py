"""What a teacher's logits depend on: a cache records it, and a run must agree with it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from udskd.config.schema import Config
from udskd.data import ImageSet, UnreadableImage, class_hash
from udskd.models.checkpoints import fingerprint
from udskd.models.zoo import Model
from udskd.training.runtime.device import Runtime

VIEW_OPTIONS = ("image_size", "crop_scale", "flip", "mixup", "mean", "std")
"""The options of data that change the teacher's input."""
_PROBED_AREAS = 5

Dependencies = dict[str, Any]
"""Dependencies by name, with the types that JSON returns."""


def collect(config: Config, images: ImageSet, model: Model, runtime: Runtime) -> Dependencies:
    """Everything that the logits depend on, except the images' contents, which the manifest covers.

    Device, batch size, memory format and compilation are left out: they change the logits by rounding only.
    """
    values = {
        "seed": config.seed,
        "teacher.model": model.name,
        "teacher.stem": model.stem,
        "teacher.options": model.options or None,
        "teacher.sha256": fingerprint(model.module.state_dict()),
        "data.classes": len(images.classes),
        "data.class_hash": class_hash(images.classes),
        "data.images": len(images),
        "data.images_sha256": _hash_names_and_labels(images),
        "data.areas": _probe_areas(images),
        **{f"data.{name}": getattr(config.data, name) for name in VIEW_OPTIONS},
        "teacher.precision": str(runtime.dtype_of(config.teacher.precision)).removeprefix("torch."),
    }
    result: Dependencies = json.loads(json.dumps(values))
    return result


def first_difference(recorded: Dependencies, wanted: Dependencies) -> str | None:
    """The name of the first dependency that the cache was made with another value of; None if all agree."""
    return next((name for name, value in wanted.items() if not _agree(recorded.get(name), value)), None)


def _agree(recorded: Any, wanted: Any) -> bool:
    """Whether two values are equal. In lists (the areas), None agrees with everything."""
    if isinstance(recorded, list) and isinstance(wanted, list) and len(recorded) == len(wanted):
        return all(a == b or a is None or b is None for a, b in zip(recorded, wanted, strict=True))
    return bool(recorded == wanted)


def _hash_names_and_labels(images: ImageSet) -> str:
    """SHA-256 of the images' names and labels in order. Names begin at the class folder, wherever the tree lies."""
    names = [images.name(index) for index in range(len(images))]
    begin = max(0, _common_prefix(names) - _common_prefix([f"{name}/" for name in images.classes]))
    digest = hashlib.sha256()
    for name, label in zip(names, images.labels.tolist(), strict=True):
        digest.update(f"{name[begin:].replace(os.sep, '/')}\t{label}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _common_prefix(texts: Sequence[str]) -> int:
    """The length, in characters, of the longest common prefix."""
    return len(os.path.commonprefix([min(texts), max(texts)]))  # noqa: RUF071 (characters are meant)


def _probe_areas(images: ImageSet) -> Sequence[int | None]:
    """The number of pixels of a few images, None for unreadable ones.

    A copy of the image folder in another resolution has the same names, but other areas.
    """
    areas: list[int | None] = []
    for index in np.linspace(0, len(images) - 1, _PROBED_AREAS).astype(int).tolist():
        try:
            areas.append(images.area(index))
        except UnreadableImage:
            areas.append(None)
    return areas
