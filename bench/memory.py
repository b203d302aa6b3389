"""The most memory that a work holds beyond what was there before it."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from bench.timing import Work


def peak(work: Work, device: str) -> int:
    """Bytes of tensors, results and what PyTorch's kernels allocate included, at the highest moment of one run.

    Memory that a library takes past PyTorch's allocator is not seen.
    """
    return _peak_cuda(work) if device == "cuda" else _peak_cpu(work)


def _peak_cuda(work: Work) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work(1)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_cpu(work: Work) -> int:
    """PyTorch keeps no such statistics of the CPU; its profiler sees every block that its allocator gives and takes."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # or it complains where there is no GPU
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        work(1)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    held = most = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most
