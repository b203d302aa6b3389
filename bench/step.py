"""Training speed: udskd's step and epoch, as a whole and in parts, beside a loop in plain PyTorch.

    python -m bench.step --device cuda --json FILE --markdown FILE

udskd's part is the code of `udskd train` itself: its step, its epoch loop, its loader. The plain loop
(bench/plain_pytorch.py) has the same networks, images, batch size and precision (bf16 autocast on CUDA, fp32 on the
CPU), once with contiguous tensors and once with channels_last, as udskd has. The parts are timed interleaved on batches
that are on the device, and share their weights with their step. An epoch reaches from JPEG files (or resident images,
where the table says so) to updated weights.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from bench import images, loader, throughput, timing
from bench.arguments import add_device, count, make_parser
from bench.files import write_json, write_text
from bench.formatting import megabytes, speedup, spread
from bench.formatting import time as time_text
from bench.machine import check_device
from bench.records import command_line, digits, environment
from bench.step_cases import LAYOUTS, TrainingLoop, config_of, prepare
from bench.throughput import Interval, Measurement, measurement_of
from bench.timing import Times
from udskd.config import schema
from udskd.data import open_sets
from udskd.doctor.step_benchmark import StepBenchmark
from udskd.doctor.verdict import rate
from udskd.errors import UdskdError
from udskd.results import table

CORES = os.cpu_count() or 1
# Defaults for each device: what one of its kind measures in a few minutes.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"image_size": 64, "batch": 32, "images": 192, "stem": "imagenet", "threads": 1, "workers": 1},
    "cuda": {"image_size": 224, "batch": 256, "images": 4096, "stem": "auto", "threads": None, "workers": CORES},
}
EXPECTED = 500.0  # images/s of a core, which determines the number of batches in a measurement of a loader; a guess
PARTS_HEADER = ["part", "loop", "images/s", "a batch", "p10 - p90", "vs plain", "vs channels_last", "peak MB"]
EPOCHS_HEADER = ["what", "images", "images/s", "least - most", "of the step alone", "cores busy"]
PREPARATION = 0.6  # share of the time limit after which no further variant is prepared

EpochKey = tuple[str, str, bool]
"""What runs, the source of its images, and whether it trains."""


# --- parts ------------------------------------------------------------------------------------------------------------


def part_rows(
    times: Mapping[tuple[str, str], Times], loops: Sequence[TrainingLoop], batch: int
) -> list[dict[str, Any]]:
    """A row for each part of each loop, grouped by part."""
    peaks = {loop.name: loop.peak_bytes for loop in loops}
    return [
        {
            "part": part,
            "whose": name,
            "images_per_s": digits(batch / t.median * 1e6),
            **t.as_row(wall=True),
            "peak_bytes": peaks[name] if part == "step" else None,
        }
        for wanted in dict.fromkeys(part for part, _ in times)
        for (part, name), t in times.items()
        if part == wanted
    ]


# --- epochs -----------------------------------------------------------------------------------------------------------


def epochs(
    stack: ExitStack, root: Path, loops: Sequence[TrainingLoop], options: argparse.Namespace
) -> dict[EpochKey, Measurement]:
    """The loaders alone, the copies to the device alone, and whole epochs of every loop."""
    config, (train, _) = config_of(options, root), open_sets(config_of(options, root).data)
    out: dict[EpochKey, Measurement] = {}
    for mode in ("threads", "resident"):
        data = schema.with_values(config, {"data.loader": mode}).data
        alone = loader.udskd_loader(stack, data, options, EXPECTED, normalised=False)
        out["loader alone, udskd", mode, False] = alone
    out["loader alone, plain", "files", False] = loader.plain_loader(config.data, options)
    if options.device == "cuda":
        out["host to device alone", "uint8", False] = loader.copies_to_device(options, torch.uint8)
    for loop in (loop for loop in loops if loop.name not in LAYOUTS):
        out[loop.name, loop.source, True] = measurement_of(loop.train_epoch)
    other = "threads" if options.device == "cuda" else "resident"
    benchmark = StepBenchmark(schema.with_values(config, {"data.loader": other}), train)
    stack.callback(benchmark.close)
    out["udskd", other, True] = measurement_of(benchmark.train_epoch)
    for loop in (loop for loop in loops if loop.name in LAYOUTS):
        out[loop.name, loop.source, True] = measurement_of(loop.train_epoch)
    return out


def epoch_rows(
    found: Mapping[EpochKey, Sequence[Interval]], parts: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Rates, and for training their share of the rate of the step alone."""
    steps = {row["whose"]: row["images_per_s"] for row in parts if row["part"] == "step"}
    out = []
    for (name, source, trains), intervals in found.items():
        row = {"what": name, "images": source} | throughput.summary(intervals)
        out.append(row | {"of_step": digits(row["images_per_s"] / steps[name]) if trains else None})
    return out


# --- the tables -------------------------------------------------------------------------------------------------------


