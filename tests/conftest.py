"""Settings of all tests: hypothesis has no deadlines, because the machine may be busy, and the same examples each
time; PyTorch has one thread, or UDSKD_TEST_THREADS (tests/loss/test_simd.py). Processes that tests start have one
thread too: more threads than cores spin while they wait for each other."""

from __future__ import annotations

import inspect
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # is read when PyTorch is imported

import pytest
import torch
from hypothesis import settings

settings.register_profile("udskd", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("udskd")
torch.set_num_threads(int(os.environ.get("UDSKD_TEST_THREADS", "1")))


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """The mark slow for those parameters of a test for which its mark slow_for(cases) is true."""
    for item in items:
        for mark in item.iter_markers("slow_for"):
            cases, parameters = mark.kwargs["cases"], item.callspec.params
            if cases(**{name: parameters[name] for name in inspect.signature(cases).parameters}):
                item.add_marker(pytest.mark.slow)
