"""Files: written atomically, and read without running code from them."""

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
"""The file of the students' predictions in a run folder; all other files of this suffix hold weights."""


def expand_user(path: str | Path) -> Path:
    """The path with ~ and ~USER replaced. DataError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DataError(f"{path} begins with the home of a user that does not exist: give the whole path") from None


def write_atomic(path: Path, *parts: bytes | memoryview, keep: Path | None = None) -> None:
    """Replace a file atomically: at any moment, either the old file or the whole new one exists.

    With `keep`, the old file is first renamed to it, so that for a moment only `keep` exists.
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
    """The dict that torch.save wrote, on the CPU; no code in the file is run. CheckpointError if it is damaged, or
    holds something else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, for files that are no pickles
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # PyTorch's reader raises almost any exception for a damaged file
        raise CheckpointError(f"{path} is truncated or not a checkpoint of tensors and plain values") from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} is not a checkpoint: it holds a {type(loaded).__name__} instead of a dict")
    return loaded
