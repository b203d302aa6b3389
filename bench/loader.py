"""Speed of loading images: udskd's loaders, from files and from packs, beside a plain PyTorch loader.

    python -m bench.loader --data.root DIR --workers 1 --json FILE --markdown FILE

All loaders take turns in one run, over the same images, which are in the page cache. The plain loader
(bench/plain_pytorch.py: ImageFolder, PIL transforms, DataLoader) has the same number of workers and returns normalised
float32 images; udskd's are measured without normalisation (uint8, as they leave the loader) and with it. Images and the
processor time of all processes are counted between two moments at which all workers are busy. The rate per core does
not change with the other load of the machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from bench import images, plain_pytorch, throughput
from bench.arguments import add_device, count, make_parser
from bench.files import write_json, write_text
from bench.machine import check_device
from bench.records import command_line, digits, environment
from bench.throughput import Interval, Measurement, between, measurement_of, read_clocks, summary
from udskd.config.schema import DataConfig
from udskd.data import Batch, normalize_batch, open_sets
from udskd.data.pack import pack
from udskd.doctor.costs import SHORT_SIDE, Costs, mean_costs
from udskd.doctor.rates import LoaderMeasurement, Sample, measurement_length, time_steady_state
from udskd.errors import UdskdError
from udskd.results import table

MODES = ("threads", "processes", "resident")
HEADER = ["loader", "from", "gives", "images/s", "least - most", "per core", "cores busy"]
PROBED = 128  # images by which the speed of the plain loader is estimated, for the length of its measurement
RESIDENT_SPEEDUP = 5  # approximate speed of resident images relative to decoding, for the length of a measurement
CORES = os.cpu_count() or 1

Name = tuple[str, str, str]
"""Loader, source of the images, and the dtype that it returns."""


# --- what is measured -------------------------------------------------------------------------------------------------


def udskd_loader(
    stack: ExitStack, config: DataConfig, options: argparse.Namespace, core: float, normalised: bool
) -> Measurement:
    """A loader of udskd, which is open until the stack is closed; `core` is the rate of one core, in images/s."""
    train, _ = open_sets(config)
    everything = Sample(train, np.arange(len(train)))
    expected = core * (RESIDENT_SPEEDUP if config.loader == "resident" else busy_cores(config.workers))
    if normalised:  # which takes about as long as loading
        expected /= 2
    skip, number = measurement_length(options.seconds, expected, options.batch, config.workers)
    measurement = LoaderMeasurement(everything, config, options.batch, skip, number, options.device)
    stack.callback(measurement.close)
    classes = len(train.classes)

    def take(batch: Batch) -> object:
        return normalize_batch(batch, config, options.device, classes) if normalised else len(batch)

    def measure() -> Interval:
        return between(measurement.images, *measurement.run(read_clocks, take))

    return measure


def plain_loader(config: DataConfig, options: argparse.Namespace) -> Measurement:
    """The plain loader, whose batches are copied to the device as in its training loop."""
    number, core = len(open_sets(config)[0]), plain_core(config, PROBED)()
    expected = core.images / core.wall * busy_cores(config.workers)
    skip, timed = measurement_length(options.seconds, expected, options.batch, config.workers)
    indices = np.resize(np.arange(number), options.batch * (2 * skip + timed)).tolist()
    loader = plain_pytorch.loader(config, indices, options.batch, config.workers, options.device)

    def measure() -> Interval:
        batches = (images.to(options.device, non_blocking=True) for images, _ in loader)
        return between(timed * options.batch, *time_steady_state(batches, skip, timed, read_clocks))

    return measure


def busy_cores(workers: int) -> int:
    return min(max(1, workers), CORES)


def plain_core(config: DataConfig, limit: int | None = None) -> Measurement:
    """One core on the plain loader's images, or the first `limit` of them, without a loader."""
    number = len(open_sets(config)[0])
    number = number if limit is None else min(number, limit)
    source = plain_pytorch.loader(config, range(number), 1, 0, "cpu").dataset

    def load() -> int:
        for index in range(number):
            source[index]
        return number

    return measurement_of(load)


def copies_to_device(options: argparse.Namespace, dtype: torch.dtype) -> Measurement:
    """Copies of pinned batches to the device, without a loader."""
    side = options.image_size
    batch = torch.zeros((options.batch, 3, side, side), dtype=dtype).pin_memory()
    times = max(8, int(options.seconds * 5e9 / batch.nbytes))

    def copy() -> int:
        for _ in range(times):
            batch.to(options.device, non_blocking=True)
        return times * options.batch

    return measurement_of(copy)


def measurements(
    stack: ExitStack, sources: Mapping[str, Path], core: Mapping[str, float], options: argparse.Namespace
) -> dict[Name, Measurement]:
    """All loaders; `core` is the rate of one core for each source, in images per second."""
    out: dict[Name, Measurement] = {}
    config_of = partial(DataConfig, image_size=options.image_size, workers=options.workers)
    for name, root in sources.items():
        for mode in options.modes:
            config = config_of(root=str(root), loader=mode)
            for dtype in ("uint8", "float32"):
                loader = udskd_loader(stack, config, options, core[name], normalised=dtype == "float32")
                out[f"udskd, {mode}", name, dtype] = loader
    files = config_of(root=str(sources["files"]))
    out["plain PyTorch", "files", "float32"] = plain_loader(files, options)
    out["plain PyTorch, no loader", "files", "float32"] = plain_core(files)
    if options.device == "cuda":
        for name, copied in (("uint8", torch.uint8), ("float32", torch.float32)):
            out["host to device alone", "pinned memory", name] = copies_to_device(options, copied)
    return out


