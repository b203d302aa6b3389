"""Networks out of files: udskd's own safetensors, and plain PyTorch state dicts."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from udskd import models
from udskd.config import DataConfig, TeacherConfig
from udskd.errors import CheckpointError
from udskd.training.checkpoint import WeightsInfo, load_state_dict, load_weights


def load_network(path: Path, options: TeacherConfig | None, classes: tuple[str, ...], data: DataConfig) -> models.Model:
    """A trained network for images of these classes; with options, it must be the model (and stem) that they ask for.

    Raises CheckpointError if the file is missing, truncated, or holds another model, other classes (or the same in
    another order), another normalisation of the images.
    """
    if path.suffix != ".safetensors":
        if options is None:
            raise CheckpointError(f"{path} does not say which model it holds: give a .safetensors file of udskd's")
        return _load_plain(path, options, len(classes), data.image_size)
    tensors, info = load_weights(path)
    _check(path, info, options, classes, data)
    stem: models.BuiltStem = info.stem  # type: ignore[assignment]
    model = models.build(info.model, len(classes), data.image_size, stem)
    _fill(path, model.module, tensors)
    return model


def _check(
    path: Path, info: WeightsInfo, options: TeacherConfig | None, classes: tuple[str, ...], data: DataConfig
) -> None:
    if options is not None and info.model != options.model:
        raise CheckpointError(f'{path} holds a "{info.model}", but the recipe asks for "{options.model}"')
    if options is not None and options.stem not in ("auto", info.stem):
        raise CheckpointError(
            f'{path} has stem "{info.stem}", but the recipe asks for "{options.stem}": set it to "auto"'
        )
    if info.classes != classes:
        raise CheckpointError(f"{path} was trained for other classes: {_difference(info.classes, classes)}")
    if (info.mean, info.std) != (data.mean, data.std):
        raise CheckpointError(
            f"{path} was trained with data.mean {list(info.mean)} and data.std {list(info.std)}, "
            f"not {list(data.mean)} and {list(data.std)}"
        )


def _load_plain(path: Path, options: TeacherConfig, classes: int, image_size: int) -> models.Model:
    """torchvision's own files say nothing about themselves; their stem is torchvision's."""
    tensors = load_state_dict(path)
    stem = "imagenet" if options.stem == "auto" and not options.model.startswith("tiny_") else options.stem
    model = models.build(options.model, classes, image_size, stem)
    _fill(path, model.module, tensors)
    return model


def _fill(path: Path, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    wanted = module.state_dict()
    missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unknown:
        what = f"it lacks {missing[0]}" if missing else f"it has {unknown[0]}, which the network has not"
        counts = f"{len(missing)} missing, {len(unknown)} unknown"
        raise CheckpointError(f"{path} does not fit the network: {what} ({counts})")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{path} does not fit the network: {name} is {list(tensor.shape)} in the file and "
                f"{list(wanted[name].shape)} in the network (another number of classes, or another stem)"
            )
    module.load_state_dict(tensors)


def _difference(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    if len(theirs) != len(ours):
        return f"{len(theirs)} classes, not these {len(ours)}"
    where = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return f'class {where} is "{theirs[where]}" there and "{ours[where]}" here'
