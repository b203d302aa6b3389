"""The settings of a process: how OpenMP's threads wait, and what malloc keeps. Each test starts a process."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "UDSKD_PROCESS_SETTINGS", "GLIBC_TUNABLES")
APPLY = "from udskd.process.settings import apply_settings; apply_settings(); "
SPINS = f"import os; {APPLY}print(os.environ.get('GOMP_SPINCOUNT'))"
FAULTS = """
import resource
from udskd.process.settings import apply_settings
apply_settings()
for _ in range(20):
    bytearray(50_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
needs_glibc = pytest.mark.skipif(
    os.name != "posix" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="malloc is not glibc's"
)
pytestmark = pytest.mark.subprocess


def output(program: str, **settings: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in SETTINGS and not k.startswith("MALLOC_")}
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, env=environment | settings, cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout.strip()


def test_threads_spin_shortly() -> None:
    assert output(SPINS) == "10000"


@pytest.mark.parametrize(
    ("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active"), ("UDSKD_PROCESS_SETTINGS", "0")]
)
def test_what_the_user_has_set_stays(name: str, value: str) -> None:
    assert output(SPINS, **{name: value}) == (value if name == "GOMP_SPINCOUNT" else "None")


def test_nothing_is_set_for_openmp_after_pytorch_has_loaded_it() -> None:
    assert output(f"import sys; sys.modules['torch'] = None; {SPINS}") == "None"


def test_the_command_sets_them_before_pytorch_is_imported() -> None:
    program = "from udskd.cli import entry_point; import sys; sys.argv = ['udskd', '--version']; entry_point.main(); "
    assert output(f"{program}import os; print(os.environ['GOMP_SPINCOUNT'])").endswith("10000")


@needs_glibc
def test_freed_memory_is_used_again_without_page_faults() -> None:
    assert int(output(FAULTS)) < 2 * 12_500  # 50 MB are 12,207 pages


@needs_glibc
@pytest.mark.parametrize("name", ["UDSKD_PROCESS_SETTINGS", "MALLOC_TRIM_THRESHOLD_"])
def test_malloc_stays_as_the_user_wants_it(name: str) -> None:
    assert int(output(FAULTS, **{name: "0"})) > 20 * 12_000  # every round again
