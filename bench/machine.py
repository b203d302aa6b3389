"""The machine under the numbers: what it is, what runs on it, and the memory allocator's manners."""

from __future__ import annotations

import ctypes
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import udskd

OPTIONAL = ("triton", "liger-kernel", "quack-kernels")  # distributions, named where they are installed


def processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine(device: str = "cpu") -> dict[str, Any]:
    """What a reader needs to place the numbers; nothing that identifies this machine."""
    out = {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()}
    if device == "cuda":
        return out | {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return out | {"simd": udskd.build_info()["simd"]}


def versions() -> dict[str, str]:
    out = {"udskd": udskd.__version__, "torch": torch.__version__, "python": platform.python_version()}
    for name in OPTIONAL:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def keep_memory() -> bool:
    """Lets glibc keep what it was given for the rest of the process; False where there is no glibc.

    By default glibc returns every large block to the kernel, and the next call pays a page fault for each 4 KiB of each
    temporary: up to twice the time, and the more erratic part of it. A training loop with a caching allocator does not
    pay that, so no provider does here. It favours the baseline, which has the most temporaries.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    # Older ones refuse thresholds above 32 MiB; they are told to use no mmap at all.
    return bool(mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_max, 0))
