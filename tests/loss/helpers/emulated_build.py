"""Compiles the library of tests/loss/helpers/emulated.py: once for the same source, compiler, flags and PyTorch."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

import udskd

ROOT = Path(__file__).parents[3]
SOURCES = (
    "csrc/ops.cpp",
    "csrc/loss/plan.cpp",
    "csrc/loss/cuda/*.cpp",
    "csrc/loss/cuda/*.cu",
    "csrc/image/taps.cpp",
    "csrc/image/cuda/*.cpp",
    "csrc/image/cuda/*.cu",
    "tests/emulator/*.cpp",
)
HEADERS = ("csrc/**/*.h", "tests/emulator/*.h")
NOT_OURS = ("csrc/*/cpu/*",)  # headers of the CPU kernels
COMPILER = "c++"
JOBS = 2  # compilers at a time
SANITIZE = os.environ.get("UDSKD_EMULATED_SANITIZE") == "1"
FLAGS = [
    *("-std=c++20", "-O1", "-g0", "-fPIC", "-fvisibility=hidden"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-unknown-pragmas"),
    *("-DUDSKD_EMULATE", "-DTORCH_TARGET_VERSION=0x020b000000000000"),
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if SANITIZE else []
FOLDER = ROOT / "build" / ("emulated-sanitized" if SANITIZE else "emulated")


class CompilerError(Exception):
    """The compiler failed; the message is its output."""


def sources() -> list[Path]:
    """The sources to compile; none where the kernels or the emulator are missing."""
    found = [sorted(ROOT.glob(pattern)) for pattern in SOURCES]
    return [path for paths in found for path in paths] if found[0] and found[-1] else []


def cuda_headers() -> Path | None:
    """The folder of CUDA's headers: the one that the pip packages of the extra dev share, or a toolkit's."""
    nvcc = shutil.which("nvcc")
    homes = [*sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("cu*"), reverse=True)]
    homes += [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), nvcc and Path(nvcc).resolve().parents[1]]
    homes += ["/usr/local/cuda"]
    folders = [Path(home, "include") for home in homes if home]
    needed = ("cuda_runtime.h", "cuda_bf16.h", "crt/host_config.h", "nv/target")
    return next((path for path in folders if all((path / name).exists() for name in needed)), None)


def contraction() -> list[str]:
    """Multiplications are fused with additions, as nvcc does, where the processor can."""
    level = udskd.build_info()["simd"]
    return ["-mfma", "-ffp-contract=fast"] if level in ("avx2", "avx512") else []


def flags() -> list[str]:
    own = Path(torch.__file__).parent / "include"
    system = [own, own / "torch/csrc/api/include", cuda_headers()]
    more = ["-fno-omit-frame-pointer", *SANITIZERS] if SANITIZE else []
    return [
        *FLAGS,
        *contraction(),
        *more,
        "-Itests/emulator",
        *(flag for path in system for flag in ("-isystem", str(path))),
    ]


def library() -> Path:
    """The compiled library. Raises CompilerError."""
    objects = [(source, FOLDER / "objects" / f"{source.stem}-{key(source)}.o") for source in sources()]
    name = digest("".join(path.name for _, path in objects).encode())
    built = FOLDER / name / "udskd_emulated.so"
    if built.exists():
        return built
    with alone(FOLDER / "lock"), ThreadPoolExecutor(JOBS) as pool:
        for _ in pool.map(lambda pair: compile_object(*pair), objects):
            pass
        folder = Path(torch.__file__).parent / "lib"
        libraries = [f"-L{folder}", "-ltorch_cpu", "-lc10"]
        make(built, [*SANITIZERS, "-shared", *(str(path) for _, path in objects), *libraries])
    return built


def compile_object(source: Path, to: Path) -> None:
    make(to, [*flags(), "-x", "c++", "-c", str(source)])


def make(to: Path, arguments: Sequence[str]) -> None:
    """Runs the compiler for one file, which is there as a whole or not at all."""
    if to.exists():  # of another process, or of an attempt that failed at another file
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    unfinished = to.with_suffix(".unfinished")
    command = [COMPILER, *arguments, "-o", str(unfinished)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise CompilerError(f"{' '.join(command)}\n{done.stdout}")
    unfinished.replace(to)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Excludes other processes from the block, such as a pytest that a test has started."""
    import fcntl  # not on Windows

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def key(source: Path) -> str:
    return digest(shared_key().encode() + source.read_bytes())


@cache
def shared_key() -> str:
    """The hash of everything that all objects depend on."""
    headers = sorted(path for pattern in HEADERS for path in ROOT.glob(pattern))
    ours = [path for path in headers if not any(path.match(pattern) for pattern in NOT_OURS)]
    compiler = subprocess.run([COMPILER, "--version"], capture_output=True, check=True).stdout
    contents = (part for path in ours for part in (str(path.relative_to(ROOT)).encode(), path.read_bytes()))
    return digest(compiler, torch.__version__.encode(), " ".join(flags()).encode(), *contents)


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
