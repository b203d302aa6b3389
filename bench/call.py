"""Overhead of a call: microseconds on logits of 8 x 10, where computing takes almost no time.

    python -m bench.call [--device cuda] [--threads N] [--rounds N] [--json FILE]

F.cross_entropy of one student, a single operator of PyTorch, is the lower bound.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import providers
from bench.arguments import add_device, count, make_parser
from bench.files import write_json
from bench.machine import check_device
from bench.records import command_line, environment
from bench.timing import TimedLoop, interleaved
from bench.workload import LOSS_OPTIONS, Case, Loss, Workload, make_workload
from udskd.results import table

ROWS, CLASSES = 8, 10
PASSES = ("no grad", "forward", "forward+backward")  # "forward" includes what it saves for the backward pass


def cross_entropy(teacher: Tensor, a: Tensor, b: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(a, target)


def loop_of(loss: Loss, workload: Workload, kind: str) -> TimedLoop:
    students = (workload.student_a,) if loss is cross_entropy else workload.students

    def loop(times: int) -> None:
        with torch.set_grad_enabled(kind != "no grad"):
            for _ in range(times):
                value = loss(*workload)
                if kind == "forward+backward":
                    torch.autograd.grad(value, students)

    return loop


def measure(device: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each callable and pass."""
    chosen, _ = providers.available(["eager", "udskd"], device, LOSS_OPTIONS | {"temperature": 4.0})
    losses: dict[str, Loss] = {"F.cross_entropy": cross_entropy} | {provider.name: provider.loss for provider in chosen}
    workload = make_workload(Case(ROWS, CLASSES, "float32", "forward+backward"), device)
    loops = {(name, kind): loop_of(loss, workload, kind) for name, loss in losses.items() for kind in PASSES}
    threads = torch.get_num_threads()
    command = command_line("call", device=device, threads=threads, rounds=rounds)
    common = {"rows": ROWS, "classes": CLASSES, "threads": threads} | environment(device, command)
    times = interleaved(loops, rounds, device)
    return [{"provider": name, "pass": kind} | times[name, kind].as_row() | common for name, kind in loops]


def section(rows: Sequence[dict[str, Any]]) -> table.Section:
    found = {(row["provider"], row["pass"]): f"{row['median_us']:.1f}" for row in rows}
    names = dict.fromkeys(row["provider"] for row in rows)
    title = f"microseconds a call, {ROWS} x {CLASSES}, float32, median"
    return table.Section(title, ["", *PASSES], [[name, *(found[name, kind] for kind in PASSES)] for name in names])


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("call", __doc__)
    add_device(parser)
    parser.add_argument("--threads", type=count, default=1, help="PyTorch's threads")
    parser.add_argument("--rounds", type=count, default=50, help="samples of each candidate")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    check_device(parser, options.device)
    torch.set_num_threads(options.threads)
    rows = measure(options.device, options.rounds)
    table.show([section(rows)])
    if options.json:
        write_json(options.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
