"""Crop and resize on one core: udskd at each SIMD level beside Pillow and torchvision.

    python -m bench.resize [--rounds N] [--json FILE]

A process cannot change its SIMD level, so each level has a process of its own; all take turns within one run.
"""

from __future__ import annotations

import argparse
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
from bench import machine
from bench.arguments import count, make_parser
from bench.files import write_json
from bench.formatting import speedup, spread, time
from bench.timing import TimedLoop, interleaved, repeat
from udskd.data.resize import View, crop_resize
from udskd.results import table

HEADER = ["", "median", "p10-p90", "vs Pillow"]


class ResizeCase(NamedTuple):
    height: int
    width: int
    view: View

    def __str__(self) -> str:
        v = self.view
        box = f"{v.right - v.left} x {v.bottom - v.top} of {self.width} x {self.height}"
        return f"{box} pixels to {v.width} x {v.height}"


CASES = (
    ResizeCase(250, 300, View(40, 20, 240, 220, 224, 224, 0, 0)),
    ResizeCase(300, 250, View(10, 20, 210, 285, 224, 224, 0, 0)),  # resizes the columns first
    ResizeCase(400, 500, View(0, 0, 500, 400, 224, 224, 0, 0)),
    ResizeCase(64, 64, View(0, 0, 64, 64, 48, 48, 0, 0)),
)


def pixels_of(case: ResizeCase) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (case.height, case.width, 3), dtype=np.uint8)


def udskd_resize(case: ResizeCase) -> Callable[[], object]:
    pixels, out = pixels_of(case), np.empty((case.view.height, case.view.width, 3), np.uint8)
    return lambda: crop_resize(pixels, case.view, out)


def pillow(case: ResizeCase) -> Callable[[], object]:
    image, v = Image.fromarray(pixels_of(case)), case.view
    return lambda: np.asarray(image.crop(v[:4]).resize((v.width, v.height), Image.Resampling.BILINEAR))


def pillow_box(case: ResizeCase) -> Callable[[], object]:
    image, v = Image.fromarray(pixels_of(case)), case.view
    return lambda: np.asarray(image.resize((v.width, v.height), Image.Resampling.BILINEAR, box=v[:4]))


def torchvision(case: ResizeCase) -> Callable[[], object]:
    """On a channels_last image, for which PyTorch has a fast path."""
    image, v = torch.from_numpy(pixels_of(case)).permute(2, 0, 1), case.view
    box, size = (v.top, v.left, v.bottom - v.top, v.right - v.left), [v.height, v.width]
    return lambda: F.resized_crop(image, *box, size, v2.InterpolationMode.BILINEAR, antialias=True)


OTHERS = {"Pillow crop, resize": pillow, "Pillow resize(box=)": pillow_box, "torchvision": torchvision}


class LevelProcess:
    """A process at one SIMD level. It reads lines with the number of a case and of iterations, and confirms each."""

    def __init__(self, name: str) -> None:
        command = [sys.executable, "-m", "bench.resize", "--serve"]
        environment = os.environ | {"UDSKD_SIMD": name}
        self.process = subprocess.Popen(
            command, env=environment, text=True, bufsize=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def loop(self, case: int) -> TimedLoop:
        def request(times: int) -> None:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(f"{case} {times}\n")
            if not self.process.stdout.readline():
                raise RuntimeError("a process that measures a SIMD level has ended")

        return request

    def end(self) -> None:
        self.process.communicate()


def serve() -> None:
    """The main loop of a LevelProcess."""
    loops = [repeat(udskd_resize(case)) for case in CASES]
    for line in sys.stdin:
        case, times = map(int, line.split())
        loops[case](times)
        print("done", flush=True)


def simd_levels() -> list[str]:
    """The SIMD levels up to the one in use."""
    info = udskd.build_info()
    return info["simd_levels"][: info["simd_levels"].index(info["simd"]) + 1] if info["simd"] else []


def measure(rounds: int) -> list[dict[str, Any]]:
    """A row for each case and implementation."""
    levels = {name: LevelProcess(name) for name in simd_levels()}
    common = {"machine": machine.machine("cpu"), "versions": machine.versions() | {"pillow": Image.__version__}}
    rows = []
    try:
        for k, case in enumerate(CASES):
            loops = {name: repeat(make(case)) for name, make in OTHERS.items()}
            loops |= {f"udskd, {name}": level.loop(k) for name, level in levels.items()}
            for name, t in interleaved(loops, rounds, "cpu").items():
                rows.append({"case": str(case), "provider": name} | t.as_row() | common)
    finally:
        for level in levels.values():
            level.end()
    return rows


def line(row: dict[str, Any], baseline: dict[str, Any]) -> list[str]:
    return [row["provider"], time(row["median_us"]), spread(row), speedup(row, baseline)]


def sections(rows: Sequence[dict[str, Any]]) -> list[table.Section]:
    out = []
    for case in dict.fromkeys(row["case"] for row in rows):
        found = {row["provider"]: row for row in rows if row["case"] == case}
        lines = [line(row, found["Pillow crop, resize"]) for row in found.values()]
        out.append(table.Section(case, HEADER, lines))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("resize", __doc__)
    parser.add_argument("--rounds", type=count, default=50, help="samples of each candidate")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.serve:
        serve()
        return 0
    rows = measure(options.rounds)
    table.show(sections(rows))
    if options.json:
        write_json(options.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
