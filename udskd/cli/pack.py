"""`udskd pack`: a bar while packs are written, and then what became of the images."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from udskd.data.pack import Packed, pack
from udskd.progress import Display


def run(
    source: Path, destination: Path, short_side: int | None, quality: int, classes: int | None, workers: int
) -> int:
    """Pack with progress on the screen; returns 0, the exit code. Raises what pack() raises."""
    display = Display()
    with ExitStack() as stack:
        splits: dict[str, object] = {}

        def progress(split: str, done: int, total: int) -> None:
            if split not in splits:
                stack.close()
                splits[split] = stack.enter_context(display.steps(f"pack {split}", total))
            splits[split]()  # type: ignore[operator]

        packed = pack(
            source,
            destination,
            short_side=short_side,
            quality=quality,
            classes=classes,
            workers=workers,
            progress=progress,
        )
    for split, what in packed.items():
        if what.ignored:
            display.line(f"{split}: {what.ignored}")
        display.line(_line(destination / f"{split}.pack", what))
    if shared := packed["train"].shared:
        display.line(shared)
    display.line(f"train from it with --data.root {destination}")
    return 0


def _line(path: Path, what: Packed) -> str:
    return (
        f"{path}: {what.images} images, {what.kept} of them kept as they are; "
        f"{what.bytes / 1e6:.1f} MB of {what.source_bytes / 1e6:.1f} MB"
    )
