"""What a call costs where there is nothing to compute: microseconds on 8 x 10 logits.

    python -m bench.call [--device cuda] [--threads N] [--rounds N] [--json FILE]

F.cross_entropy of one student, a single operator of PyTorch's own, is the floor.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import machine, providers
from bench.loss import count, write
from bench.measure import digits
from bench.problem import OPTIONS, Case, Loss, Problem, make
from bench.timing import Work, interleaved
from udskd.results import table

ROWS, CLASSES = 8, 10
PASSES = ("no grad", "forward", "forward+backward")  # forward: with what the backward pass will need


def floor(teacher: Tensor, a: Tensor, b: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(a, target)


def repeated(loss: Loss, problem: Problem, kind: str) -> Work:
    students = (problem.student_a,) if loss is floor else (problem.student_a, problem.student_b)

    def work(times: int) -> None:
        with torch.set_grad_enabled(kind != "no grad"):
            for _ in range(times):
                value = loss(*problem)
                if kind == "forward+backward":
                    torch.autograd.grad(value, students)

    return work


def measure(device: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each callable and pass."""
    chosen, _ = providers.available(["eager", "udskd"], device, OPTIONS | {"temperature": 4.0})
    losses: dict[str, Loss] = {"F.cross_entropy": floor} | {provider.name: provider.loss for provider in chosen}
    problem = make(Case(ROWS, CLASSES, "float32", "forward+backward"), device)
    works = {(name, kind): repeated(loss, problem, kind) for name, loss in losses.items() for kind in PASSES}
    shared = {
        "rows": ROWS,
        "classes": CLASSES,
        "threads": torch.get_num_threads(),
        "machine": machine.machine(device),
        "versions": machine.versions(),
        "command": f"python -m bench.call --device {device} --threads {torch.get_num_threads()} --rounds {rounds}",
    }
    times = interleaved(works, rounds, device)
    return [
        {
            "provider": name,
            "pass": kind,
            "median_us": digits(t.median),
            "p10_us": digits(t.p10),
            "p90_us": digits(t.p90),
        }
        | shared
        for (name, kind), t in times.items()
    ]


def section(rows: Sequence[dict[str, Any]]) -> table.Section:
    found = {(row["provider"], row["pass"]): f"{row['median_us']:.1f}" for row in rows}
    names = dict.fromkeys(row["provider"] for row in rows)
    title = f"microseconds a call, {ROWS} x {CLASSES}, float32, median"
    return table.Section(title, ["", *PASSES], [[name, *(found[name, kind] for kind in PASSES)] for name in names])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.call", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--rounds", type=count, default=50, help="samples of each")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: PyTorch sees no CUDA device")
    machine.keep_memory()
    torch.set_num_threads(options.threads)
    rows = measure(options.device, options.rounds)
    table.show([section(rows)])
    if options.json:
        write(options.json, json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
