"""Builds udskd._C: a pybind11 module that also registers PyTorch operators through the stable ABI, with CUDA kernels
when nvcc is found.

UDSKD_CUDA=auto|0|1     build the CUDA kernels: if nvcc is found / never / or fail       (default: auto)
TORCH_CUDA_ARCH_LIST    GPU architectures, e.g. "8.0;9.0+PTX"                            (default: all that nvcc knows
from sm_75 to sm_120)
UDSKD_STRICT=1          warnings are errors, as the Makefile and CI have it; other compilers may find other ones
UDSKD_DEBUG=1           -O0 -g
UDSKD_SANITIZE=1        AddressSanitizer and UndefinedBehaviorSanitizer in the C++ code; `make sanitize` shows how to
load such a library
UDSKD_NATIVE=0          compile nothing: the reference backend alone, or a library that was built in place before
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup

try:
    import pybind11
    from torch.utils import cpp_extension
except ModuleNotFoundError as missing:
    sys.exit(
        f"\nudskd compiles against the PyTorch you have, which pip's isolated build cannot see ({missing}). "
        "Run these two lines:\n\n"
        "    pip install 'torch>=2.11' 'torchvision>=0.26' ninja 'pybind11>=3' 'setuptools>=77' wheel\n"
        "    pip install --no-build-isolation .\n"
    )

CSRC = Path("csrc")
TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # the oldest PyTorch that can load the library: 2.11
STRICT = os.getenv("UDSKD_STRICT") == "1"
DEBUG = os.getenv("UDSKD_DEBUG") == "1"
SANITIZE = os.getenv("UDSKD_SANITIZE") == "1"
PIP_NVCC = "'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-cccl==13.0.*'"


def find_cuda() -> str | None:
    """The CUDA toolkit's folder, or None when the kernels are not to be built."""
    want = os.getenv("UDSKD_CUDA", "auto")
    if want not in ("auto", "0", "1"):
        sys.exit(f"UDSKD_CUDA={want!r}: use auto, 0 or 1")
    if want == "0":
        return None
    homes = [os.getenv("CUDA_HOME"), os.getenv("CUDA_PATH"), toolkit_on_path()]
    packages = Path(sysconfig.get_path("purelib"), "nvidia").glob("cu*")  # pip's nvidia-cuda-nvcc
    homes += sorted(map(str, packages), reverse=True)
    for home in homes:
        if home and Path(home, "bin/nvcc").exists():
            return home
    if want == "1":
        sys.exit(
            f"UDSKD_CUDA=1, but no nvcc: install the CUDA toolkit or set CUDA_HOME, or\n    pip install {PIP_NVCC}"
        )
    print("udskd: no nvcc found, building the CPU kernels only", file=sys.stderr)
    return None


def toolkit_on_path() -> str | None:
    """The toolkit behind `nvcc`, seen through wrapper scripts such as Debian's and ccache's."""
    nvcc = shutil.which("nvcc")
    if not nvcc:
        return None
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", dry, re.M)
    return os.path.normpath(top[1].strip()) if top else None


def default_archs(home: str) -> str:
    """Every architecture that nvcc supports from Turing on, and PTX of the newest."""
    out = subprocess.check_output([f"{home}/bin/nvcc", "--list-gpu-arch"], text=True)
    found = {int(n) for n in re.findall(r"compute_(\d+)\b", out)}
    return ";".join(f"{n // 10}.{n % 10}" for n in sorted(found & {75, 80, 86, 89, 90, 100, 120})) + "+PTX"


def extension() -> Extension:
    cuda = find_cuda()
    sources = [
        CSRC / "module.cpp",
        CSRC / "ops.cpp",
        *(
            path
            for folder in ("common", "loss", "loss/cpu", "image", "image/cpu")
            for path in (CSRC / folder).glob("*.cpp")
        ),
    ]
    # -Wno-psabi: vectors are passed by value between functions that are all inlined, so no ABI is involved.
    warnings = ["-Wall", "-Wextra", "-Wno-psabi", *(["-Werror"] if STRICT else [])]
    # No value changes by these two: they only promise that nobody reads floating-point traps and errno, so that
    # selections vectorise.
    vectorise = ["-fno-trapping-math", "-fno-math-errno"]
    optimise = ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
    sanitize: list[str] = []
    if SANITIZE:  # -fno-wrapv: Python's own flags define signed overflow, which would then go unnoticed
        optimise = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-wrapv"]
        sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    cxx = [TARGET, "-fvisibility=hidden", *warnings, *vectorise, *optimise, *sanitize]
    nvcc = [
        TARGET,
        "-Xcompiler=-fvisibility=hidden",
        *(["--Werror=all-warnings"] if STRICT else []),
        "--threads=0",
        "--compress-mode=size",  # a third of the size; it is unpacked for the one architecture at hand
        *(["-G"] if DEBUG else ["-O3"]),
    ]
    # pybind11's own headers come first: PyTorch bundles a copy that the stable ABI refuses. -isystem keeps warnings
    # to our own code.
    system = [flag for path in [pybind11.get_include(), *cpp_extension.include_paths()] for flag in ("-isystem", path)]
    library_dirs, libraries = cpp_extension.library_paths(), ["c10", "torch_cpu"]
    if cuda:
        cpp_extension.CUDA_HOME = cuda  # None under a CPU-only PyTorch, whatever the environment says
        archs = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_archs(cuda))
        cxx.append(f'-DUDSKD_CUDA_ARCHS="{archs.replace(" ", ";")}"')
        for folder in ("loss/cuda", "image/cuda"):
            sources += [*(CSRC / folder).glob("*.cpp"), *(CSRC / folder).glob("*.cu")]
        system += ["-isystem", f"{cuda}/include"]
        library_dirs += [lib for lib in (f"{cuda}/lib64", f"{cuda}/lib") if Path(lib).is_dir()]
        libraries += ["cudart_static", "dl", "rt", "pthread"]  # static: the library also loads where there is no CUDA
    return Extension(
        "udskd._C",
        sorted(map(str, sources)),
        library_dirs=library_dirs,
        libraries=libraries,
        extra_compile_args={"cxx": cxx + system, "nvcc": nvcc + system},
        extra_link_args=sanitize,
        depends=sorted(map(str, CSRC.rglob("*.h"))),
        language="c++",
    )


setup(
    packages=[*find_packages(include=["udskd*"]), "udskd.recipes"],
    package_dir={"udskd.recipes": "recipes"},
    ext_modules=[] if os.getenv("UDSKD_NATIVE") == "0" else [extension()],
    cmdclass={"build_ext": cpp_extension.BuildExtension.with_options(no_python_abi_suffix=False)},
)
