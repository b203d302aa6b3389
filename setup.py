"""Builds udskd._C, a pybind11 module that also registers PyTorch operators through the stable ABI.

It compiles what PyTorch's own extensions compile: CUDA kernels if this machine has a GPU, for that GPU, else the CPU
kernels only. Environment variables:

FORCE_CUDA=0|1          never compiles CUDA kernels, or always: for all architectures from sm_75 to sm_120
TORCH_CUDA_ARCH_LIST    compiles CUDA kernels for these architectures, such as "8.0;9.0+PTX"
CUDA_HOME               the CUDA toolkit; by default that of the nvcc on PATH, or of pip's nvidia-cuda-nvcc
UDSKD_STRICT=1          treats warnings as errors, as the Makefile and CI do
UDSKD_DEBUG=1           compiles with -O0 -g
UDSKD_SANITIZE=1        compiles the C++ code with AddressSanitizer and UndefinedBehaviorSanitizer; `make sanitize`
                        shows how to load such a library
UDSKD_NATIVE=0          compiles nothing: the package then has the reference backend alone, or the library that was
                        built in place before
UDSKD_OBJECTS=DIR       links the objects that a build with another Python left in DIR (an absolute path, such as that
                        of build/temp.linux-x86_64-cpython-312), and compiles only module.cpp, which depends on Python
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Extension, find_packages, setup

TOOLS = "pip install 'torch>=2.11' ninja 'pybind11>=3' 'setuptools>=77' wheel"
if int(setuptools.__version__.split(".")[0]) < 77:  # cannot read the license of pyproject.toml
    sys.exit(f"\nudskd needs setuptools 77 or newer, and this is {setuptools.__version__}: run {TOOLS}\n")
try:
    import pybind11
    import torch
    from torch.utils import cpp_extension
except ModuleNotFoundError as missing:
    sys.exit(
        "\nudskd compiles against the PyTorch and pybind11 of your environment, which this build cannot see "
        f"({missing}): install the tools of the build, then udskd with --no-build-isolation\n\n"
        f"    {TOOLS}\n    pip install --no-build-isolation .\n"
    )
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):
    sys.exit(f"\nudskd needs PyTorch 2.11 or newer, and this is {torch.__version__}: run {TOOLS}\n")

CSRC = Path("csrc")
MODULE = CSRC / "module.cpp"  # the only source that includes Python's headers
TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # the oldest PyTorch that can load the library is 2.11
STRICT = os.getenv("UDSKD_STRICT") == "1"
DEBUG = os.getenv("UDSKD_DEBUG") == "1"
SANITIZE = os.getenv("UDSKD_SANITIZE") == "1"
PIP_NVCC = "'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-cccl==13.0.*'"


def wants_cuda() -> bool:
    """Whether the CUDA kernels are compiled."""
    force = os.getenv("FORCE_CUDA", "")
    if force not in ("", "0", "1"):
        sys.exit(f"FORCE_CUDA={force!r}: use 0 or 1")
    if force:
        return force == "1"
    has_gpu = torch.version.hip is None and torch.cuda.is_available()
    return bool(os.getenv("TORCH_CUDA_ARCH_LIST")) or has_gpu


def find_toolkit() -> str:
    """The folder of the CUDA toolkit. Exits if there is none."""
    homes = [os.getenv("CUDA_HOME"), os.getenv("CUDA_PATH"), toolkit_on_path()]
    packages = Path(sysconfig.get_path("purelib"), "nvidia").glob("cu*")  # pip's nvidia-cuda-nvcc
    homes += sorted(map(str, packages), reverse=True)
    for home in homes:
        if home and Path(home, "bin/nvcc").exists():
            return home
    sys.exit(
        "\nudskd: nvcc is missing, which compiles the CUDA kernels: install the CUDA toolkit, set CUDA_HOME, set "
        f"FORCE_CUDA=0 to compile the CPU kernels only, or run\n\n    pip install {PIP_NVCC}\n"
    )


def toolkit_on_path() -> str | None:
    """The folder of the toolkit of the `nvcc` on PATH, which may be a wrapper script such as Debian's or ccache's."""
    nvcc = shutil.which("nvcc")
    if not nvcc:
        return None
    commands = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", commands, re.M)
    return os.path.normpath(top[1].strip()) if top else None


def all_architectures(home: str) -> str:
    """The architectures from Turing on that nvcc supports, and PTX of the newest."""
    out = subprocess.check_output([f"{home}/bin/nvcc", "--list-gpu-arch"], text=True)
    found = {int(n) for n in re.findall(r"compute_(\d+)\b", out)}
    return ";".join(f"{n // 10}.{n % 10}" for n in sorted(found & {75, 80, 86, 89, 90, 100, 120})) + "+PTX"


def architectures() -> str:
    """The architectures that PyTorch's BuildExtension compiles for, such as "8.0;9.0+PTX": those of
    TORCH_CUDA_ARCH_LIST, which may also have names in it, or those of this machine's GPUs."""
    flags = " ".join(cpp_extension._get_cuda_arch_flags())
    binaries, ptx = (set(re.findall(rf"code={kind}_(\d+)(\d[a-z]?)\b", flags)) for kind in ("sm", "compute"))
    ordered = sorted(binaries, key=lambda arch: (int(arch[0]), arch[1]))
    return ";".join(f"{major}.{minor}" + "+PTX" * ((major, minor) in ptx) for major, minor in ordered)


