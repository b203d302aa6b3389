"""Every SIMD level of this machine computes the same: the tests of values and extremes, once for each level, in a
process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import udskd

ROOT = Path(__file__).parents[2]
IN_USE = udskd.build_info()["simd"]
RUNNABLE = udskd.build_info()["simd_levels"][: udskd.build_info()["simd_levels"].index(IN_USE) + 1] if IN_USE else []


def run(level: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"UDSKD_SIMD": level, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("level", [level for level in RUNNABLE if level != IN_USE])
def test_a_forced_level_is_as_exact(level: str) -> None:
    files = [f"tests/ops/test_{name}.py" for name in ("values", "extremes", "gradcheck")]
    done = run(level, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "cpu", *files)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("level", RUNNABLE)
def test_the_environment_chooses_the_level(level: str) -> None:
    done = run(level, "-W", "error", "-c", "import udskd; print(udskd.build_info()['simd'])")
    assert done.stdout.strip() == level, done.stderr


def test_a_level_that_does_not_exist_is_said_and_not_obeyed() -> None:
    done = run("sse9", "-c", "import udskd; print(udskd.build_info()['simd'])")
    assert done.stdout.strip() in RUNNABLE
    assert "UDSKD_SIMD=sse9: use baseline, avx2 or avx512" in done.stderr
