"""Training speed of each method on one recipe: the step of `udskd train`, with the images already on the device.

    python -m bench.methods recipes/caltech20.toml --data.root DIR [--rounds N] [--threads N] [--json FILE]

All methods take turns, with networks of the same initial weights. Options of the recipe are given as to `udskd train`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from bench.arguments import count, make_parser, one_of
from bench.files import write_json
from bench.formatting import spread, time
from bench.records import digits, environment
from bench.timing import TimedLoop, Times, interleaved, repeat
from udskd import methods
from udskd.cli.options import parse
from udskd.config import schema, toml
from udskd.config.schema import Config
from udskd.data import open_sets
from udskd.doctor.step_benchmark import StepBenchmark
from udskd.results import table

HEADER = ["method", "images/s", "a step", "p10 - p90", "of kd"]


def measure(config: Config, names: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """A row for each method."""
    images, _ = open_sets(config.data)
    with ExitStack() as stack:
        loops: dict[str, TimedLoop] = {}
        for name in names:
            benchmark = StepBenchmark(schema.with_values(config, {"method": name}), images)
            stack.callback(benchmark.close)
            loops[name] = repeat(partial(benchmark.train_step, benchmark.inputs(benchmark.batch())))
            device, batch = benchmark.runtime.device.type, benchmark.loader.batch_size
        times = interleaved(loops, rounds, device)
    return [row(name, t, batch) for name, t in times.items()]


def row(name: str, times: Times, batch: int) -> dict[str, Any]:
    return {"method": name, "images_per_s": digits(batch / times.median * 1e6), **times.as_row()}


def lines(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    kd = next((r["median_us"] for r in rows if r["method"] == "kd"), None)
    return [
        [
            r["method"],
            f"{r['images_per_s']:.4g}",
            time(r["median_us"]),
            spread(r),
            "" if kd is None else f"{kd / r['median_us']:.2f}x",
        ]
        for r in rows
    ]


def command(options: argparse.Namespace, config: Config) -> str:
    """The command that repeats the measurement, with every option that differs from the recipe but the path."""
    text = f"python -m bench.methods {options.recipe} --data.root DIR --rounds {options.rounds}"
    text += f" --threads {options.threads}" * bool(options.threads)
    if options.methods != methods.names():
        text += f" --methods {' '.join(options.methods)}"
    stored = schema.flatten(toml.load(options.recipe))
    changed = {name: value for name, value in schema.flatten(config).items() if stored[name] != value}
    return text + "".join(f" --{name} {value}" for name, value in changed.items() if name != "data.root")


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("methods", __doc__)
    parser.add_argument("recipe", help="a recipe of `udskd train`")
    parser.add_argument("--rounds", type=count, default=9, help="samples of each candidate")
    parser.add_argument("--threads", type=count, help="PyTorch's threads on the CPU")
    a_method = one_of("method", methods.names())
    parser.add_argument("--methods", type=a_method, nargs="+", default=methods.names())
    parser.add_argument("--json", type=Path, metavar="FILE")
    options, rest = parser.parse_known_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        config = parse([options.recipe, *rest])
    except click.ClickException as error:
        error.show()
        return error.exit_code
    rows = measure(config, options.methods, options.rounds)
    size, batch = config.data.image_size, config.training.batch_size
    title = f"{Path(options.recipe).stem}: {batch} images of {size} px, {torch.get_num_threads()} threads"
    table.show([table.Section(title, HEADER, lines(rows))])
    if options.json:
        write_json(options.json, {**environment("cpu", command(options, config)), "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
