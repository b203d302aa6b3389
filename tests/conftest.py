"""Settings of all tests: hypothesis has no deadlines, because the machine may be busy, and the same examples each
time; PyTorch has one thread, or UDSKD_TEST_THREADS (tests/loss/test_simd.py)."""

from __future__ import annotations

import os

import torch
from hypothesis import settings

settings.register_profile("udskd", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("udskd")
torch.set_num_threads(int(os.environ.get("UDSKD_TEST_THREADS", "1")))
