"""`udskd pack`: shows progress while the packs are written, then prints a line for each split."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from udskd.data.pack import Packed, pack
from udskd.progress import Display


def run(
    source: Path,
    destination: Path,
    short_side: int | None,
    quality: int,
    classes: int | None,
    workers: int,
    max_pixels: int,
) -> int:
    """Pack with progress on the screen. Returns 0, the exit code; raises the errors of udskd.data.pack.pack."""
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
            max_pixels=max_pixels,
            progress=progress,
        )
    for split, result in packed.items():
        if result.ignored:
            display.line(f"{split}: {result.ignored}")
        display.line(_line(destination / f"{split}.pack", result))
    if shared := packed["train"].shared:
        display.line(shared)
    display.line(f"train from it with --data.root {destination}")
    return 0


def _line(path: Path, result: Packed) -> str:
    return (
        f"{path}: {result.images} images, {result.kept} of them kept as they are; "
        f"{result.bytes / 1e6:.1f} MB of {result.source_bytes / 1e6:.1f} MB"
    )
