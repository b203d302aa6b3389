"""What setup.py compiles, and what it asks for: for each machine and environment variable."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import setuptools
import torch

ROOT = Path(__file__).parents[1]
SEVEN = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """setup.py as a module, on a machine with a CUDA toolkit and without a GPU."""
    for name in ("FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_PATH", "UDSKD_OBJECTS"):
        monkeypatch.delenv(name, raising=False)
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\nfor n in 75 80 86 87 89 90 100 103 120 121; do echo compute_$n; done\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("udskd_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.cpp_extension, "CUDA_HOME", None)  # extension() sets it
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")  # extension() sets it
    return module


def add_gpus(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90", "sm_120"])


def compiled_for(build: ModuleType) -> str | None:
    """The architectures for which setup.py compiles the CUDA kernels, or None if it compiles those of the CPU only."""
    extension = build.extension()
    flags = [flag for flag in extension.extra_compile_args["cxx"] if flag.startswith("-DUDSKD_CUDA_ARCHS=")]
    assert bool(flags) == any(source.endswith(".cu") for source in extension.sources)
    assert any(source.startswith("csrc/loss/cpu/") for source in extension.sources)
    return flags[0].split('"')[1] if flags else None


def test_without_a_gpu_only_the_cpu_kernels_are_compiled(build: ModuleType) -> None:
    assert compiled_for(build) is None


def test_with_gpus_the_cuda_kernels_are_compiled_for_them(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    add_gpus(monkeypatch, (9, 0), (8, 6), (9, 0))
    assert compiled_for(build) == "8.6;9.0+PTX"


def test_a_gpu_of_rocm_has_no_cuda_kernels(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    add_gpus(monkeypatch, (9, 0))
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert compiled_for(build) is None


def test_force_cuda_1_compiles_for_all_architectures(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_CUDA", "1")
    assert compiled_for(build) == SEVEN


@pytest.mark.parametrize("force", [None, "1"])
@pytest.mark.parametrize(("asked", "compiled"), [("9.0", "9.0"), ("10.0+PTX 8.0", "8.0;10.0+PTX"), ("Ada", "8.9+PTX")])
def test_a_list_of_architectures_is_read_as_pytorch_reads_it(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, force: str | None, asked: str, compiled: str
) -> None:
    if force:
        monkeypatch.setenv("FORCE_CUDA", force)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    assert compiled_for(build) == compiled


def test_force_cuda_0_compiles_no_cuda_kernels(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    add_gpus(monkeypatch, (9, 0))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setenv("FORCE_CUDA", "0")
    assert compiled_for(build) is None


def test_another_value_of_force_cuda_is_refused(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_CUDA", "yes")
    with pytest.raises(SystemExit, match="FORCE_CUDA='yes': use 0 or 1"):
        build.extension()


def test_without_nvcc_the_error_names_the_ways_out(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.setenv("CUDA_HOME", str(ROOT / "nothing"))
    monkeypatch.setattr(build, "toolkit_on_path", lambda: None)
    monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(ROOT / "nothing"))
    with pytest.raises(SystemExit, match=r"nvcc is missing.*FORCE_CUDA=0(.|\n)*pip install 'nvidia-cuda-nvcc"):
        build.extension()


@pytest.fixture
def objects(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The objects of another build with CUDA kernels, in the folder of UDSKD_OBJECTS."""
    paths = [(tmp_path / source).with_suffix(".o") for source in build.find_sources(cuda=True)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setenv("UDSKD_OBJECTS", str(tmp_path))
    return paths


def test_of_given_objects_all_but_the_python_module_are_linked(
    build: ModuleType, objects: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_CUDA", "1")
    extension = build.extension()
    assert extension.sources == ["csrc/module.cpp"]
    assert extension.extra_objects == [str(path) for path in objects if path.name != "module.o"]


def test_a_missing_object_is_refused_in_one_sentence(build: ModuleType, objects: list[Path]) -> None:
    missing = next(path for path in objects if path.name == "plan.o")
    missing.unlink()
    with pytest.raises(SystemExit, match=f"^UDSKD_OBJECTS=.*: {missing} is missing: build there first"):
        build.extension()


def test_no_source_but_the_python_module_includes_pythons_headers() -> None:
    header = re.compile(r'#include\s*[<"](pybind11/|Python\.h|torch/(extension|python)\.h)')
    sources = {path for path in (ROOT / "csrc").rglob("*") if path.is_file() and header.search(path.read_text())}
    assert sources == {ROOT / "csrc" / "module.cpp"}


@pytest.mark.parametrize(("module", "needed"), [(setuptools, "setuptools 77"), (torch, "PyTorch 2.11")])
def test_old_tools_are_refused_in_one_sentence(module: ModuleType, needed: str) -> None:
    program = f"import runpy, {module.__name__} as old; old.__version__ = '2.10.0'; runpy.run_path('setup.py')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]  # PyTorch may warn before
    assert last.startswith(f"udskd needs {needed} or newer, and this is 2.10.0: run pip install 'torch>=2.11'")
