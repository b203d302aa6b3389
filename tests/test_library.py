"""Importing the package, with and without its compiled library, and the description of the build."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import udskd
from bench.cuda_toolkit import ARCHS
from udskd import _native

ROOT = Path(__file__).parents[1]


def python(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *flags, "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("code", ["import udskd", "import torch, udskd", "import udskd, torch"])
def test_import_is_silent_in_any_order(code: str) -> None:
    done = python(code, "-W", "error")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_import_needs_neither_torchvision_nor_the_command_lines_packages() -> None:
    heavy = ("torchvision", "PIL", "click", "rich", "matplotlib", "safetensors")
    code = f"import sys, udskd; print([m for m in {heavy} if m in sys.modules])"
    assert python(code).stdout.strip() == "[]"


WITHOUT_LIBRARY = """
import sys, warnings
sys.modules["udskd._C"] = None  # as if it had not been compiled
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import udskd
    udskd.build_info()  # the first use
"""


def test_without_the_library_there_is_one_warning_and_the_reference_backend() -> None:
    code = WITHOUT_LIBRARY + (
        "import torch\n"
        "out = udskd.dual_student_loss(torch.randn(2, 3), torch.randn(2, 3), None, torch.tensor([0, 1]))\n"
        "info = udskd.build_info()\n"
        "print(len(seen), out.loss.isfinite().item(), info['compiled'], info['backends']['reference'])"
    )
    done = python(code)
    assert done.stdout.split() == ["1", "True", "False", "None"], done.stderr


def test_without_the_library_the_error_of_a_backend_has_the_reason() -> None:
    code = WITHOUT_LIBRARY + (
        "import torch\n"
        "try: udskd.dual_student_loss(None, torch.randn(2, 3), backend='cpu')\n"
        "except ValueError as error: print(error)"
    )
    assert "backend 'cpu' is unavailable: the compiled library cannot be loaded" in python(code).stdout


def test_build_info_has_the_documented_keys() -> None:
    info = udskd.build_info()
    assert info["version"] == udskd.__version__
    assert info["simd"] in info["simd_levels"]
    assert info["simd_levels"][0] == "baseline"
    assert info["cuda_compiled"] == bool(info["cuda_archs"])
    assert all(arch.replace(".", "").isdigit() for arch in info["cuda_archs"])
    assert set(info["backends"]) == {"cuda", "cpu", "reference"}


def test_the_report_names_versions_levels_and_reasons() -> None:
    done = subprocess.run([sys.executable, "-m", "udskd"], cwd=ROOT, capture_output=True, text=True)
    info = udskd.build_info()
    assert done.returncode == 0
    for word in (info["version"], info["torch"], f"in use: {info['simd']}", *info["cuda_archs"]):
        assert word in done.stdout
    for name, reason in info["backends"].items():
        assert f"backend {name}" in done.stdout
        assert reason is None or reason in done.stdout


def test_a_build_for_all_architectures_has_ptx_for_newer_ones() -> None:
    """`make build-all` makes one. Other builds are for the GPUs or the list that whoever builds chooses."""
    archs = udskd.build_info()["cuda_archs"]
    if len(archs) < len(ARCHS):
        pytest.skip(f"this library has CUDA kernels for {', '.join(archs) or 'no architecture'}; see make build-all")
    assert [float(arch) * 10 for arch in archs] == list(ARCHS)
    assert udskd.build_info()["cuda_ptx"] == archs[-1]


def test_a_build_without_cuda_kernels_names_the_command_that_compiles_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "native", {"cuda_archs": []})
    sentence = "this build has no CUDA kernels; compile them with: FORCE_CUDA=1 pip install --no-build-isolation ."
    assert udskd.build_info()["backends"]["cuda"] == sentence
    assert not udskd.build_info()["cuda_compiled"]


def test_a_build_without_cuda_kernels_warns_on_a_machine_with_a_gpu() -> None:
    code = (
        "import torch, udskd\n"
        "from udskd import _C\n"
        "info = _C.build_info() | {'cuda_archs': []}\n"
        "_C.build_info, torch.cuda.is_available = lambda: info, lambda: True\n"
        "udskd.build_info()  # the first use"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("UserWarning: udskd: this build has no CUDA kernels; compile them with") == 1


def test_the_reference_backend_is_always_available() -> None:
    assert _native.unavailable("reference") is None


@pytest.mark.skipif(torch.version.cuda is None, reason="a PyTorch without CUDA")
def test_pytorchs_current_stream_is_found_where_the_cuda_kernels_look_for_it() -> None:
    loaded = ctypes.CDLL("libtorch_cuda.so", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)  # as csrc/common/cuda/device.h does
    assert loaded.aoti_torch_get_current_cuda_stream
