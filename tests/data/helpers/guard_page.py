"""Memory in front of a page without access, which shows reads and writes beyond its end."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np


class GuardedBuffer:
    """`size` bytes whose end is the beginning of a page that may be neither read nor written."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        pages = -(-size // page)
        self.memory = mmap.mmap(-1, (pages + 1) * page)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        library = ctypes.CDLL(None, use_errno=True)
        guard = ctypes.c_void_p(self.address + pages * page)
        assert library.mprotect(guard, ctypes.c_size_t(page), 0) == 0
        self.begin, self.size = pages * page - size, size

    def array(self, *shape: int) -> np.ndarray:
        return np.frombuffer(self.memory, np.uint8, self.size, self.begin).reshape(shape)
