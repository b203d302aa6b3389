"""The machine of a measurement: processor, GPU, versions, and the settings of the memory allocator.

    python -m bench.machine --device cuda

prints the properties and state of the GPU as JSON; it changes no setting.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import udskd
from bench.arguments import add_device, make_parser

OPTIONAL = ("triton", "liger-kernel", "quack-kernels")  # distributions whose version is recorded if installed
STATE = (  # fields of nvidia-smi --query-gpu; none that identifies one GPU
    *("driver_version", "pstate", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "temperature.gpu"),
    *("power.draw", "power.limit", "memory.total", "memory.used", "compute_mode", "ecc.mode.current"),
)


def check_device(parser: argparse.ArgumentParser, device: str) -> None:
    """Ends the command with a message if it asks for CUDA and PyTorch has no CUDA device."""
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: PyTorch sees no CUDA device")


def processor() -> str:
    """The processor's name, as far as the system reports it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, system, and the GPU or the SIMD level in use; nothing that identifies this machine."""
    out = {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()}
    if device == "cuda":
        return out | {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return out | {"simd": udskd.build_info()["simd"]}


def gpu() -> dict[str, Any]:
    """Size of the GPU, and its current clocks and driver."""
    p = torch.cuda.get_device_properties()
    return {
        "capability": f"{p.major}.{p.minor}",
        "multiprocessors": p.multi_processor_count,
        "memory_bytes": p.total_memory,
        "l2_bytes": p.L2_cache_size,
        "devices": torch.cuda.device_count(),
        "state": nvidia_smi(),
    }


def nvidia_smi() -> dict[str, str]:
    """The fields STATE of the GPU in use; empty if nvidia-smi is missing or fails."""
    program = shutil.which("nvidia-smi")
    if not program:
        return {}
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    query = [program, f"--query-gpu={','.join(STATE)}", "--format=csv,noheader", f"--id={first}"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(STATE, values, strict=True)) if done.returncode == 0 and len(values) == len(STATE) else {}


def versions() -> dict[str, str]:
    out = {"udskd": udskd.__version__, "torch": torch.__version__, "python": platform.python_version()}
    for name in OPTIONAL:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("machine", __doc__)
    add_device(parser)
    device = parser.parse_args(argv).device
    if device == "cuda" and not torch.cuda.is_available():
        print("no GPU: PyTorch sees no CUDA device")
        return 1
    facts = machine(device) | (gpu() if device == "cuda" else {}) | {"versions": versions()}
    print(json.dumps(facts, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
