"""Times that can be compared: all candidates take turns, so that a disturbance of the machine affects all of them."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from bench.records import digits

K = TypeVar("K")
TimedLoop = Callable[[int], None]
"""Runs what is measured the given number of times."""

MIN_SAMPLE_US = 5000.0  # long compared with the clock's resolution and with one interruption by the system
PROBES = 3
COPY_ROUNDS = 9


class Times(NamedTuple):
    """Microseconds of one iteration. On CUDA median, p10 and p90 are taken between two events around the loop; where
    the host is slower than the GPU, they include the time for which the GPU waits."""

    median: float
    p10: float
    p90: float
    wall: float  # median

    def as_row(self, wall: bool = False) -> dict[str, float]:
        """The rounded times by the names that they have in files of results."""
        names = ("median", "p10", "p90", *["wall"] * wall)
        return {f"{name}_us": digits(getattr(self, name)) for name in names}


class TimeSample(NamedTuple):
    device_us: float
    wall_us: float


def repeat(call: Callable[[], object]) -> TimedLoop:
    def loop(times: int) -> None:
        for _ in range(times):
            call()

    return loop


def rotated(names: Sequence[K], by: int) -> list[K]:
    """The names in the order of one round: each round begins with another name."""
    begin = by % max(1, len(names))
    return [*names[begin:], *names[:begin]]


def interleaved(loops: Mapping[K, TimedLoop], rounds: int, device: str) -> dict[K, Times]:
    """One sample of every loop in each round, in rotating order, after a warm-up."""
    names = list(loops)
    samples: dict[K, list[TimeSample]] = {name: [] for name in names}
    gc.collect()
    gc.freeze()  # a collection during the measurement then examines only the objects that the loops create
    try:
        repeats = {name: _repeats(loops[name], device) for name in names}
        for number in range(rounds):
            for name in rotated(names, number):
                samples[name].append(_sample(loops[name], repeats[name], device))
    finally:
        gc.unfreeze()
    return {name: _summary(samples[name]) for name in names}


def copy_bandwidth(device: str) -> float:
    """GB/s, read and written, of a plain copy between two buffers that exceed the caches."""
    size = (1 << 30) if device == "cuda" else (256 << 20)
    x = torch.ones(size // 4, device=device)
    y = torch.zeros_like(x)
    return 2 * size / interleaved({"copy": repeat(lambda: y.copy_(x))}, COPY_ROUNDS, device)["copy"].median / 1e3


def _repeats(loop: TimedLoop, device: str) -> int:
    """The number of iterations that fill a sample, by the fastest of several probes, since the first ones are slow."""
    times = 1
    loop(1)
    while True:
        took = min(_sample(loop, times, device).wall_us for _ in range(PROBES))
        if took * times >= MIN_SAMPLE_US:
            return times
        times = max(2 * times, math.ceil(MIN_SAMPLE_US / took)) if took > 0 else 2 * times


def _sample(loop: TimedLoop, times: int, device: str) -> TimeSample:
    if device != "cuda":
        start = time.perf_counter_ns()
        loop(times)
        wall_us = (time.perf_counter_ns() - start) / 1e3 / times
        return TimeSample(wall_us, wall_us)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start = time.perf_counter_ns()
    before.record()
    loop(times)
    after.record()
    torch.cuda.synchronize()
    wall_us = (time.perf_counter_ns() - start) / 1e3 / times
    return TimeSample(before.elapsed_time(after) * 1e3 / times, wall_us)


def _summary(samples: Sequence[TimeSample]) -> Times:
    p10, median, p90 = np.percentile([sample.device_us for sample in samples], [10, 50, 90])
    return Times(float(median), float(p10), float(p90), float(np.median([sample.wall_us for sample in samples])))
