"""Every header of csrc compiles alone: it includes what it needs, and no order of inclusion has to be known.

The headers of csrc/loss/cpu and csrc/loss/cuda are left out: they get another form."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.loss.helpers.emulated_build import cuda_headers

ROOT = Path(__file__).parents[1]
COMPILER = "c++"
FLAGS = [
    *("-fsyntax-only", "-x", "c++", "-std=c++20", "-fvisibility=hidden"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-unknown-pragmas"),
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
]
VECTOR_BYTES = (16, 32, 64)  # of the SIMD levels, see csrc/common/cpu/level.h
X86 = platform.machine() == "x86_64"


def headers() -> list[str]:
    found = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*.h"))]
    return [path for path in found if not path.startswith(("csrc/loss/cpu/", "csrc/loss/cuda/"))]


def variants(header: str) -> list[list[str]]:
    """The flags of each compilation of a header."""
    folder = Path(header).parent.name
    if folder == "cuda":
        return [["-DUDSKD_EMULATE", "-Itests/emulator", "-isystem", str(cuda_headers())]]
    if folder == "cpu":
        return [[f"-DUDSKD_VECTOR_BYTES={size}"] for size in VECTOR_BYTES[: None if X86 else 1]]
    return [[]]


def test_headers_are_found() -> None:
    assert {"csrc/common/simd.h", "csrc/common/cpu/vector.h", "csrc/loss/problem.h"} <= set(headers())


@pytest.mark.slow_for(cases=lambda header: header not in ("csrc/common/simd.h", "csrc/loss/problem.h"))
@pytest.mark.skipif(not shutil.which(COMPILER), reason="no C++ compiler")
@pytest.mark.parametrize("header", headers())
def test_a_header_compiles_alone(header: str) -> None:
    if "/cuda/" in header and not (X86 and cuda_headers()):
        pytest.skip("the emulator needs an x86-64 processor and CUDA's headers")
    if header.startswith("csrc/image/cpu/") and not X86:
        pytest.skip("the kernels of images have SIMD levels on x86-64 alone")
    include = Path(torch.__file__).parent / "include"
    system = [flag for path in (include, include / "torch/csrc/api/include") for flag in ("-isystem", str(path))]
    for flags in variants(header):
        command = [COMPILER, *FLAGS, *flags, *system, "-"]
        done = subprocess.run(command, cwd=ROOT, input=f'#include "{header}"\n' * 2, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
