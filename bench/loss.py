"""How long the loss takes: udskd beside what a user would take instead, on one machine, taking turns.

    python -m bench.loss --device cpu --threads 1 --json FILE --plot DIR

The problem is the paper's whole loss: labels, teacher, peers, weighting by entropy. Before a case is timed, every
provider's loss and gradients are compared with float64's; another library's that are wrong are left out, ours or
eager's end the run. GB/s and the share of a copy count only the bytes that no implementation can avoid, so that moving
more does not look like more. Small cases stay in the caches and can exceed 100 %; with `--caches cold` every call has
logits that have left them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import caches, machine, providers, table, timing
from bench.measure import Disagreement, digits, measure
from bench.problem import CACHES, DTYPES, OPTIONS, PASSES, Case
from bench.providers import Provider
from udskd.results import table as report

SHAPES = {
    "cpu": "256x100,1024x1000,256x21840,256x21841",  # the last two: rows that vectors divide, and rows that none does
    "cuda": "256x100,1024x1000,4096x1000,4096x21840,4096x21841,512x131072",
}


def run(options: argparse.Namespace, chosen: Sequence[Provider]) -> list[dict[str, Any]]:
    """Measures every case, and shows each as soon as it is done."""
    copy = timing.copy_bandwidth(options.device)
    print(f"copy: {copy:.1f} GB/s, {torch.get_num_threads()} thread(s)\n", flush=True)
    shared = {
        "machine": machine.machine(options.device),
        "versions": machine.versions(),
        "command": command(options),
        "copy_gb_per_s": digits(copy),
    }
    out, end, cache_bytes = [], time.monotonic() + options.limit, caches.last_level(options.device)
    every = itertools.product(options.shapes, options.dtypes, options.passes, options.caches)
    for (height, classes), dtype, kind, cache in every:
        case = Case(height, classes, dtype, kind, cache)
        if time.monotonic() > end:
            print(f"no time left for {case} and what follows it", flush=True)
            break
        if caches.batches(case, cache_bytes) > caches.MOST:
            print(f"skipped: {case}: too small to leave caches of {cache_bytes / 1e6:.0f} MB\n", flush=True)
            continue
        try:
            rows = measure(case, chosen, options.device, options.loss, options.rounds, copy, options.kernels)
        except torch.OutOfMemoryError:
            print(f"no memory for {case}\n", flush=True)
            continue
        report.show(table.sections(rows))
        print(flush=True)
        out += [row | shared for row in rows]
        save(options, out)
    return out


def save(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """What there is so far: nobody knows how the next case ends."""
    if options.json:
        write(options.json, json.dumps(rows, indent=1) + "\n")
    if options.markdown:
        write(options.markdown, report.markdown([*table.summary(rows), *table.sections(rows)]) + "\n")


def command(options: argparse.Namespace) -> str:
    """The command that measures this again, without this machine's paths."""
    shapes = ",".join(f"{rows}x{classes}" for rows, classes in options.shapes)
    parts = ["python", "-m", "bench.loss", "--device", options.device, "--threads", str(torch.get_num_threads())]
    parts += ["--shapes", shapes, "--dtypes", ",".join(options.dtypes), "--passes", ",".join(options.passes)]
    parts += ["--caches", ",".join(options.caches)]
    parts += ["--temperature", str(options.temperature), "--providers", ",".join(options.providers)]
    return shlex.join([*parts, "--rounds", str(options.rounds), *["--kernels"] * options.kernels])


def write(path: Path, text: str) -> None:
    """All of it or nothing; what was there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


# --- the command line ------------------------------------------------------------------------------------------------


def a_shape(text: str) -> tuple[int, int]:
    rows, _, classes = text.partition("x")
    if not (rows.isdecimal() and classes.isdecimal() and int(rows) >= 1 and int(classes) >= 2):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no ROWSxCLASSES with 1 row and 2 classes or more, such as 256x100"
        )
    return int(rows), int(classes)


def one_of(what: str, known: Sequence[str]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"unknown {what} {text!r}; known are {', '.join(known)}")
        return text

    return check


def listed(one: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Comma-separated, each once."""
    return lambda text: list(dict.fromkeys(one(part.strip()) for part in text.split(",")))


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m bench.loss", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--threads", type=count, help="of PyTorch's; as many as it takes by itself if not given")
    add("--shapes", type=listed(a_shape), help="ROWSxCLASSES,...")
    add("--dtypes", type=listed(one_of("dtype", list(DTYPES))), default=["float32", "bfloat16"])
    add("--passes", type=listed(one_of("pass", PASSES)), default=list(PASSES))
    add("--caches", type=listed(one_of("state", CACHES)), default=["warm"], help="of the logits: warm, cold or both")
    add("--temperature", type=float, default=4.0)
    add("--providers", type=listed(one_of("provider", list(providers.FACTORIES))), default=providers.DEFAULT)
    add("--rounds", type=count, default=20, help="samples of each provider in each case")
    kernels = "on a GPU, the kernels' own times as well, by a profiler that may slow what is timed after it"
    add("--kernels", action="store_true", help=kernels)
    add("--limit", type=float, default=float("inf"), metavar="SECONDS", help="after which no case is started")
    add("--json", type=Path, metavar="FILE", help="all rows, with what is needed to place and to repeat them")
    add("--plot", type=Path, metavar="DIR", help="for speedup.png and bandwidth.png; of many shapes, curves")
    add("--markdown", type=Path, metavar="FILE", help="a short table for each pass, then all that is printed")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: PyTorch sees no CUDA device")
    if not 0 < options.temperature < float("inf"):
        parser.error("argument --temperature: it must be above 0")
    options.shapes = options.shapes or listed(a_shape)(SHAPES[options.device])
    options.loss = OPTIONS | {"temperature": options.temperature}
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    machine.keep_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    chosen, skipped = providers.available(options.providers, options.device, options.loss)
    for name, reason in skipped.items():
        print(f"skipped: {name}, {reason}")
    try:
        rows = run(options, chosen)
    except Disagreement as wrong:
        print(wrong, file=sys.stderr)
        return 1
    if not rows:
        print("None of the providers can run any of the cases.", file=sys.stderr)
        return 1
    if options.plot:
        from bench import chart  # matplotlib takes a second to import

        chart.draw(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
