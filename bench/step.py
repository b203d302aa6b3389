"""How fast networks are trained: udskd's step and epoch, part by part, beside a plain PyTorch loop.

    python -m bench.step --device cuda --json FILE --markdown FILE

Ours is the code of `udskd train` itself: its step, its epoch loop, its loader. The plain loop (bench/plain.py) has the
same networks, images, batch size and precision (bf16 autocast on CUDA, fp32 on the CPU), once as it is and once in
channels_last, as ours is. Parts are timed on batches that lie on the device, in turns; a part's weights are shared with
the step that it is a part of. End to end is a whole epoch from JPEG files (or resident images, where it says so) to
updated weights.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from bench import cpu_timing, images, loader, machine, plain, table, timing
from bench.cases import LAYOUTS, Subjects, config_of, get_ready
from bench.loss import count, write
from bench.measure import digits
from bench.timing import Times
from udskd.config import schema
from udskd.data import open_sets
from udskd.doctor.step_benchmark import StepBenchmark
from udskd.doctor.verdict import rate
from udskd.errors import UdskdError
from udskd.results import table as report

CORES = os.cpu_count() or 1
# For each device: what is measured by default, and what a machine of it does in a few minutes.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"image_size": 64, "batch": 32, "images": 192, "stem": "imagenet", "threads": 1, "workers": 1},
    "cuda": {"image_size": 224, "batch": 256, "images": 4096, "stem": "auto", "threads": None, "workers": CORES},
}
PARTS_HEADER = ["part", "whose", "images/s", "a batch", "p10 - p90", "vs plain", "vs channels_last", "peak MB"]
EPOCHS_HEADER = ["what", "images", "images/s", "least - most", "of the step alone", "cores busy"]
FOR_PARTS = 0.6  # of the time limit: what is not ready by then is left out


# --- parts ------------------------------------------------------------------------------------------------------------


def part_rows(times: Mapping[tuple[str, str], Times], subjects: Subjects, batch: int) -> list[dict[str, Any]]:
    """A row for each part of each subject, part by part."""
    return [
        {
            "part": part,
            "whose": name,
            "images_per_s": digits(batch / t.median * 1e6),
            **{f"{key}_us": digits(getattr(t, key)) for key in ("median", "p10", "p90", "wall")},
            "peak_bytes": subjects.peaks[name] if part == "step" else None,
        }
        for wanted in dict.fromkeys(part for part, _ in times)
        for (part, name), t in times.items()
        if part == wanted
    ]


# --- epochs -----------------------------------------------------------------------------------------------------------


def epochs(stack: ExitStack, root: Path, subjects: Subjects, options: argparse.Namespace) -> dict[Any, cpu_timing.Work]:
    """What takes turns: the loaders alone, copying alone, and whole epochs of everybody."""
    config, (train, _) = config_of(options, root), open_sets(config_of(options, root).data)
    out: dict[Any, cpu_timing.Work] = {}
    for mode in ("threads", "resident"):
        data = schema.with_values(config, {"data.loader": mode}).data
        out["loader alone, udskd", mode, ""] = loader.ours(stack, data, options, options.expected, normalised=False)
    out["loader alone, plain", "files", ""] = loader.theirs(config.data, options)
    if options.device == "cuda":
        out["host to device alone", "uint8", ""] = loader.copying(options, torch.uint8)
    for name, trial in subjects.trials.items():
        out[name, trial.config.data.loader, "step"] = epoch(trial.train_epoch)
    other = "threads" if options.device == "cuda" else "resident"
    trial = StepBenchmark(schema.with_values(config, {"data.loader": other}), train)
    stack.callback(trial.close)
    out["udskd", other, "step"] = epoch(trial.train_epoch)
    batches = plain.loader(config.data, range(len(train)), options.batch, options.workers, options.device)
    for name, plainly in subjects.plains.items():
        out[name, "files", "step"] = epoch(lambda plainly=plainly: plainly.epoch(batches)[0])  # type: ignore[misc]
    return out


def epoch(train: Callable[[], int]) -> cpu_timing.Work:
    """A whole epoch as a lap."""

    def work() -> cpu_timing.Lap:
        begin = cpu_timing.clock()
        number = train()
        end = cpu_timing.clock()
        return cpu_timing.Lap(number, end.wall - begin.wall, end.cpu - begin.cpu)

    return work


def epoch_rows(
    found: Mapping[Any, Sequence[cpu_timing.Lap]], parts: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    steps = {row["whose"]: row["images_per_s"] for row in parts if row["part"] == "step"}
    out = []
    for (what, source, kind), each in found.items():
        row = {"what": what, "images": source} | cpu_timing.summary(each)
        out.append(row | {"of_step": digits(row["images_per_s"] / steps[what]) if kind == "step" else None})
    return out


# --- the tables -------------------------------------------------------------------------------------------------------


def sections(parts: Sequence[dict[str, Any]], ends: Sequence[dict[str, Any]]) -> list[report.Section]:
    found = {(row["part"], row["whose"]): row for row in parts}
    lines = [
        [
            *(row["part"], row["whose"], rate(row["images_per_s"]), table.time(row["median_us"])),
            f"{table.time(row['p10_us'])} - {table.time(row['p90_us'])}",
            *(table.faster(row, found.get((row["part"], name))) for name in LAYOUTS),
            table.megabytes(row["peak_bytes"]),
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
    first = report.Section("parts, on batches that lie on the device", PARTS_HEADER, lines)
    return [first, report.Section("loaders alone, and whole epochs", EPOCHS_HEADER, epochs)]


def common(options: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to place the numbers and to repeat them."""
    names = ("device", "image_size", "batch", "teacher", "student_a", "student_b", "stem", "images", "workers")
    root = [] if options.root is None else ["--data.root", "DIR"]
    parts = [f"--{name.replace('_', '-')} {getattr(options, name)}" for name in (*names, "rounds", "epochs")]
    parts += [f"--threads {torch.get_num_threads()}", "--compile" if options.compile else "--no-compile"]
    parts += ["--cuda-graph" if options.graph else "--no-cuda-graph"]
    return {
        **{name: getattr(options, name) for name in names},
        "precision": "bf16 autocast" if options.device == "cuda" else "fp32",
        "threads": torch.get_num_threads(),
        "machine": machine.machine(options.device),
        "versions": machine.versions(),
        "command": " ".join(["python -m bench.step", *root, *parts]),
    }