def find_sources(cuda: bool) -> list[Path]:
    """The sources of the library, without or with those of the CUDA kernels."""
    folders = [".", "common", "loss", "loss/cpu", "image", "image/cpu", *(["loss/cuda", "image/cuda"] if cuda else [])]
    return sorted(path for folder in folders for path in (CSRC / folder).glob("*.c*"))


def find_objects(sources: list[Path], folder: str) -> list[str]:
    """The objects of sources in the folder of another build. Exits if one is missing."""
    objects = [Path(folder, source).with_suffix(".o") for source in sources]
    missing = [path for path in objects if not path.exists()]
    if missing:
        sys.exit(f"UDSKD_OBJECTS={folder!r}: {missing[0]} is missing: build there first with the same FORCE_CUDA")
    return [str(path) for path in objects]


def extension() -> Extension:
    cuda = find_toolkit() if wants_cuda() else None
    sources = find_sources(bool(cuda))
    objects: list[str] = []
    if folder := os.getenv("UDSKD_OBJECTS"):
        objects = find_objects([path for path in sources if path != MODULE], folder)
        sources = [MODULE]
    # -Wno-psabi: functions that take vectors by value are always inlined, so their ABI does not matter.
    warnings = ["-Wall", "-Wextra", "-Wno-psabi", *(["-Werror"] if STRICT else [])]
    # These two change no result. The code reads neither floating-point traps nor errno, and without them the compiler
    # can vectorise selections.
    vectorise = ["-fno-trapping-math", "-fno-math-errno"]
    optimise = ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
    sanitize: list[str] = []
    if SANITIZE:  # -fno-wrapv: Python's flags contain -fwrapv, which hides signed overflow from the sanitizer
        optimise = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-wrapv"]
        sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    cxx = [TARGET, "-fvisibility=hidden", *warnings, *vectorise, *optimise, *sanitize]
    nvcc = [
        TARGET,
        "-Xcompiler=-fvisibility=hidden",
        *(["--Werror=all-warnings"] if STRICT else []),
        "--threads=0",
        "--compress-mode=size",  # a third of the size
        *(["-G"] if DEBUG else ["-O3"]),
    ]
    # pybind11's headers come first, since the stable ABI does not allow the copy that PyTorch contains. -isystem turns
    # off warnings in the headers of others.
    system = [flag for path in [pybind11.get_include(), *cpp_extension.include_paths()] for flag in ("-isystem", path)]
    library_dirs, libraries = cpp_extension.library_paths(), ["c10", "torch_cpu"]
    if cuda:
        cpp_extension.CUDA_HOME = cuda  # a CPU-only PyTorch ignores the environment and sets None
        if os.getenv("FORCE_CUDA") == "1" and not os.getenv("TORCH_CUDA_ARCH_LIST"):
            os.environ["TORCH_CUDA_ARCH_LIST"] = all_architectures(cuda)  # BuildExtension reads it
        cxx.append(f'-DUDSKD_CUDA_ARCHS="{architectures()}"')
        system += ["-isystem", f"{cuda}/include"]
        library_dirs += [lib for lib in (f"{cuda}/lib64", f"{cuda}/lib") if Path(lib).is_dir()]
        libraries += ["cudart_static", "dl", "rt", "pthread"]  # static: the library also loads without CUDA
    return Extension(
        "udskd._C",
        list(map(str, sources)),
        extra_objects=objects,
        library_dirs=library_dirs,
        libraries=libraries,
        extra_compile_args={"cxx": cxx + system, "nvcc": nvcc + system},
        extra_link_args=sanitize,
        depends=sorted(map(str, CSRC.rglob("*.h"))),
        language="c++",
    )


class Build(cpp_extension.BuildExtension):
    """Keeps the objects of builds with and without CUDA kernels apart: their flags differ, and each would recompile
    those of the other."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if wants_cuda():
            self.build_temp = f"{self.build_temp}-cuda"


if __name__ == "__main__":
    setup(
        packages=[*find_packages(include=["udskd*"]), "udskd.recipes"],
        package_dir={"udskd.recipes": "recipes"},
        ext_modules=[] if os.getenv("UDSKD_NATIVE") == "0" else [extension()],
        cmdclass={"build_ext": Build.with_options(no_python_abi_suffix=False)},
    )
