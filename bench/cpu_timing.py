"""Images, time and processor time of works that take turns: for what keeps more than one process busy."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from bench.measure import digits

K = TypeVar("K")


class Clock(NamedTuple):
    """Seconds of the wall and of the processor, the latter of this process and its workers."""

    wall: float
    cpu: float


class Lap(NamedTuple):
    """What one window saw."""

    images: int
    wall: float
    cpu: float


Work = Callable[[], Lap]


def clock() -> Clock:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return Clock(time.perf_counter(), time.process_time() + sum(map(cpu_of, multiprocessing.active_children())))


def cpu_of(process: Any) -> float:
    """Seconds that another process has computed; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def turns(works: Mapping[K, Work], rounds: int, end: float = float("inf")) -> dict[K, list[Lap]]:
    """Every work once in each round, in rotating order, after a warm-up; after a moment of time.monotonic() no round
    is begun but the first, and nothing warmed up."""
    names = list(works)
    laps: dict[K, list[Lap]] = {name: [] for name in names}
    for name, work in works.items():
        if time.monotonic() > end:
            print(f"no time left to warm up {name}", flush=True)
            return laps
        work()
    print("warmed up", flush=True)
    for number in range(rounds):
        if number and time.monotonic() > end:
            print(f"no time left after round {number}", flush=True)
            break
        for turn in range(len(names)):
            name = names[(number + turn) % len(names)]
            laps[name].append(works[name]())
        print(f"round {number + 1} of {rounds}", flush=True)
    return laps


def summary(laps: Sequence[Lap]) -> dict[str, Any]:
    """Medians; rates in images per second, of the wall and of one core."""
    rates = [lap.images / lap.wall for lap in laps]
    per_core = [lap.images / lap.cpu for lap in laps if lap.cpu > 0]
    return {
        "images_per_s": digits(statistics.median(rates)),
        "least": digits(min(rates)),
        "most": digits(max(rates)),
        "images_per_core_s": digits(statistics.median(per_core)) if per_core else None,
        "cores_busy": digits(statistics.median(lap.cpu / lap.wall for lap in laps)),
    }
