"""Peak memory of one iteration of a loop, beyond what was allocated before it."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from bench.timing import TimedLoop


def peak_bytes(loop: TimedLoop, device: str) -> int:
    """The highest number of bytes in tensors, including results and what PyTorch's kernels allocate.

    Memory that a library takes without PyTorch's allocator is not counted.
    """
    return _peak_cuda(loop) if device == "cuda" else _peak_cpu(loop)


def _peak_cuda(loop: TimedLoop) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loop(1)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_cpu(loop: TimedLoop) -> int:
    """PyTorch keeps no such statistics of the CPU; its profiler records every allocation and release."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else the profiler warns where there is no GPU
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        loop(1)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    held = peak = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak
