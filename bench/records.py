"""Contents of every record of a measurement: rounded numbers, machine, versions and the command that repeats it."""

from __future__ import annotations

import shlex
from typing import Any

from bench import machine


def digits(value: float) -> float:
    """Four significant digits; the noise is larger than further ones."""
    return float(f"{value:.4g}")


def environment(device: str, command: str) -> dict[str, Any]:
    return {"machine": machine.machine(device), "versions": machine.versions(), "command": command}


def command_line(module: str, **options: Any) -> str:
    """`python -m bench.MODULE --name value ...`.

    Lists become comma-separated values and tuples in them AxB; True becomes a flag; None and False are omitted. Callers
    leave out paths, since those of the measuring machine mean nothing elsewhere.
    """
    words = ["python", "-m", f"bench.{module}"]
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        words += [] if value is True else [_text(value)]
    return shlex.join(words)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
