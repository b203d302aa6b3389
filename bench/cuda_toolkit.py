"""The programs of the CUDA toolkit that the build uses: finds them, compiles one source for one architecture, and makes
the names of kernels readable."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from bench.commands import ROOT

ARCHS = (75, 80, 86, 89, 90, 100, 120)
FLAGS = [  # the flags of setup.py and of torch.utils.cpp_extension; tests/bench/test_resources.py compares them
    *("-DTORCH_TARGET_VERSION=0x020b000000000000", "--Werror=all-warnings", "-O3"),
    *("-D__CUDA_NO_HALF_OPERATORS__", "-D__CUDA_NO_HALF_CONVERSIONS__", "-D__CUDA_NO_BFLOAT16_CONVERSIONS__"),
    *("-D__CUDA_NO_HALF2_OPERATORS__", "--expt-relaxed-constexpr"),
]


class ToolError(Exception):
    """A program of the toolkit has failed or is missing."""


def home() -> str | None:
    """The toolkit's folder, found in the order in which setup.py looks for it."""
    homes = [os.getenv("CUDA_HOME"), os.getenv("CUDA_PATH"), _on_path()]
    homes += sorted(map(str, packages().glob("cu*")), reverse=True)  # pip's nvidia-cuda-nvcc
    return next((found for found in homes if found and Path(found, "bin/nvcc").exists()), None)


def _on_path() -> str | None:
    """The toolkit of the `nvcc` on PATH, also if that is a wrapper script."""
    nvcc = shutil.which("nvcc")
    if not nvcc:
        return None
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", dry, re.M)
    return os.path.normpath(top[1].strip()) if top else None


def packages() -> Path:
    return Path(sysconfig.get_path("purelib"), "nvidia")


def folder_of(package: str) -> str | None:
    """The folder of an installed package, found without importing it."""
    found = find_spec(package)
    return found.submodule_search_locations[0] if found and found.submodule_search_locations else None


def program(name: str, within: str | None = None) -> str | None:
    """A program of the toolkit: on PATH, in the toolkit, in pip's packages, or in Triton's."""
    folders = [Path(within, part) for part in ("bin", "compute-sanitizer")] if within else []
    folders += sorted(packages().glob("*/bin"), reverse=True)
    if triton := folder_of("triton"):
        folders.append(Path(triton, "backends/nvidia/bin"))
    found = (str(folder / name) for folder in folders if os.access(folder / name, os.X_OK))
    return shutil.which(name) or next(found, None)


def release(within: str) -> str:
    """The release of nvcc, such as 13.0.88."""
    text = output([f"{within}/bin/nvcc", "--version"])
    found = re.search(r"\bV(\d+(?:\.\d+)+)", text)
    return found[1] if found else text.strip()


def output(command: Sequence[str]) -> str:
    """Standard output and error; ToolError if the program fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    if done.returncode:
        raise ToolError(f"{Path(command[0]).name} failed\n{done.stdout.strip()}")
    return done.stdout


def sources() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cu"))


def compile_device(within: str, source: str, arch: int, cubin: Path) -> str:
    """Writes the machine code of one architecture; returns the output of ptxas about every kernel."""
    include = Path(folder_of("torch") or "", "include")
    system = [include, include / "torch/csrc/api/include", Path(within, "include")]
    headers = [part for path in system for part in ("-isystem", str(path))]
    command = [f"{within}/bin/nvcc", "-cubin", f"-arch=sm_{arch}", "-Xptxas=-v", "-std=c++17", *FLAGS, *headers]
    return output([*command, "-o", str(cubin), source])


# --- names -----------------------------------------------------------------------------------------------------------


def readable(mangled: Sequence[str]) -> dict[str, str]:
    """Short names of kernels by their mangled names."""
    if not mangled:
        return {}
    demangler = program("c++filt") or program("cu++filt", home())
    if not demangler:
        raise ToolError("cannot demangle names: neither c++filt (binutils) nor cu++filt is installed")
    return dict(zip(mangled, map(short, output([demangler, *mangled]).splitlines()), strict=True))


def short(demangled: str) -> str:
    """`rows<half, Warp>` for `void udskd::(anonymous namespace)::rows<__half, udskd::Warp>(float*, int)`."""
    name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|_INTERNAL_\w+::|\budskd::(?:cuda::)?", "", demangled)
    name = re.sub(r"\(([A-Za-z_][\w:]*)\)(-?\w+)", r"\1(\2)", name)  # a constant of an enumeration
    name = re.sub(r"\b__(?:nv_)?(half|bfloat16)\b", r"\1", name).replace("> >", ">>")
    return _without_result(_without_arguments(name.strip()))


def _without_arguments(name: str) -> str:
    """The name without the parameters of the function."""
    depth = 0
    for position, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0 and position:
            return name[:position]
    return name


def _without_result(name: str) -> str:
    """The name without the return type, which demangled templates have."""
    depth, begin = 0, 0
    for position, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == " " and depth == 0:
            begin = position + 1
    return name[begin:]
