"""How fast images are loaded: udskd's loader in all its ways, from files and from packs, beside a plain PyTorch loader.

    python -m bench.loader --data.root DIR --workers 1 --json FILE --markdown FILE

Everything is measured in one run, in turns, over the same images, which lie in the page cache. The plain loader
(bench/plain.py: ImageFolder, PIL transforms, DataLoader) has as many workers and makes normalised float32 images; ours
is given both without that (uint8, as it leaves the loader) and with it. Between two moments at which all workers are
busy, images and the processor time of all processes are counted: a rate per core does not change with what else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from bench import images, machine, plain
from bench.cpu_timing import Lap, Work, clock, summary, turns
from bench.loss import count, write
from bench.measure import digits
from udskd.config.schema import DataConfig
from udskd.data import Batch, normalize_batch, open_sets
from udskd.data.pack import pack
from udskd.doctor.costs import SHORT_SIDE, Costs, costs
from udskd.doctor.rates import Sample, Window, batches_for, steady
from udskd.errors import UdskdError
from udskd.results import table

MODES = ("threads", "processes", "resident")
HEADER = ["loader", "from", "gives", "images/s", "least - most", "per core", "cores busy"]
PROBED = 128  # images that tell how fast the plain loader is, for the length of its window
RESIDENT = 5  # times as fast as decoding, about: for the length of a window


Name = tuple[str, str, str]
"""What loads, from what, and what it gives."""


# --- what is measured -------------------------------------------------------------------------------------------------


def ours(stack: ExitStack, config: DataConfig, options: argparse.Namespace, core: float, normalised: bool) -> Work:
    """A loader of ours, open until the stack is closed."""
    train, _ = open_sets(config)
    some = Sample(train, np.arange(len(train)))
    expected = core * (RESIDENT if config.loader == "resident" else min(max(1, config.workers), os.cpu_count() or 1))
    if normalised:  # takes about as long again
        expected /= 2
    skip, number = batches_for(options.seconds, expected, options.batch, config.workers)
    window = Window(some, config, options.batch, skip, number, options.device)
    stack.callback(window.close)
    classes = len(train.classes)

    def take(batch: Batch) -> object:
        return normalize_batch(batch, config, options.device, classes) if normalised else len(batch)

    def work() -> Lap:
        begin, end = window.run(clock, take)
        return Lap(window.images, end.wall - begin.wall, end.cpu - begin.cpu)

    return work


def theirs(config: DataConfig, options: argparse.Namespace) -> Work:
    """The plain loader, whose batches are brought to the device as its loop does."""
    number, core = len(open_sets(config)[0]), plain_core(config, PROBED)()
    expected = core.images / core.wall * min(max(1, config.workers), os.cpu_count() or 1)
    skip, timed = batches_for(options.seconds, expected, options.batch, config.workers)
    wanted = np.resize(np.arange(number), options.batch * (2 * skip + timed)).tolist()
    loader = plain.loader(config, wanted, options.batch, config.workers, options.device)

    def work() -> Lap:
        batches = (images.to(options.device, non_blocking=True) for images, _ in loader)
        begin, end = steady(batches, skip, timed, clock)
        return Lap(timed * options.batch, end.wall - begin.wall, end.cpu - begin.cpu)

    return work


def plain_core(config: DataConfig, most: int | None = None) -> Work:
    """One core on the plain loader's images, or the first of them, without a loader."""
    number = len(open_sets(config)[0])
    number = number if most is None else min(number, most)
    source = plain.loader(config, range(number), 1, 0, "cpu").dataset

    def work() -> Lap:
        begin = clock()
        for index in range(number):
            source[index]
        end = clock()
        return Lap(number, end.wall - begin.wall, end.cpu - begin.cpu)

    return work


def copying(options: argparse.Namespace, dtype: torch.dtype) -> Work:
    """Pinned batches to the device, and nothing else."""
    side = options.image_size
    batch = torch.zeros((options.batch, 3, side, side), dtype=dtype).pin_memory()
    times = max(8, int(options.seconds * 5e9 / batch.nbytes))

    def work() -> Lap:
        begin = clock()
        for _ in range(times):
            batch.to(options.device, non_blocking=True)
        end = clock()
        return Lap(times * options.batch, end.wall - begin.wall, end.cpu - begin.cpu)

    return work


def works(
    stack: ExitStack, sources: Mapping[str, Path], core: Mapping[str, float], options: argparse.Namespace
) -> dict[Name, Work]:
    """Everything that takes turns; `core` is what one core does with a source, in images per second."""
    out: dict[Name, Work] = {}
    files = DataConfig(root=str(sources["files"]), image_size=options.image_size, workers=options.workers)
    for name, root in sources.items():
        for mode in options.modes:
            config = DataConfig(root=str(root), image_size=options.image_size, loader=mode, workers=options.workers)
            for gives in ("uint8", "float32"):
                work = ours(stack, config, options, core[name], gives == "float32")
                out[f"udskd, {mode}", name, gives] = work
    out["plain PyTorch", "files", "float32"] = theirs(files, options)
    out["plain PyTorch, no loader", "files", "float32"] = plain_core(files)
    if options.device == "cuda":
        for dtype in (torch.uint8, torch.float32):
            out["host to device alone", "pinned memory", str(dtype).removeprefix("torch.")] = copying(options, dtype)
    return out


