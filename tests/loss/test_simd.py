"""Every SIMD level of this machine, on one, two and three threads: the tests of the operator again, each time in a
process of its own; and no instructions of a level in code that another level can run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import udskd

ROOT = Path(__file__).parents[2]
IN_USE = udskd.build_info()["simd"]
RUNNABLE = udskd.build_info()["simd_levels"][: udskd.build_info()["simd_levels"].index(IN_USE) + 1] if IN_USE else []
# The level in use on one thread runs anyway. Beside it, each level at least once, and each of two and three threads.
RUNS = [(level, 3 - k % 2) for k, level in enumerate(reversed(RUNNABLE))]
RUNS += [(level, 2) for level in RUNNABLE if len(RUNNABLE) == 1]
# Once is enough for what is slow and about PyTorch's tracing, and for what does not run the CPU kernels.
ELSEWHERE = "not [reference and not [cuda and not compiled and not export and not opcheck"


def run(level: str, *command: str, threads: int = 1) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"UDSKD_SIMD": level, "PYTHONPATH": str(ROOT), "UDSKD_TEST_THREADS": str(threads)}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE"}  # more threads than cores would spin while they wait
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("tests", ["tests/loss/test_values.py", pytest.param("tests/loss", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("level", "threads"), RUNS)
def test_a_forced_level_is_as_exact_on_more_threads(level: str, threads: int, tests: str) -> None:
    options = ("-q", "-x", "-p", "no:cacheprovider", "-m", "not gpu and not emulated", "-k", ELSEWHERE)
    done = run(level, "-m", "pytest", *options, "--ignore=tests/loss/test_simd.py", tests, threads=threads)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("level", RUNNABLE)
def test_the_environment_chooses_the_level(level: str) -> None:
    done = run(level, "-W", "error", "-c", "import udskd; print(udskd.build_info()['simd'])")
    assert done.stdout.strip() == level, done.stderr


def test_the_environment_chooses_the_tests_threads() -> None:
    done = run("", "-c", "import tests.conftest, torch; print(torch.get_num_threads())", threads=3)
    assert done.stdout.strip() == "3", done.stderr
    assert str(torch.get_num_threads()) == os.environ.get("UDSKD_TEST_THREADS", "1")


def test_a_level_that_does_not_exist_is_said_and_not_obeyed() -> None:
    done = run("sse9", "-c", "import udskd; print(udskd.build_info()['simd'])")
    assert done.stdout.strip() in RUNNABLE
    assert "UDSKD_SIMD=sse9: use baseline, avx2 or avx512" in done.stderr


def disassembly() -> dict[str, set[str]]:
    """Of every function of the library, by its mangled name: "vex" (AVX, or anything encoded as it is) and "avx512"."""
    from udskd import _C  # type: ignore[attr-defined]

    listing = subprocess.run(["objdump", "-d", "--no-show-raw-insn", _C.__file__], capture_output=True, text=True)
    assert listing.returncode == 0, listing.stderr
    functions: dict[str, set[str]] = {}
    uses: set[str] = set()
    for line in listing.stdout.splitlines():
        if head := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            uses = functions.setdefault(head[1], set())
        elif instruction := re.match(r"\s*[0-9a-f]+:\s+(?:\{\w+\} )?(\S+)(.*)", line):
            name, operands = instruction.groups()
            if name.startswith("v") and name not in ("verr", "verw"):
                uses.add("vex")
            if re.search(r"%(zmm|k[0-7]\b|[xy]mm(1[6-9]|2\d|3[01])\b)", operands):
                uses.add("avx512")
    return functions


def kinds() -> dict[str, str]:
    """Of every symbol of the library, as nm has it: "t" for a function that only its own source file can call, "W" for
    one that the linker keeps any copy of."""
    from udskd import _C  # type: ignore[attr-defined]

    listing = subprocess.run(["nm", _C.__file__], capture_output=True, text=True, check=True)
    return {line.split()[-1]: line.split()[-2] for line in listing.stdout.splitlines() if len(line.split()) >= 2}


@pytest.mark.skipif(len(udskd.build_info()["simd_levels"]) < 3, reason="this library has no AVX levels")
@pytest.mark.skipif(not (shutil.which("objdump") and shutil.which("nm")), reason="needs objdump and nm (binutils)")
def test_instructions_of_a_level_are_only_in_its_own_functions() -> None:
    functions, symbols = disassembly(), kinds()
    if "t" not in symbols.values():
        pytest.skip("this library is stripped of its symbols")
    vex = {name for name, uses in functions.items() if "vex" in uses}
    avx512 = {name for name, uses in functions.items() if "avx512" in uses}
    ours = {name for name in vex if "5udskd" in name}
    assert {name for name in ours if "4avx2" not in name and "6avx512" not in name} == set()
    assert {name for name in ours & avx512 if "6avx512" not in name} == set()
    # A copy that the linker may take for another's, or that other libraries see, would run at any level.
    assert {name for name in vex if symbols.get(name, "t") != "t"} == set()
    assert len([name for name in avx512 if "6avx512" in name]) > 20
    assert len([name for name in vex - avx512 if "4avx2" in name]) > 20
