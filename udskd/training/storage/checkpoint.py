"""The file format of the train state: STATE, the SHA-256 of the rest, a line feed, and the output of torch.save for
tensors and plain values. A file is complete or absent."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from udskd.errors import CheckpointError
from udskd.files import read_bytes, read_pickle, write_atomic
from udskd.models.checkpoints import STATE


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values; the state that was at the path becomes previous(path).

    Raises CheckpointError if the file cannot be written.
    """
    buffer = io.BytesIO()  # in memory: on a full disk torch.save fails in its destructor, not with an OSError
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    write_atomic(path, STATE + hashlib.sha256(payload).hexdigest().encode() + b"\n", payload, keep=previous(path))


def previous(path: Path) -> Path:
    """The path of the state before the last one."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def load_state(path: Path) -> dict[str, Any]:
    """Read what save_state wrote, onto the CPU, without executing code from the file.

    Raises CheckpointError if it is missing, truncated or altered.
    """
    data = read_bytes(path)
    head = data[: len(STATE) + 65]
    payload = memoryview(data)[len(head) :]
    if head != STATE + hashlib.sha256(payload).hexdigest().encode() + b"\n":
        raise CheckpointError(f"{path} is truncated or altered: its contents do not match their SHA-256")
    return read_pickle(path, payload)
