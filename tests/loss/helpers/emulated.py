"""The CUDA kernels' own source as a library for the CPU, in which tests/emulator stands for the GPU: the backend
"emulated" of the tests, and what is asked of the emulator itself.

UDSKD_EMULATED_SANITIZE=1     compile it with AddressSanitizer and UndefinedBehaviorSanitizer, whose runtimes are loaded
UDSKD_EMULATED_LIBRARY=FILE   load FILE instead of compiling
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.loss.helpers import emulated_build
from udskd import _native
from udskd.loss import ops

NAMESPACE = "udskd_emulated"
USUAL = {"sms": 4, "capability": 90}  # the GPU that is emulated unless a test asks for another


@cache
def reason() -> str | None:
    """Why there can be no such library here, or None. Compiles nothing."""
    if _native.problem is not None:
        return _native.problem
    if os.environ.get("UDSKD_EMULATED_LIBRARY"):
        return None
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "the emulator of CUDA is for Linux on x86-64"
    if not emulated_build.sources():
        return "the CUDA kernels' source is not beside the tests"
    if not shutil.which(emulated_build.COMPILER):
        return "no C++ compiler for the CUDA kernels"
    if emulated_build.cuda_headers() is None:
        return "no CUDA headers for the CUDA kernels"
    return None


def load() -> ctypes.CDLL:
    """The library, compiled if need be, whose operators are the backend "emulated" from now on."""
    outcome = _outcome()
    if isinstance(outcome, emulated_build.CompilerError):
        raise outcome
    return outcome


@cache
def _outcome() -> ctypes.CDLL | emulated_build.CompilerError:
    """What came of the first attempt: a test does not compile again what has failed for another."""
    try:
        path = os.environ.get("UDSKD_EMULATED_LIBRARY") or str(emulated_build.library())
    except emulated_build.CompilerError as error:
        return error
    torch.ops.load_library(path)
    ops.register(NAMESPACE)
    ops.OPERATORS["emulated"] = ops.Operators(getattr(torch.ops, NAMESPACE), "cpu", columns=20, gpu=True)
    library = ctypes.CDLL(str(Path(path).resolve()))
    library.emulator_order.argtypes = [ctypes.c_uint]
    library.emulator_device.argtypes = [ctypes.c_char_p, ctypes.c_int]
    library.emulator_log.argtypes = [ctypes.c_char_p, ctypes.c_int]
    for name in ("order", "device", "capture_begin", "replay"):
        getattr(library, f"emulator_{name}").restype = None
    return library


def order(seed: int) -> None:
    """The order in which what is free to run does so: 0 as numbered, 1 the other way round, else shuffled by that."""
    load().emulator_order(seed)


def device(name: str, value: int) -> None:
    """A property of the GPU: "sms", or "capability" (90 for 9.0)."""
    load().emulator_device(name.encode(), value)


def usual() -> None:
    """The usual order on the usual GPU."""
    order(0)
    for name, value in USUAL.items():
        device(name, value)


@contextmanager
def forced(regime: str) -> Iterator[None]:
    """One regime of csrc/loss/plan.h for all rows inside that it holds."""
    os.environ["UDSKD_CUDA_PLAN"] = regime
    try:
        yield
    finally:
        del os.environ["UDSKD_CUDA_PLAN"]


def captured(run: Callable[[], Any]) -> Any:
    """What run() returns, whose launches are not run but remembered for replay()."""
    load().emulator_capture_begin()
    try:
        return run()
    finally:
        assert load().emulator_capture_end() > 0


def replay() -> None:
    """What was last captured, once more."""
    load().emulator_replay()


def log() -> list[str]:
    """What was run since the log was last read, a line for each launch and "memset ..." for the rest."""
    text = ctypes.create_string_buffer(load().emulator_log(None, 0))
    load().emulator_log(text, len(text))
    return text.value.decode().splitlines()
