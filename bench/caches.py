"""The sizes of the processor's caches, and the number of batches of logits that exceeds them."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.workload import Case

COLD_FACTOR = 3  # size of a cold case's logits, in sizes of the cache: enough for any replacement policy
MAX_BATCHES = 4096  # cases so small that they need more are skipped
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
SYSTEM = Path("/sys/devices/system/cpu/cpu0/cache")
DEFAULT_BYTES = 64 << 20  # where the system does not report its caches; unmeasured


def last_level_bytes(device: str, system: Path = SYSTEM) -> int:
    """Size of the largest cache: the L2 of a GPU, or the largest that the system reports for the first core."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties().L2_cache_size)
    sizes = [path.read_text(encoding="ascii").strip() for path in system.glob("index*/size")]
    return max((int(size[:-1]) * UNITS[size[-1]] for size in sizes), default=DEFAULT_BYTES)


def batch_count(case: Case, cache_bytes: int) -> int:
    """Number of batches that a case cycles through: 1 if warm; if cold, enough to evict each before its next use."""
    return 1 if case.cache == "warm" else -(-COLD_FACTOR * cache_bytes // case.logits_bytes)
