"""Files that are written as a whole or not at all, and read without executing anything."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from udskd.errors import CheckpointError, DataError

PREDICTIONS = "predictions.safetensors"
"""The students' predictions in a run's folder, where the other files of that suffix are weights."""


def expand_user(path: str | Path) -> Path:
    """The path with ~ and ~USER replaced. DataError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DataError(f"{path} begins with the home of a user that does not exist: give the whole path") from None


def write_atomic(path: Path, *parts: bytes | memoryview, keep: Path | None = None) -> None:
    """Replace the file by one step: whatever happens on the way, either the old file or the whole new one is there.

    With `keep`, the old file goes there first; then for a moment it is only there.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            for data in parts:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        kept = "; the previous one is intact" if path.exists() or (keep and keep.exists()) else ""
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}{kept}") from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bytes(path: Path) -> bytes:
    """A file's content. CheckpointError if it is missing or cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def read_pickle(path: Path, data: memoryview) -> dict[str, Any]:
    """What torch.save wrote, onto the CPU, executing nothing. CheckpointError if it is no dict, or damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the pickle protocols that it sees in files which are none
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # of damaged files, PyTorch's reader raises almost anything
        raise CheckpointError(f"{path} is truncated or not a checkpoint of tensors and plain values") from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} is not a checkpoint: it holds a {type(loaded).__name__} instead of a dict")
    return loaded
