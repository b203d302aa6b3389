"""Time of the loss: udskd beside the alternatives, interleaved on one machine.

    python -m bench.loss --device cpu --threads 1 --json FILE --plot DIR

The measured loss is the paper's: labels, teacher, peers, weights by entropy. Before a case is timed, every provider's
loss and gradients are compared with float64. A wrong result of another library excludes it from the case; a wrong
result of udskd or eager PyTorch ends the run. GB/s and the share of a copy count only the bytes that every
implementation moves, so that more traffic does not count as more speed. Small cases stay in the caches and can exceed
100 %; with `--caches cold` every call has logits that have left the caches. Students start independent of the teacher
and end near it: `--students` measures both.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import caches, loss_table, providers, timing
from bench.arguments import add_device, comma_separated, count, make_parser, one_of, shape
from bench.files import write_json, write_text
from bench.loss_case import Disagreement, measure
from bench.machine import check_device
from bench.providers import Provider
from bench.records import command_line, digits, environment
from bench.workload import CACHES, DTYPES, LOSS_OPTIONS, PASSES, Case
from udskd.results import table

SHAPES = {
    "cpu": "256x100,1024x1000,256x21840,256x21841",  # 21840 is divisible by every vector length, 21841 by none
    "cuda": "256x100,1024x1000,4096x1000,4096x21840,4096x21841,512x131072",
}


def run(options: argparse.Namespace, chosen: Sequence[Provider]) -> list[dict[str, Any]]:
    """Measures every case; shows and saves its rows at once."""
    copy = timing.copy_bandwidth(options.device)
    print(f"copy: {copy:.1f} GB/s, {torch.get_num_threads()} thread(s)\n", flush=True)
    common = environment(options.device, command(options)) | {"copy_gb_per_s": digits(copy)}
    out, end = list[dict[str, Any]](), time.monotonic() + options.limit
    for case in cases(options):
        if time.monotonic() > end:
            print(f"no time left for {case} and the cases after it", flush=True)
            break
        try:
            rows = measure(case, chosen, options.device, options.loss, options.rounds, copy, options.kernels)
        except torch.OutOfMemoryError:
            print(f"no memory for {case}\n", flush=True)
            continue
        table.show(loss_table.sections(rows))
        print(flush=True)
        out += [row | common for row in rows]
        save(options, out)
    return out


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All combinations, without cold cases that would need too many batches."""
    cache_bytes = caches.last_level_bytes(options.device)
    combinations = itertools.product(options.shapes, options.dtypes, options.passes, options.caches, options.students)
    for (rows, classes), dtype, kind, cache, apart in combinations:
        case = Case(rows, classes, dtype, kind, cache, None if apart == INDEPENDENT else float(apart))
        if caches.batch_count(case, cache_bytes) <= caches.MAX_BATCHES:
            yield case
        else:
            print(f"skipped: {case}: too small to leave caches of {cache_bytes / 1e6:.0f} MB\n", flush=True)


def save(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Writes the rows so far, in case that a later case ends the process."""
    if options.json:
        write_json(options.json, rows)
    if options.markdown:
        tables = [*loss_table.summary(rows), *loss_table.sections(rows)]
        write_text(options.markdown, table.markdown(tables) + "\n")


def command(options: argparse.Namespace) -> str:
    names = ("shapes", "dtypes", "passes", "caches", "students", "temperature", "providers", "rounds", "kernels")
    given = {name: getattr(options, name) for name in names}
    return command_line("loss", device=options.device, threads=torch.get_num_threads(), **given)


INDEPENDENT = "independent"


def student_logits(text: str) -> str:
    """INDEPENDENT, or a number above 0."""
    try:
        known = text == INDEPENDENT or 0 < float(text) < float("inf")
    except ValueError:
        known = False
    if not known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither {INDEPENDENT} nor a number above 0")
    return text


# --- the command line ------------------------------------------------------------------------------------------------


def make_loss_parser() -> argparse.ArgumentParser:
    parser = make_parser("loss", __doc__)
    add = parser.add_argument
    add_device(parser)
    add("--threads", type=count, help="PyTorch's threads; its own default if not given")
    add("--shapes", type=comma_separated(shape), help="ROWSxCLASSES,...")
    add("--dtypes", type=comma_separated(one_of("dtype", list(DTYPES))), default=["float32", "bfloat16"])
    add("--passes", type=comma_separated(one_of("pass", PASSES)), default=list(PASSES))
    states = "whether the caches hold the logits: warm, cold or both"
    add("--caches", type=comma_separated(one_of("state", CACHES)), default=["warm"], help=states)
    near = "how far the students' logits are from the teacher's: independent, or standard deviations such as 0.25"
    add("--students", type=comma_separated(student_logits), default=[INDEPENDENT, "0.25"], help=near)
    add("--temperature", type=float, default=4.0)
    known = one_of("provider", list(providers.FACTORIES))
    add("--providers", type=comma_separated(known), default=providers.DEFAULT)
    add("--rounds", type=count, default=20, help="samples of each provider in each case")
    kernels = "on a GPU, also the kernels' own times, by a profiler that may slow down later measurements"
    add("--kernels", action="store_true", help=kernels)
    add("--limit", type=float, default=float("inf"), metavar="SECONDS", help="time after which no case begins")
    add("--json", type=Path, metavar="FILE", help="all rows, with machine, versions and command")
    add(
        "--plot", type=Path, metavar="DIR", help="folder of speedup.png and bandwidth.png, or of curves for many shapes"
    )
    add("--markdown", type=Path, metavar="FILE", help="a summary for each pass, then all tables")
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_loss_parser()
    options = parser.parse_args(argv)
    check_device(parser, options.device)
    if not 0 < options.temperature < float("inf"):
        parser.error("argument --temperature: it must be above 0")
    options.shapes = options.shapes or comma_separated(shape)(SHAPES[options.device])
    options.loss = LOSS_OPTIONS | {"temperature": options.temperature}
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
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
        from bench import loss_plots  # importing matplotlib takes a second

        loss_plots.draw(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