# --- single images ----------------------------------------------------------------------------------------------------


def single(sources: Mapping[str, Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Reading, decoding and views on one core, from each source: medians over rounds that take turns."""
    found: dict[str, list[Costs]] = {name: [] for name in sources}
    for _ in range(options.rounds):
        for name, root in sources.items():
            config = DataConfig(root=str(root), image_size=options.image_size)
            train, _ = open_sets(config)
            found[name].append(costs(Sample(train, np.arange(len(train))), config, options.seconds, with_pack=False))
    rows = []
    for name, each in found.items():
        seconds = {part: statistics.median(getattr(c, part) for c in each) for part in ("read", "decode", "view")}
        seconds["all three"] = sum(seconds.values())
        size = statistics.median(c.file_bytes for c in each)
        shared = {"from": name, "file_bytes": round(size), "pixel_bytes": round(each[0].pixel_bytes)}
        rows += [{"part": part, "images_per_s": digits(1 / s)} | shared for part, s in seconds.items()]
    return rows


# --- the tables -------------------------------------------------------------------------------------------------------


def sections(singles: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> list[table.Section]:
    parts = list(dict.fromkeys(r["part"] for r in singles))
    grid = []
    for name in dict.fromkeys(r["from"] for r in singles):
        mine = [r for r in singles if r["from"] == name]
        kilobytes = f"{mine[0]['file_bytes'] / 1e3:.1f}"
        grid.append([name, kilobytes, *(f"{r['images_per_s']:,.0f}" for r in mine)])
    first = table.Section("one core, images/s", ["from", "kB each", *parts], grid)
    lines = [
        [
            *(r[key] for key in ("loader", "from", "gives")),
            f"{r['images_per_s']:,.0f}",
            f"{r['least']:,.0f} - {r['most']:,.0f}",
            f"{r['images_per_core_s']:,.0f}" if r["images_per_core_s"] else "",
            f"{r['cores_busy']:.2f}",
        ]
        for r in rows
    ]
    return [first, table.Section("loaders", HEADER, lines)]


def shared(options: argparse.Namespace, number: int) -> dict[str, Any]:
    """What a reader needs to place the numbers and to repeat them."""
    root = [] if options.root is None else ["--data.root", "DIR"]
    parts = ["python -m bench.loader", *root, f"--device {options.device} --image-size {options.image_size}"]
    parts.append(f"--workers {options.workers} --threads {options.threads} --batch {options.batch}")
    parts.append(f"--images {options.images} --seconds {options.seconds:g} --rounds {options.rounds}")
    return {
        "workers": options.workers,
        "images": number,
        "page_cache": "warm",
        "machine": machine.machine(options.device),
        "versions": machine.versions(),
        "command": " ".join(parts),
    }


# --- the command line -------------------------------------------------------------------------------------------------


def sources(folder: Path, root: Path) -> dict[str, Path]:
    """The files, and packs of them."""
    originals, small = folder / "originals", folder / "small"
    pack(root, originals, short_side=None, workers=os.cpu_count() or 1)
    pack(root, small, short_side=SHORT_SIDE, quality=90, workers=os.cpu_count() or 1)
    return {"files": root, "pack of originals": originals, f"pack at {SHORT_SIDE}, quality 90": small}


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """The rows of single images, those of the loaders, and what they share."""
    threads = os.cpu_count() or 1
    with (
        TemporaryDirectory(prefix="udskd-bench-") as folder,
        images.tree(options.root, options.images, threads) as root,
    ):
        found = sources(Path(folder), root)
        number = len(open_sets(DataConfig(root=str(root)))[0])
        singles = single(found, options)
        with ExitStack() as stack:
            core = {r["from"]: r["images_per_s"] for r in singles if r["part"] == "all three"}
            laps = turns(works(stack, found, core, options), options.rounds)
    keys = ("loader", "from", "gives")
    rows = [dict(zip(keys, name, strict=True)) | summary(each) for name, each in laps.items()]
    return singles, rows, shared(options, number)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.loader", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--data.root", dest="root", metavar="DIR", help="train/CLASS/* and val/CLASS/*; generated if not given")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where resident images lie and float32 is made")
    add("--image-size", type=count, default=224)
    add("--workers", type=count, default=1)
    add("--threads", type=count, default=1, help="of PyTorch's, in the process that takes the batches")
    add("--batch", type=count, default=64)
    add("--images", type=count, default=1000, help="of the set, that are loaded over and over")
    add("--modes", nargs="+", default=MODES, choices=MODES)
    add("--seconds", type=float, default=1.0, help="of a window, about")
    add("--rounds", type=count, default=3)
    add("--json", type=Path, metavar="FILE")
    add("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: PyTorch sees no CUDA device")
    if not options.seconds > 0:
        parser.error("argument --seconds: it must be above 0")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    try:
        singles, rows, common = measure(options)
    except UdskdError as error:
        print(f"bench.loader: {error}", file=sys.stderr)
        return 1
    tables = sections(singles, rows)
    print()
    table.show(tables)
    if options.json:
        write(options.json, json.dumps({**common, "single": singles, "loaders": rows}, indent=1) + "\n")
    if options.markdown:
        write(options.markdown, table.markdown(tables) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
