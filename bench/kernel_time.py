"""How long a GPU computes for one run of a work, without what it waits for the host: its kernels' times, and those of
its copies and memsets, added up."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from bench.timing import Work

TIMES = 10


def microseconds(work: Work, device: str) -> float | None:
    """None on the CPU, and where the profiler is not allowed to see the GPU's counters."""
    if device != "cuda":
        return None
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            work(TIMES)
            torch.cuda.synchronize()
    except RuntimeError:
        return None
    seen = (event for event in profiler.key_averages() if not getattr(event, "is_user_annotation", False))
    total = sum(event.self_device_time_total for event in seen)
    return float(f"{total / TIMES:.4g}") if total else None
