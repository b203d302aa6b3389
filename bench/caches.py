"""What the caches hold, and how many batches of logits they cannot all hold."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.problem import Case

TIMES = 3  # the caches' size that a cold case's logits take: more than a cache keeps by any rule of replacement
MOST = 4096  # batches; cases so small that they need more are skipped
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
SYSTEM = Path("/sys/devices/system/cpu/cpu0/cache")
UNKNOWN = 64 << 20


def last_level(device: str, system: Path = SYSTEM) -> int:
    """Bytes of the largest cache: a GPU's L2, or what the system tells of the first core's."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties().L2_cache_size)
    sizes = [path.read_text(encoding="ascii").strip() for path in system.glob("index*/size")]
    return max((int(size[:-1]) * UNITS[size[-1]] for size in sizes), default=UNKNOWN)


def batches(case: Case, cache_bytes: int) -> int:
    """How many batches of a case take turns: one, or so many that the first has left the caches when it comes again."""
    return 1 if case.cache == "warm" else -(-TIMES * cache_bytes // case.logits_bytes)
