"""Files that are either whole or absent: weights as safetensors that say what they are, training state for --resume."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from udskd.data import class_hash
from udskd.errors import CheckpointError

FORMAT = "udskd-weights-2"
STATE = b"udskd-state-1 "  # begins a file of training state; then the SHA-256 of the rest, and a line's end


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says about itself."""

    model: str
    stem: str
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def class_hash(self) -> str:
        """Hash of the class names in order."""
        return class_hash(self.classes)


def save_weights(path: Path, tensors: dict[str, Tensor], info: WeightsInfo) -> None:
    """Write a network's state dict and what it belongs to. CheckpointError if the disk does not take it."""
    # safetensors keeps no strides: whoever loads channels_last weights lays them out again
    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    metadata = {
        "format": FORMAT,
        "sha256": fingerprint(contiguous),
        "model": info.model,
        "stem": info.stem,
        "classes": json.dumps(info.classes),
        "class_hash": info.class_hash,
        "image_size": str(info.image_size),
        "mean": json.dumps(info.mean),
        "std": json.dumps(info.std),
    }
    write_atomic(path, save_safetensors(contiguous, metadata=metadata))


def load_weights(path: Path) -> tuple[dict[str, Tensor], WeightsInfo]:
    """Read what save_weights wrote. CheckpointError if it is missing, truncated, or not one of udskd's."""
    data = _read(path)
    try:
        tensors = load_safetensors(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file ({error})") from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} holds no udskd metadata (model, classes): it was not written by udskd")
    info = WeightsInfo(
        model=metadata["model"],
        stem=metadata["stem"],
        classes=tuple(json.loads(metadata["classes"])),
        image_size=int(metadata["image_size"]),
        mean=tuple(json.loads(metadata["mean"])),
        std=tuple(json.loads(metadata["std"])),
    )
    if info.class_hash != metadata["class_hash"] or fingerprint(tensors) != metadata["sha256"]:
        raise CheckpointError(f"{path} is damaged: its contents do not match their SHA-256")
    return tensors, info


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of tensors by name: names, dtypes, shapes and bytes, wherever they lie."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values for --resume; the state that was there becomes previous(path).

    Raises CheckpointError if the disk does not take it.
    """
    buffer = io.BytesIO()  # in memory: torch.save to a full disk dies in its destructor rather than with an OSError
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    write_atomic(path, STATE + hashlib.sha256(payload).hexdigest().encode() + b"\n", payload, keep=previous(path))


def previous(path: Path) -> Path:
    """Where the state before the last one is."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def load_state(path: Path) -> dict[str, Any]:
    """Read what save_state wrote, onto the CPU, executing nothing.

    Raises CheckpointError if it is missing, truncated or altered.
    """
    data = _read(path)
    head = data[: len(STATE) + 65]
    payload = memoryview(data)[len(head) :]
    if head != STATE + hashlib.sha256(payload).hexdigest().encode() + b"\n":
        raise CheckpointError(f"{path} is truncated or altered: its contents do not match their SHA-256")
    return _unpickled(path, payload)


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """A plain PyTorch state dict (torchvision's files), also under "model" or "state_dict", or from DataParallel."""
    loaded = _unpickled(path, memoryview(_read(path)))
    for key in ("model", "state_dict"):
        loaded = loaded[key] if isinstance(loaded.get(key), dict) else loaded
    if not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path} is not a state dict: it holds something other than named tensors")
    return {name.removeprefix("module."): value for name, value in loaded.items()}


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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def _unpickled(path: Path, data: memoryview) -> dict[str, Any]:
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
        raise CheckpointError(f"{path} is truncated or not a checkpoint of tensors and plain values") from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} is not a checkpoint: it holds a {type(loaded).__name__} instead of a dict")
    return loaded
