"""A training image's crop and resize: ours at each SIMD level beside Pillow and torchvision, on one core.

    python -m bench.resize [--rounds N] [--json FILE]

Levels cannot be changed within a process, so that each has one of its own; all take turns within one run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

import udskd
from bench import machine, table
from bench.loss import count, write
from bench.measure import digits
from bench.timing import Work, interleaved
from udskd.data.resize import View, crop_resize
from udskd.results import table as report

HEADER = ["", "median", "p10-p90", "vs Pillow"]


class Case(NamedTuple):
    height: int
    width: int
    view: View

    def __str__(self) -> str:
        v = self.view
        box = f"{v.right - v.left} x {v.bottom - v.top} of {self.width} x {self.height}"
        return f"{box} pixels to {v.width} x {v.height}"


CASES = (
    Case(250, 300, View(40, 20, 240, 220, 224, 224, 0, 0)),
    Case(300, 250, View(10, 20, 210, 285, 224, 224, 0, 0)),  # the columns first
    Case(400, 500, View(0, 0, 500, 400, 224, 224, 0, 0)),
    Case(64, 64, View(0, 0, 64, 64, 48, 48, 0, 0)),
)


def pixels_of(case: Case) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (case.height, case.width, 3), dtype=np.uint8)


def ours(case: Case) -> Callable[[], object]:
    pixels, out = pixels_of(case), np.empty((case.view.height, case.view.width, 3), np.uint8)
    return lambda: crop_resize(pixels, case.view, out)


def pillow(case: Case) -> Callable[[], object]:
    image, v = Image.fromarray(pixels_of(case)), case.view
    return lambda: np.asarray(image.crop(v[:4]).resize((v.width, v.height), Image.Resampling.BILINEAR))


def pillow_in_one(case: Case) -> Callable[[], object]:
    image, v = Image.fromarray(pixels_of(case)), case.view
    return lambda: np.asarray(image.resize((v.width, v.height), Image.Resampling.BILINEAR, box=v[:4]))


def torchvision(case: Case) -> Callable[[], object]:
    """On channels_last, for which PyTorch has a fast path."""
    image, v = torch.from_numpy(pixels_of(case)).permute(2, 0, 1), case.view
    where, size = (v.top, v.left, v.bottom - v.top, v.right - v.left), [v.height, v.width]
    return lambda: F.resized_crop(image, *where, size, v2.InterpolationMode.BILINEAR, antialias=True)


OTHERS = {"Pillow crop, resize": pillow, "Pillow resize(box=)": pillow_in_one, "torchvision": torchvision}


def repeated(call: Callable[[], object]) -> Work:
    def work(times: int) -> None:
        for _ in range(times):
            call()

    return work


class Level:
    """A process at a SIMD level, which does what it is told in a line: which case, how often."""

    def __init__(self, name: str) -> None:
        command = [sys.executable, "-m", "bench.resize", "--serve"]
        environment = os.environ | {"UDSKD_SIMD": name}
        self.process = subprocess.Popen(
            command, env=environment, text=True, bufsize=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def work(self, case: int) -> Work:
        def tell(times: int) -> None:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(f"{case} {times}\n")
            if not self.process.stdout.readline():
                raise RuntimeError("a process that measures a SIMD level has ended")

        return tell

    def end(self) -> None:
        self.process.communicate()


def serve() -> None:
    """What a Level's process does."""
    works = [repeated(ours(case)) for case in CASES]
    for line in sys.stdin:
        case, times = map(int, line.split())
        works[case](times)
        print("done", flush=True)


def runnable() -> list[str]:
    """The SIMD levels up to the one in use."""
    info = udskd.build_info()
    return info["simd_levels"][: info["simd_levels"].index(info["simd"]) + 1] if info["simd"] else []


def measure(rounds: int) -> list[dict[str, Any]]:
    """A row for each case and what does it."""
    levels = {name: Level(name) for name in runnable()}
    shared = {"machine": machine.machine("cpu"), "versions": machine.versions() | {"pillow": Image.__version__}}
    rows = []
    try:
        for k, case in enumerate(CASES):
            works = {name: repeated(make(case)) for name, make in OTHERS.items()}
            works |= {f"udskd, {name}": level.work(k) for name, level in levels.items()}
            for name, t in interleaved(works, rounds, "cpu").items():
                times = {"median_us": digits(t.median), "p10_us": digits(t.p10), "p90_us": digits(t.p90)}
                rows.append({"case": str(case), "provider": name} | times | shared)
    finally:
        for level in levels.values():
            level.end()
    return rows


def line(row: dict[str, Any], baseline: dict[str, Any]) -> list[str]:
    median, p10, p90 = (table.time(row[f"{name}_us"]) for name in ("median", "p10", "p90"))
    return [row["provider"], median, f"{p10} - {p90}", table.faster(row, baseline)]


def sections(rows: Sequence[dict[str, Any]]) -> list[report.Section]:
    out = []
    for case in dict.fromkeys(row["case"] for row in rows):
        found = {row["provider"]: row for row in rows if row["case"] == case}
        lines = [line(row, found["Pillow crop, resize"]) for row in found.values()]
        out.append(report.Section(case, HEADER, lines))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.resize", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=count, default=50, help="samples of each")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.serve:
        serve()
        return 0
    rows = measure(options.rounds)
    report.show(sections(rows))
    if options.json:
        write(options.json, json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
