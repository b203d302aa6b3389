"""Time for which a GPU computes in one iteration of a loop: the sum of its kernels, copies and memsets, without waiting
for the host."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from bench.records import digits
from bench.timing import TimedLoop

ITERATIONS = 10


def microseconds(loop: TimedLoop, device: str) -> float | None:
    """None on the CPU, and where the system denies the profiler access to the GPU's counters."""
    if device != "cuda":
        return None
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            loop(ITERATIONS)
            torch.cuda.synchronize()
    except RuntimeError:
        return None
    events = (event for event in profiler.key_averages() if not getattr(event, "is_user_annotation", False))
    total = sum(event.self_device_time_total for event in events)
    return digits(total / ITERATIONS) if total else None
