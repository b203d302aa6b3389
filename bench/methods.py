"""How fast a recipe trains by each method: the step of `udskd train`, images on the device already.

    python -m bench.methods recipes/caltech20.toml --data.root DIR [--rounds N] [--threads N] [--json FILE]

All methods take turns with networks of the same weights; the options of a recipe follow, as for `udskd train`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from bench import machine, table
from bench.loss import count, one_of
from bench.measure import digits
from bench.timing import Times, Work, interleaved
from udskd import methods
from udskd.cli.options import parse
from udskd.config import schema, toml
from udskd.config.schema import Config
from udskd.data import open_sets
from udskd.doctor.step_benchmark import StepBenchmark
from udskd.results import table as report

HEADER = ["method", "images/s", "a step", "p10 - p90", "of kd"]


def stepping(trial: StepBenchmark) -> Work:
    """Steps on one and the same batch."""
    inputs = trial.inputs(trial.batch())

    def work(times: int) -> None:
        for _ in range(times):
            trial.train_step(inputs)

    return work


def measure(config: Config, names: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """A row for each method."""
    images, _ = open_sets(config.data)
    with ExitStack() as stack:
        works: dict[str, Work] = {}
        for name in names:
            trial = StepBenchmark(schema.with_values(config, {"method": name}), images)
            stack.callback(trial.close)
            works[name] = stepping(trial)
            device, batch = trial.runtime.device.type, trial.loader.batch_size
        times = interleaved(works, rounds, device)
    return [row(name, t, batch) for name, t in times.items()]


def row(name: str, times: Times, batch: int) -> dict[str, Any]:
    found = {key: digits(getattr(times, key)) for key in ("median", "p10", "p90")}
    return {
        "method": name,
        "images_per_s": digits(batch / times.median * 1e6),
        **{f"{k}_us": v for k, v in found.items()},
    }


def lines(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    kd = next((r["median_us"] for r in rows if r["method"] == "kd"), None)
    return [
        [
            r["method"],
            f"{r['images_per_s']:.4g}",
            table.time(r["median_us"]),
            f"{table.time(r['p10_us'])} - {table.time(r['p90_us'])}",
            "" if kd is None else f"{kd / r['median_us']:.2f}x",
        ]
        for r in rows
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.methods", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    a_method: Callable[[str], str] = one_of("method", methods.names())
    parser.add_argument("recipe", help="a recipe of `udskd train`")
    parser.add_argument("--rounds", type=count, default=9, help="samples of each")
    parser.add_argument("--threads", type=count, help="of PyTorch, on the CPU")
    parser.add_argument("--methods", type=a_method, nargs="+", default=methods.names())
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options, rest = parser.parse_known_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    config = parse([options.recipe, *rest])
    rows = measure(config, options.methods, options.rounds)
    size, batch = config.data.image_size, config.training.batch_size
    title = f"{Path(options.recipe).stem}: {batch} images of {size} px, {torch.get_num_threads()} threads"
    report.show([report.Section(title, HEADER, lines(rows))])
    if options.json:
        command = f"python -m bench.methods {options.recipe} --data.root DIR --rounds {options.rounds}"
        command += f" --threads {options.threads}" * bool(options.threads)
        if options.methods != methods.names():
            command += f" --methods {' '.join(options.methods)}"
        changed = {name: value for name, value in schema.flatten(config).items() if name != "data.root"}
        stored = schema.flatten(toml.load(options.recipe))
        command += "".join(f" --{name} {value}" for name, value in changed.items() if stored[name] != value)
        found = {"command": command, "machine": machine.machine(), "versions": machine.versions(), "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
