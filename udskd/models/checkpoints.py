"""Files of weights: udskd's safetensors, whose metadata describe the network, other safetensors, and PyTorch's state
dicts."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, get_args

import torch
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

from udskd.config.validation import Invalid, parse_json, reading
from udskd.data import class_hash
from udskd.errors import CheckpointError
from udskd.files import read_bytes, read_pickle, write_atomic
from udskd.models import tiny
from udskd.models.zoo import BuiltStem

FORMAT = "udskd-weights-3"
_OLDER = "udskd-weights-2"  # without stem mark, eval_crop and hash of the metadata
_OWN_KEYS = {"class_hash", "classes", "sha256"}  # also where the format itself is damaged
STATE = b"udskd-state-1 "  # the first bytes of a file of training state, which is no file of weights


class _Header(TypedDict, total=False):
    __metadata__: dict[str, str] | None


@dataclass(frozen=True)
class WeightsInfo:
    """The metadata of a weights file."""

    model: str
    stem: str
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    eval_crop: float | None = None
    """data.eval_crop of the run; None if an older udskd wrote the file, without recording it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of a network that timm or the user's own code builds."""

    @property
    def class_hash(self) -> str:
        """Hash of the class names in order."""
        return class_hash(self.classes)


def save_weights(path: Path, tensors: dict[str, Tensor], info: WeightsInfo) -> None:
    """Write a network's state dict and its metadata. CheckpointError if the file cannot be written.

    The file of a torchvision network with a changed stem has one tensor more, see stem_mark(). `tensors` may have it.
    """
    tensors, _ = take_stem_mark(tensors)
    # safetensors stores no strides: channels_last is set again after loading
    contiguous = _without_shared_memory({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
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
    if info.eval_crop is not None:
        metadata["eval_crop"] = str(info.eval_crop)
    if info.options:
        metadata["options"] = json.dumps(info.options)
    metadata["metadata_sha256"] = _metadata_sum(metadata)
    write_atomic(path, safetensors_torch.save(contiguous | stem_mark(info.model, info.stem), metadata=metadata))


def _without_shared_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with a copy in place of each that shares another's memory, which safetensors refuses."""
    first = {tensor.untyped_storage().data_ptr(): name for name, tensor in reversed(tensors.items())}
    return {name: t if first[t.untyped_storage().data_ptr()] == name else t.clone() for name, t in tensors.items()}


def load_weights(path: Path) -> tuple[dict[str, Tensor], WeightsInfo]:
    """Read a file of save_weights. CheckpointError if it is missing or truncated, or udskd did not write it."""
    tensors, metadata = _read_safetensors(path)
    if not is_own(metadata):
        raise CheckpointError(f"{path} holds no udskd metadata (model, classes): it was not written by udskd")
    return _checked(path, tensors, metadata)


def load_safetensors_file(path: Path) -> tuple[dict[str, Tensor], WeightsInfo | None]:
    """Like load_weights, but accepts a file that udskd did not write, as a plain state dict without WeightsInfo."""
    tensors, metadata = _read_safetensors(path)
    return _checked(path, tensors, metadata) if is_own(metadata) else (_plain(path, tensors), None)


def is_own(metadata: Mapping[str, str]) -> bool:
    """Whether a safetensors file's metadata are of any version of save_weights, damaged or not."""
    return metadata.get("format", "").startswith("udskd-weights-") or metadata.keys() >= _OWN_KEYS


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    data = read_bytes(path)
    with reading(path, CheckpointError, damaged="is truncated or not a safetensors file"):
        tensors = safetensors_torch.load(data)
        header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")], _Header)
    return tensors, header.get("__metadata__") or {}


def _checked(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> tuple[dict[str, Tensor], WeightsInfo]:
    version = metadata.get("format")
    if version not in (FORMAT, _OLDER):
        raise CheckpointError(
            f"{path} has the format {str(version)[:40]}, which this version of udskd does not support: update it"
        )
    with reading(path, CheckpointError, damaged="is damaged: its metadata cannot be understood"):
        info = _info(metadata)
    tensors, mark = take_stem_mark(tensors)
    expected = info.stem if version == FORMAT and stem_mark(info.model, info.stem) else None
    sums = metadata.get("class_hash"), metadata.get("sha256")
    # One flipped bit makes the older format, which has no hash of the metadata, of the present one.
    is_older = version == _OLDER and "metadata_sha256" not in metadata
    is_whole = is_older or _metadata_sum(metadata) == metadata.get("metadata_sha256")
    if (info.class_hash, fingerprint(tensors)) != sums or mark != expected or not is_whole:
        raise CheckpointError(f"{path} is damaged: its contents do not match their SHA-256")
    return tensors, info


def _metadata_sum(metadata: Mapping[str, str]) -> str:
    entries = sorted((name, value) for name, value in metadata.items() if name != "metadata_sha256")
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _info(metadata: Mapping[str, str]) -> WeightsInfo:
    """The metadata, parsed. ValueError for entries that save_weights cannot have written."""
    values: dict[str, Any] = {}
    for name, (read, check) in _METADATA.items():
        if name not in metadata and name in _OPTIONAL:
            continue
        if name not in metadata:
            raise Invalid(f"there is no {name}")
        try:
            values[name] = read(metadata[name])
            is_valid = check(values[name])
        except (ValueError, TypeError, OverflowError, RecursionError):
            is_valid = False
        if not is_valid:
            raise Invalid(f"{name} is {metadata[name]!r}")
    return WeightsInfo(**values)


def _floats(text: str) -> tuple[float, ...]:
    return tuple(parse_json(text, list[float]))


# For each entry of the metadata: its parser, and the check of the parsed value.
_METADATA: dict[str, tuple[Callable[[str], Any], Callable[[Any], bool]]] = {
    "model": (str, bool),
    "stem": (str, lambda stem: stem in get_args(BuiltStem)),
    "classes": (
        lambda text: tuple(parse_json(text, list[str])),
        lambda classes: len(classes) > 1,
    ),
    "image_size": (int, lambda size: 0 < size < 2**31),
    "mean": (_floats, lambda mean: len(mean) == 3 and all(map(math.isfinite, mean))),
    "std": (_floats, lambda std: len(std) == 3 and all(math.isfinite(s) and s > 0 for s in std)),
    "eval_crop": (float, lambda crop: 0 < crop <= 1),
    "options": (partial(parse_json, schema=dict[str, Any]), lambda options: True),
}
_OPTIONAL = ("eval_crop", "options")


_MARK = "udskd: stem '{}' is not torchvision's, so load this file with udskd.load"
_MARKED = re.compile(re.escape(_MARK).replace(r"\{\}", r"(\w+)"))


def stem_mark(model: str, stem: str) -> dict[str, Tensor]:
    """A tensor whose name says that the stem of a torchvision network has been changed; {} if it has not.

    With other strides, the weights of many networks keep their names and shapes. torchvision's network would load them
    without an error and give wrong logits. With the mark, load_state_dict reports an unexpected key.
    """
    return {} if stem == "imagenet" or tiny.is_tiny(model) else {_MARK.format(stem): torch.zeros(1, dtype=torch.uint8)}


def take_stem_mark(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
    """The tensors without the stem_mark, and the stem that the mark names."""
    marks = {name: match[1] for name in tensors if (match := _MARKED.fullmatch(name))}
    rest = {name: tensor for name, tensor in tensors.items() if name not in marks}
    return rest, next(iter(marks.values()), None)


def keep_stem_mark(module: nn.Module, model: str, stem: str) -> None:
    """Make the module's state_dict() contain its stem_mark, and its load_state_dict() accept the mark.

    So a state dict that a user saves records the stem. A state dict without a mark can still be loaded; the mark of
    another stem stays an unexpected key.
    """
    if mark := stem_mark(model, stem):
        # partial objects of module-level functions, so that the module can be copied and pickled
        module.register_state_dict_post_hook(partial(_add_mark, tuple(mark)))  # type: ignore[no-untyped-call]
        module.register_load_state_dict_pre_hook(partial(_drop_mark, tuple(mark)))  # type: ignore[no-untyped-call]


def _add_mark(names: tuple[str, ...], _module: nn.Module, tensors: dict[str, Tensor], prefix: str, *_: object) -> None:
    tensors.update({prefix + name: torch.zeros(1, dtype=torch.uint8) for name in names})


def _drop_mark(names: tuple[str, ...], _module: nn.Module, tensors: dict[str, Tensor], prefix: str, *_: object) -> None:
    for name in names:
        tensors.pop(prefix + name, None)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of tensors by name: names, dtypes, shapes and bytes, whatever the device and strides."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """A plain PyTorch state dict, as in torchvision's files, also under the key "model" or "state_dict", or saved from
    DataParallel."""
    data = read_bytes(path)
    if data.startswith(STATE):
        raise CheckpointError(f"{path} is the state of a training, for --resume: give a .safetensors file of that run")
    loaded = read_pickle(path, memoryview(data))
    for key in ("model", "state_dict"):
        loaded = loaded[key] if isinstance(loaded.get(key), dict) else loaded
    return _plain(path, loaded)


def _plain(path: Path, loaded: dict[str, Any]) -> dict[str, Tensor]:
    if not loaded or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
        raise CheckpointError(f"{path} is not a state dict: it holds something other than named tensors")
    return {name.removeprefix("module."): value for name, value in loaded.items()}