# --- single images ----------------------------------------------------------------------------------------------------


def single_images(sources: Mapping[str, Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rates of reading, decoding and cutting views on one core, from each source: medians over interleaved rounds."""
    found: dict[str, list[Costs]] = {name: [] for name in sources}
    for _ in range(options.rounds):
        for name, root in sources.items():
            config = DataConfig(root=str(root), image_size=options.image_size)
            train, _ = open_sets(config)
            sample = Sample(train, np.arange(len(train)))
            found[name].append(mean_costs(sample, config, options.seconds, with_pack=False))
    return [row for name, each in found.items() for row in single_rows(name, each)]


def single_rows(source: str, found: Sequence[Costs]) -> list[dict[str, Any]]:
    seconds = {part: statistics.median(getattr(c, part) for c in found) for part in ("read", "decode", "view")}
    seconds["all three"] = sum(seconds.values())
    size = statistics.median(c.file_bytes for c in found)
    common = {"from": source, "file_bytes": round(size), "pixel_bytes": round(found[0].pixel_bytes)}
    return [{"part": part, "images_per_s": digits(1 / s)} | common for part, s in seconds.items()]


# --- the tables -------------------------------------------------------------------------------------------------------


def sections(singles: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> list[table.Section]:
    return [single_section(singles), table.Section("loaders", HEADER, [line(row) for row in rows])]


def single_section(singles: Sequence[dict[str, Any]]) -> table.Section:
    parts = list(dict.fromkeys(row["part"] for row in singles))
    grid = []
    for source in dict.fromkeys(row["from"] for row in singles):
        found = [row for row in singles if row["from"] == source]
        kilobytes = f"{found[0]['file_bytes'] / 1e3:.1f}"
        grid.append([source, kilobytes, *(f"{row['images_per_s']:,.0f}" for row in found)])
    return table.Section("one core, images/s", ["from", "kB each", *parts], grid)


def line(row: Mapping[str, Any]) -> list[str]:
    return [
        *(row[key] for key in ("loader", "from", "gives")),
        f"{row['images_per_s']:,.0f}",
        f"{row['least']:,.0f} - {row['most']:,.0f}",
        f"{row['images_per_core_s']:,.0f}" if row["images_per_core_s"] else "",
        f"{row['cores_busy']:.2f}",
    ]


# --- the command line -------------------------------------------------------------------------------------------------


def make_sources(folder: Path, root: Path) -> dict[str, Path]:
    """The tree of files, and two packs of it."""
    originals, small = folder / "originals", folder / "small"
    pack(root, originals, short_side=None, workers=CORES)
    pack(root, small, short_side=SHORT_SIDE, quality=90, workers=CORES)
    return {"files": root, "pack of originals": originals, f"pack at {SHORT_SIDE}, quality 90": small}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The rows of single images and of the loaders, with machine, versions and command."""
    with (
        TemporaryDirectory(prefix="udskd-bench-") as folder,
        images.tree(options.root, options.images, CORES) as root,
    ):
        sources = make_sources(Path(folder), root)
        number = len(open_sets(DataConfig(root=str(root)))[0])
        singles = single_images(sources, options)
        with ExitStack() as stack:
            core = {row["from"]: row["images_per_s"] for row in singles if row["part"] == "all three"}
            found = throughput.interleaved(measurements(stack, sources, core, options), options.rounds)
    keys = ("loader", "from", "gives")
    rows = [dict(zip(keys, name, strict=True)) | summary(intervals) for name, intervals in found.items()]
    common = {"workers": options.workers, "images": number, "page_cache": "warm"}
    return common | environment(options.device, command(options)) | {"single": singles, "loaders": rows}


def command(options: argparse.Namespace) -> str:
    names = ("device", "image_size", "workers", "threads", "batch", "images", "seconds", "rounds")
    root = {} if options.root is None else {"data.root": "DIR"}
    return command_line("loader", **root, **{name: getattr(options, name) for name in names})


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("loader", __doc__)
    add = parser.add_argument
    add("--data.root", dest="root", metavar="DIR", help="train/CLASS/* and val/CLASS/*; generated if not given")
    add_device(parser, "for resident images and for normalisation")
    add("--image-size", type=count, default=224)
    add("--workers", type=count, default=1)
    add("--threads", type=count, default=1, help="PyTorch's threads in the process that takes the batches")
    add("--batch", type=count, default=64)
    add("--images", type=count, default=1000, help="images of the set, which is loaded repeatedly")
    add("--modes", nargs="+", default=MODES, choices=MODES)
    add("--seconds", type=float, default=1.0, help="approximate length of a measurement")
    add("--rounds", type=count, default=3)
    add("--json", type=Path, metavar="FILE")
    add("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    check_device(parser, options.device)
    if not options.seconds > 0:
        parser.error("argument --seconds: it must be above 0")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    try:
        found = measure(options)
    except UdskdError as error:
        print(f"bench.loader: {error}", file=sys.stderr)
        return 1
    tables = sections(found["single"], found["loaders"])
    print()
    table.show(tables)
    if options.json:
        write_json(options.json, found)
    if options.markdown:
        write_text(options.markdown, table.markdown(tables) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
