"""Images per second and processor time of whole pipelines, which may keep several processes busy."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from bench.records import digits
from bench.timing import rotated

K = TypeVar("K")


class Clocks(NamedTuple):
    """Seconds of wall time, and of processor time of this process and its children."""

    wall: float
    cpu: float


class Interval(NamedTuple):
    """Images, wall time and processor time of one measurement."""

    images: int
    wall: float
    cpu: float


Measurement = Callable[[], Interval]


def read_clocks() -> Clocks:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    children = multiprocessing.active_children()
    return Clocks(time.perf_counter(), time.process_time() + sum(map(cpu_seconds, children)))


def cpu_seconds(process: Any) -> float:
    """Processor time of another process; 0 where the system does not report it."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def between(images: int, begin: Clocks, end: Clocks) -> Interval:
    return Interval(images, end.wall - begin.wall, end.cpu - begin.cpu)


def measurement_of(run: Callable[[], int]) -> Measurement:
    """Measures the whole of a function that returns how many images it has processed."""

    def measure() -> Interval:
        begin = read_clocks()
        images = run()
        return between(images, begin, read_clocks())

    return measure


def interleaved(
    measurements: Mapping[K, Measurement], rounds: int, end: float = float("inf")
) -> dict[K, list[Interval]]:
    """Every measurement once in each round, in rotating order, after a warm-up.

    Args:
        end: a moment of time.monotonic(), after which no warm-up and no round but the first begins.
    """
    names = list(measurements)
    found: dict[K, list[Interval]] = {name: [] for name in names}
    if not _warm_up(measurements, end):
        return found
    for number in range(rounds):
        if number and time.monotonic() > end:
            print(f"no time left after round {number}", flush=True)
            break
        for name in rotated(names, number):
            found[name].append(measurements[name]())
        print(f"round {number + 1} of {rounds}", flush=True)
    return found


def _warm_up(measurements: Mapping[K, Measurement], end: float) -> bool:
    """Runs each once; False if the time ends before the last."""
    for name, measure in measurements.items():
        if time.monotonic() > end:
            print(f"no time left to warm up {name}", flush=True)
            return False
        measure()
    print("warmed up", flush=True)
    return True


def summary(intervals: Sequence[Interval]) -> dict[str, Any]:
    """Medians; images per second of wall time, and per second of processor time."""
    rates = [x.images / x.wall for x in intervals]
    per_core = [x.images / x.cpu for x in intervals if x.cpu > 0]
    return {
        "images_per_s": digits(statistics.median(rates)),
        "least": digits(min(rates)),
        "most": digits(max(rates)),
        "images_per_core_s": digits(statistics.median(per_core)) if per_core else None,
        "cores_busy": digits(statistics.median(x.cpu / x.wall for x in intervals)),
    }
