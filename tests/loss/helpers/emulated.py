"""The backend "emulated" of the tests: the source of the CUDA kernels, compiled for the CPU with the emulator of a GPU
in tests/emulator.

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
DEFAULT_GPU = {"sms": 4, "capability": 90}  # the GPU that is emulated unless a test sets another


@cache
def reason() -> str | None:
    """Why the library cannot be compiled here, or None. Compiles nothing."""
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
    """Compiles the library unless it exists, loads it, and adds the backend "emulated"."""
    outcome = _outcome()
    if isinstance(outcome, emulated_build.CompilerError):
        raise outcome
    return outcome


@cache
def _outcome() -> ctypes.CDLL | emulated_build.CompilerError:
    """The result of the first attempt: later tests do not repeat a compilation that has failed."""
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
    """The order in which runnable threads run: 0 as numbered, 1 reversed, any other number shuffled with that seed."""
    load().emulator_order(seed)


def device(name: str, value: int) -> None:
    """A property of the GPU: "sms", or "capability" (90 for 9.0)."""
    load().emulator_device(name.encode(), value)


def reset() -> None:
    """The default order on the default GPU."""
    order(0)
    for name, value in DEFAULT_GPU.items():
        device(name, value)


@contextmanager
def forced(regime: str) -> Iterator[None]:
    """Within the block, one regime of csrc/loss/plan.h for all rows that fit into it."""
    os.environ["UDSKD_CUDA_PLAN"] = regime
    try:
        yield
    finally:
        del os.environ["UDSKD_CUDA_PLAN"]


def captured(run: Callable[[], Any]) -> Any:
    """The result of run(). Its launches are not executed but recorded for replay()."""
    load().emulator_capture_begin()
    try:
        return run()
    finally:
        assert load().emulator_capture_end() > 0


def replay() -> None:
    """Executes the launches that were last captured."""
    load().emulator_replay()


def log() -> list[str]:
    """The launches since the log was last read, a line for each, and "memset ..." for the rest."""
    text = ctypes.create_string_buffer(load().emulator_log(None, 0))
    load().emulator_log(text, len(text))
    return text.value.decode().splitlines()
