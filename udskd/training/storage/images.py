"""The images of a run: the same on all ranks, and the same when the run continues."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from udskd.config.schema import Config, DataConfig
from udskd.data import ImageSet, class_hash
from udskd.data.dataset import abbreviate
from udskd.data.formats import missing_codec
from udskd.data.manifest import Manifest, content_hash, describe_changes, list_images
from udskd.errors import DataError
from udskd.files import expand_user
from udskd.progress import Display
from udskd.training.runtime.distributed import StopConsensus, World
from udskd.training.storage.run_folder import RunFolder


def identify(
    config: Config, folder: RunFolder, sets: Mapping[str, ImageSet], display: Display, consensus: StopConsensus
) -> Manifest:
    """The manifest of the sets (by split). Rank 0 compares it with the manifest in the folder of a run to continue.

    Raises:
        DataError: the run was started with other images.
        CheckpointError: the manifest in the folder is damaged.
        Stopped: this process received a signal.
    """
    known = folder.manifest() if folder.begun else None
    if folder.writes and folder.begun and known is None:
        _compare_numbers(config, folder, sets)
        display.line(f"{folder.path} has no list of its images: that they are still the same is checked from here on")
    with display.steps("identify the images", sum(map(len, sets.values()))) as advance:
        manifest = list_images(sets, known, advance, consensus.poll_this_rank)
    if folder.writes and known is not None:
        _refuse_undecodable(config, folder, known, manifest)
        _refuse(config, folder, describe_changes(known, manifest))
    return manifest


def compare_listings(data: DataConfig, sets: Mapping[str, ImageSet], world: World) -> None:
    """DataError if a rank has other classes, names or labels of images than rank 0. All ranks must call it."""
    found: dict[str, int | str] = {}
    for split, images in sets.items():
        found |= {
            "{} classes": len(images.classes),
            "other names of the classes": class_hash(images.classes),
            f"{{}} {split} images": len(images),
            f"other names or labels of the {split} images": _names_and_labels(images),
        }
    _refuse_others(data, found, world)


def compare_contents(data: DataConfig, manifest: Manifest | None, world: World) -> None:
    """DataError if a rank has other contents of images than rank 0. All ranks must call it.

    manifest: None on a rank that shares the images of another rank on its machine.
    """
    found = {f"other contents of the {split} images": content_hash(one) for split, one in (manifest or {}).items()}
    _refuse_others(data, found, world)


def _names_and_labels(images: ImageSet) -> str:
    digest = hashlib.sha256(images.labels.tobytes())
    for index in range(len(images)):
        digest.update(f"{images.relative_name(index)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _refuse_others(data: DataConfig, found: Mapping[str, int | str], world: World) -> None:
    """found: what this rank has, by the words for it in the message."""
    first, *others = world.gather(found)
    for rank, theirs in enumerate(others, 1):
        for words, value in theirs.items():
            if value != first[words]:
                instead = f" instead of {first[words]}" if isinstance(value, int) else ""
                raise DataError(
                    f"process {rank} does not find the images of process 0 in {data.root}: it has "
                    f"{words.format(value)}{instead}; give every process the same images"
                )


def unreadable_images(folder: RunFolder, images: ImageSet) -> dict[str, tuple[str, str]]:
    """The training images in the log that could not be read: path and reason by relative name.

    Earlier versions logged paths only; of these, the paths that are not in the set are left out.
    """
    events = folder.events("unreadable")
    earlier = {event["name"] for event in events if "image" not in event}
    names = earlier.intersection(map(images.name, range(len(images)))) if earlier else earlier
    return {
        event.get("image", images.strip_root(event["name"])): (event["name"], event["reason"])
        for event in events
        if "image" in event or event["name"] in names
    }


def check_classes(config: Config, folder: RunFolder, classes: Sequence[str]) -> None:
    """DataError if the log shows that the run was started with other classes."""
    for event in folder.events("start")[:1]:
        data = event.get("data", {})
        if data.get("class_hash") not in (None, class_hash(classes)):
            numbers = f"{data.get('classes')} before, {len(classes)} now"
            _refuse(config, folder, f"its classes have other names ({numbers})")


def _refuse_undecodable(config: Config, folder: RunFolder, known: Manifest, manifest: Manifest) -> None:
    """DataError if images of the run are missing in the sets because this Pillow lacks a codec."""
    root, formats = expand_user(config.data.root), set()
    names: list[str] = []
    for split, listing in known.items():
        for name in set(listing.names).difference(manifest[split].names):
            if (format := missing_codec(name)) and (root / split / name).exists():
                names.append(f"{split}/{name}")
                formats.add(format)
    if names:
        raise DataError(
            f"{folder.path} was started with {len(names)} images of {config.data.root} that are still there, but that "
            f"this Pillow cannot decode: it has no codec for {' and '.join(sorted(formats))} "
            f"({abbreviate(sorted(names))}); install one that has it to continue the run"
        )


def _compare_numbers(config: Config, folder: RunFolder, sets: Mapping[str, ImageSet]) -> None:
    """DataError if the number of images differs from that in the log of an earlier version, which wrote no manifest."""
    begin = [event["data"] for event in folder.events("start") if "data" in event][:1]
    numbers = {split: (data.get(f"{split}_images"), len(sets[split])) for data in begin for split in sets}
    changed = [f"{old} in {split} before, {new} now" for split, (old, new) in numbers.items() if old not in (None, new)]
    earlier = (
        " (an earlier version began it, which did not see .jfif, .gif or files without suffix, but hidden folders)"
    )
    _refuse(config, folder, ", ".join(changed) + earlier if changed else "")


def _refuse(config: Config, folder: RunFolder, changes: str) -> None:
    if changes:
        raise DataError(
            f"{folder.path} was started with other images than {config.data.root} has now: {changes}; put those images "
            "back to continue it, or start another run"
        )
