"""Settings of a process that are made before PyTorch computes: how OpenMP's threads wait, and what malloc keeps.

UDSKD_PROCESS_SETTINGS=0 leaves both as they are. Measurements are in docs/training.md.
"""

from __future__ import annotations

import ctypes
import os
import sys

VARIABLE = "UDSKD_PROCESS_SETTINGS"
SPINS = "10000"  # measured on two cores, idle and beside two busy processes
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # malloc.h
INT_MAX = 2**31 - 1


def apply_settings() -> None:
    """Shorten the spinning of OpenMP's threads, where PyTorch is not loaded yet, and make malloc keep freed memory."""
    if os.environ.get(VARIABLE, "1") != "0":
        _shorten_spinning()
        _keep_freed_memory()


def _shorten_spinning() -> None:
    """GNU's OpenMP, which PyTorch's wheels for Linux bring, reads the variable once, when it is loaded.

    By default a thread spins 300,000 times before it sleeps. Where other processes take the cores, the thread for which
    it waits does not run meanwhile.
    """
    chosen = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys()
    if "torch" not in sys.modules and not chosen:
        os.environ["GOMP_SPINCOUNT"] = SPINS


def _keep_freed_memory() -> None:
    """By default glibc returns each large block to the kernel when it is freed, and the next tensor of that size takes
    a page fault for each of its 4 KiB pages. In another libc, and where the user has set malloc, nothing changes."""
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if os.name != "posix" or chosen:
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(MMAP_MAX, 0)
        library.mallopt(TRIM_THRESHOLD, INT_MAX)
