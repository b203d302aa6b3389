"""Loads the compiled library. Without one, `problem` has the reason, and `import udskd` works all the same."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from udskd import __version__

native: dict[str, Any] = {}
"""The facts that the compiled library reports about its build; empty without a library."""

NO_CUDA = "this build has no CUDA kernels; compile them with: FORCE_CUDA=1 pip install --no-build-isolation ."

problem: str | None = None
"""Why there is no compiled library, or None."""

try:
    from udskd import _C  # type: ignore[attr-defined]

    native = _C.build_info()
except ImportError as error:
    problem = f"the compiled library cannot be loaded ({error})"
    warnings.warn(
        f"udskd: {problem}; the slower reference backend is used. Rebuild with: pip install --no-build-isolation .",
        stacklevel=3,
    )
else:
    if native["simd_problem"]:
        warnings.warn(f"udskd: {native['simd_problem']}", stacklevel=3)
    if not native["cuda_archs"] and torch.cuda.is_available():
        warnings.warn(f"udskd: {NO_CUDA}; tensors on a GPU get the slower reference backend", stacklevel=3)


def has_kernels(device_type: str) -> bool:
    """Whether the compiled library has kernels for a device. Cheap, because every call of the loss calls it."""
    return problem is None and (device_type == "cpu" or (device_type == "cuda" and bool(native["cuda_archs"])))


def unavailable(backend: str) -> str | None:
    """Why a backend ("cuda", "cpu", "reference") cannot run here, or None if it can."""
    if backend == "reference":
        return None
    if problem is not None:
        return problem
    if backend == "cuda" and not native["cuda_archs"]:
        return NO_CUDA
    if backend == "cuda" and not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    return None


def build_info() -> dict[str, Any]:
    """Describe this build.

    Returns:
        version, torch (the PyTorch in use), compiled (bool), simd (the level in use, or None), simd_levels (compiled
        ones), cuda_compiled (bool),
        cuda_archs (such as ["7.5", "9.0"]), cuda_ptx (the architecture whose PTX newer devices compile, or None),
        backends ({name: None if it can run here, else why not}).
    """
    archs = native.get("cuda_archs", [])
    return {
        "version": __version__,
        "torch": torch.__version__,
        "compiled": problem is None,
        "simd": native.get("simd"),
        "simd_levels": list(native.get("simd_levels", [])),
        "cuda_compiled": bool(archs),
        "cuda_archs": [arch.removesuffix("+PTX") for arch in archs],
        "cuda_ptx": next((arch.removesuffix("+PTX") for arch in archs if arch.endswith("+PTX")), None),
        "backends": {name: unavailable(name) for name in ("cuda", "cpu", "reference")},
    }
