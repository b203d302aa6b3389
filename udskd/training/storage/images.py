"""A run's images: listed when it begins, and found to be the same ones when it continues."""

from __future__ import annotations

from collections.abc import Mapping

from udskd.config.schema import Config
from udskd.data import ImageSet
from udskd.data.manifest import Manifest, difference, list_images
from udskd.errors import DataError
from udskd.progress import Display
from udskd.training.runtime.distributed import Vote
from udskd.training.storage.run_folder import RunFolder


def identify(config: Config, folder: RunFolder, sets: Mapping[str, ImageSet], display: Display, vote: Vote) -> Manifest:
    """The manifest of the sets (by split), which the run's folder is to hold.

    Raises:
        DataError: the run was begun with other images.
        CheckpointError: the manifest of a run that is to continue is damaged.
        Stopped: this process is asked to stop.
    """
    known = folder.manifest() if folder.begun else None
    if folder.begun and known is None:
        _compare_numbers(config, folder, sets)
        display.line(f"{folder.path} has no list of its images: that they are still the same is checked from here on")
    with display.steps("identify the images", sum(map(len, sets.values()))) as advance:
        manifest = list_images(sets, known, advance, vote.poll_here)
    if known is not None:
        _refuse(config, folder, difference(known, manifest))
    return manifest


def _compare_numbers(config: Config, folder: RunFolder, sets: Mapping[str, ImageSet]) -> None:
    """What can be known of a run that an earlier version began: how many images it had."""
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
