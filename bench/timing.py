"""Times that can be compared: all works take turns, so that what disturbs the machine disturbs them alike."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import torch

K = TypeVar("K")
Work = Callable[[int], None]
"""Does what is measured, as often as told."""

LEAST_US = 5000.0  # of a sample: long against the clock and one interruption by the system
PROBES = 3
COPY_ROUNDS = 9


class Times(NamedTuple):
    """Microseconds of one run of a work. On CUDA median, p10 and p90 are of the time between two events around the
    loop, which includes the GPU's waiting for the host where the host is slower."""

    median: float
    p10: float
    p90: float
    wall: float  # median


class Sample(NamedTuple):
    device_us: float
    wall_us: float


def interleaved(works: Mapping[K, Work], rounds: int, device: str) -> dict[K, Times]:
    """Every work once in each round, in rotating order, after a warm-up."""
    names = list(works)
    samples: dict[K, list[Sample]] = {name: [] for name in names}
    gc.collect()
    gc.freeze()  # so that a collection in between looks only at what the works leave behind
    try:
        repeats = {name: _repeats(works[name], device) for name in names}
        for start in range(rounds):
            for turn in range(len(names)):
                name = names[(start + turn) % len(names)]
                samples[name].append(_sample(works[name], repeats[name], device))
    finally:
        gc.unfreeze()
    return {name: _summary(samples[name]) for name in names}


def copy_bandwidth(device: str) -> float:
    """GB/s, read and written, of a plain copy between two buffers that no cache holds."""
    size = (1 << 30) if device == "cuda" else (256 << 20)
    x = torch.ones(size // 4, device=device)
    y = torch.zeros_like(x)

    def copy(times: int) -> None:
        for _ in range(times):
            y.copy_(x)

    return 2 * size / interleaved({"copy": copy}, COPY_ROUNDS, device)["copy"].median / 1e3


def _repeats(work: Work, device: str) -> int:
    """How often the work fits into a sample of the least length; the least of some probes, since the first are slow."""
    times = 1
    work(1)
    while True:
        took = min(_sample(work, times, device).wall_us for _ in range(PROBES))
        if took * times >= LEAST_US:
            return times
        times = max(2 * times, math.ceil(LEAST_US / took)) if took > 0 else 2 * times


def _sample(work: Work, times: int, device: str) -> Sample:
    if device != "cuda":
        start = time.perf_counter_ns()
        work(times)
        wall_us = (time.perf_counter_ns() - start) / 1e3 / times
        return Sample(wall_us, wall_us)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start = time.perf_counter_ns()
    before.record()
    work(times)
    after.record()
    torch.cuda.synchronize()
    wall_us = (time.perf_counter_ns() - start) / 1e3 / times
    return Sample(before.elapsed_time(after) * 1e3 / times, wall_us)


def _summary(samples: list[Sample]) -> Times:
    p10, median, p90 = np.percentile([sample.device_us for sample in samples], [10, 50, 90])
    return Times(float(median), float(p10), float(p90), float(np.median([sample.wall_us for sample in samples])))