def sections(parts: Sequence[dict[str, Any]], ends: Sequence[dict[str, Any]]) -> list[table.Section]:
    found = {(row["part"], row["whose"]): row for row in parts}
    lines = [
        [
            *(row["part"], row["whose"], rate(row["images_per_s"]), time_text(row["median_us"]), spread(row)),
            *(speedup(row, found.get((row["part"], name))) for name in LAYOUTS),
            megabytes(row["peak_bytes"]),
        ]
        for row in parts
    ]
    epochs = [
        [
            *(row["what"], row["images"], rate(row["images_per_s"]), f"{rate(row['least'])} - {rate(row['most'])}"),
            "" if row["of_step"] is None else f"{row['of_step']:.0%}",
            f"{row['cores_busy']:.2f}",
        ]
        for row in ends
    ]
    first = table.Section("parts, on batches that are on the device", PARTS_HEADER, lines)
    return [first, table.Section("loaders alone, and whole epochs", EPOCHS_HEADER, epochs)]


def common(options: argparse.Namespace) -> dict[str, Any]:
    """Networks, sizes, precision, machine, versions and command."""
    names = ("device", "image_size", "batch", "teacher", "student_a", "student_b", "stem", "images", "workers")
    shown, threads = {name: getattr(options, name) for name in names}, torch.get_num_threads()
    root = {} if options.root is None else {"data.root": "DIR"}
    switches = {f"{'' if value else 'no-'}{name}": True for name, value in switches_of(options).items()}
    more = {"rounds": options.rounds, "epochs": options.epochs, "threads": threads}
    precision = "bf16 autocast" if options.device == "cuda" else "fp32"
    command = command_line("step", **root, **shown, **more, **switches)
    return shown | {"precision": precision, "threads": threads} | environment(options.device, command)


def switches_of(options: argparse.Namespace) -> dict[str, bool]:
    return {"compile": options.compile, "cuda-graph": options.graph}


# --- the command line -------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> None:
    """Measures and shows everything; the parts are saved before the epochs begin."""
    begin = time.monotonic()
    with images.tree(options.root, options.images, CORES) as root, ExitStack() as stack:
        loops = prepare(stack, root, options, begin + PREPARATION * options.limit)
        timed = {(part, loop.name): each for loop in loops for part, each in loop.parts.items()}
        parts = part_rows(timing.interleaved(timed, options.rounds, options.device), loops, options.batch)
        save(options, parts, [])
        table.show(sections(parts, [])[:1])
        found = throughput.interleaved(epochs(stack, root, loops, options), options.epochs, begin + options.limit)
    ends = epoch_rows({name: intervals for name, intervals in found.items() if intervals}, parts)
    save(options, parts, ends)
    print()
    table.show(sections(parts, ends)[1:])


def save(options: argparse.Namespace, parts: list[dict[str, Any]], ends: list[dict[str, Any]]) -> None:
    if options.json:
        write_json(options.json, {**common(options), "parts": parts, "epochs": ends})
    if options.markdown:
        write_text(options.markdown, table.markdown(sections(parts, ends)) + "\n")


def make_step_parser() -> argparse.ArgumentParser:
    parser = make_parser("step", __doc__)
    add = parser.add_argument
    add_device(parser)
    add("--data.root", dest="root", metavar="DIR", help="train/CLASS/* and val/CLASS/*; generated if not given")
    add("--image-size", type=count, help="64 on the CPU, 224 on CUDA")
    add("--batch", type=count, help="images of a step; 32 on the CPU, 256 on CUDA")
    add("--images", type=count, help="images of an epoch")
    add("--teacher", default="resnet50")
    add("--student-a", default="resnet18")
    add("--student-b", default="mobilenet_v2")
    add("--stem", choices=("auto", "imagenet", "half", "small"), help="imagenet on the CPU, auto on CUDA")
    add("--threads", type=count, help="PyTorch's threads; 1 on the CPU, its own default on CUDA")
    add("--workers", type=count, help="workers of the loaders; 1 on the CPU, one for each core on CUDA")
    add("--compile", action=argparse.BooleanOptionalAction, help="also compiled networks; default on CUDA")
    add("--cuda-graph", dest="graph", action=argparse.BooleanOptionalAction, help="also a CUDA graph; default on CUDA")
    add("--rounds", type=count, default=7, help="samples of each part")
    add("--epochs", type=count, default=3, help="epochs of each loop, after one to warm up")
    add("--seconds", type=float, default=1.0, help="approximate length of a measurement of a loader alone")
    add("--limit", type=float, default=float("inf"), metavar="SECONDS", help="time after which nothing more begins")
    add("--json", type=Path, metavar="FILE")
    add("--markdown", type=Path, metavar="FILE")
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_step_parser()
    options = parser.parse_args(argv)
    cuda = options.device == "cuda"
    check_device(parser, options.device)
    if options.graph and not cuda:
        parser.error("argument --cuda-graph: it needs --device cuda")
    for name, value in (DEFAULTS[options.device] | {"compile": cuda, "graph": cuda}).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.images < options.batch:
        parser.error(f"argument --images: an epoch needs at least the {options.batch} images of a batch")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        measure(options)
    except UdskdError as error:
        print(f"bench.step: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