# --- the command line -------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> None:
    """Everything; the parts are written before the epochs begin."""
    begin = time.monotonic()
    with images.tree(options.root, options.images, CORES) as root, ExitStack() as stack:
        subjects = get_ready(stack, root, options, begin + FOR_PARTS * options.limit)
        times = timing.interleaved(subjects.works, options.rounds, options.device)
        parts = part_rows(times, subjects, options.batch)
        save(options, parts, [])
        report.show(sections(parts, [])[:1])
        works = epochs(stack, root, subjects, options)
        found = cpu_timing.turns(works, options.epochs, begin + options.limit)
        ends = epoch_rows({name: each for name, each in found.items() if each}, parts)
    save(options, parts, ends)
    print()
    report.show(sections(parts, ends)[1:])


def save(options: argparse.Namespace, parts: list[dict[str, Any]], ends: list[dict[str, Any]]) -> None:
    """Writes what there is, where it is wanted."""
    if options.json:
        write(options.json, json.dumps({**common(options), "parts": parts, "epochs": ends}, indent=1) + "\n")
    if options.markdown:
        write(options.markdown, report.markdown(sections(parts, ends)) + "\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.step", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--data.root", dest="root", metavar="DIR", help="train/CLASS/* and val/CLASS/*; generated if not given")
    add("--image-size", type=count, help="64 on the CPU, 224 on CUDA")
    add("--batch", type=count, help="images of a step; 32 on the CPU, 256 on CUDA")
    add("--images", type=count, help="images of an epoch")
    add("--teacher", default="resnet50")
    add("--student-a", default="resnet18")
    add("--student-b", default="mobilenet_v2")
    add("--stem", choices=("auto", "imagenet", "half", "small"), help="imagenet on the CPU, auto on CUDA")
    add("--threads", type=count, help="of PyTorch's; 1 on the CPU, as many as it takes by itself on CUDA")
    add("--workers", type=count, help="of the loaders; 1 on the CPU, one a core on CUDA")
    add("--compile", action=argparse.BooleanOptionalAction, help="also compiled; on CUDA by default")
    add("--cuda-graph", dest="graph", action=argparse.BooleanOptionalAction, help="also as a CUDA graph, likewise")
    add("--rounds", type=count, default=7, help="samples of each part")
    add("--epochs", type=count, default=3, help="of each end to end, after one to warm up")
    add("--seconds", type=float, default=1.0, help="of a loader alone, about")
    add("--limit", type=float, default=float("inf"), metavar="SECONDS", help="after which nothing more is begun")
    add("--json", type=Path, metavar="FILE")
    add("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("argument --device: PyTorch sees no CUDA device")
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
    options.expected = 500.0  # images per second of a core, for the length of the loaders' windows
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
