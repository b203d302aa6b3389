"""Networks from files of weights: udskd's safetensors, and plain PyTorch state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from udskd.config.schema import DataConfig, Stem, StudentConfig, TeacherConfig
from udskd.errors import CheckpointError, ConfigError, NetworkCodeError
from udskd.models import imported, tiny, zoo
from udskd.models.checkpoints import WeightsInfo, load_safetensors_file, load_state_dict, load_weights, take_stem_mark


def load_network(
    path: Path, options: TeacherConfig | StudentConfig | None, classes: tuple[str, ...], data: DataConfig
) -> zoo.Model:
    """A trained network for images of these classes. With options, it must have their model, stem and options, of which
    none stands for those of the file.

    Stem "auto" is the stem that the file names. In a file that names none, it is torchvision's, at every image size.

    Raises CheckpointError if the file is missing, truncated, or holds another model, another stem, other classes (or
    the same in another order), another normalisation of the images, or weights that are not finite.
    """
    tensors, info = _read(path)
    if info is None:
        if options is None:
            raise CheckpointError(f"{path} does not name its model: give a .safetensors file of udskd's")
        return _plain_network(path, tensors, options, len(classes), data.image_size)
    _check(path, info, options, classes, data)
    if options is None:
        _refuse_any_call(path, info)
    model = _own_network(path, tensors, info, data.image_size)
    return replace(model, trained_at=info.image_size)


def load_own_network(path: Path) -> tuple[zoo.Model, WeightsInfo]:
    """The network in a file of save_weights, for the image size of its training. CheckpointError as in load_network."""
    tensors, info = load_weights(path)
    _refuse_any_call(path, info)
    return _own_network(path, tensors, info, info.image_size), info


def stem_of(path: Path, options: TeacherConfig) -> Stem:
    """The stem of the network in a file. CheckpointError as in load_network."""
    tensors, info = _read(path)
    return _plain_stem(path, tensors, options)[1] if info is None else _stem(path, info.stem, options)


def _read(path: Path) -> tuple[dict[str, Tensor], WeightsInfo | None]:
    return load_safetensors_file(path) if path.suffix.lower() == ".safetensors" else (load_state_dict(path), None)


def _check(
    path: Path,
    info: WeightsInfo,
    options: TeacherConfig | StudentConfig | None,
    classes: tuple[str, ...],
    data: DataConfig,
) -> None:
    if options is not None and info.model != options.model:
        raise CheckpointError(f'{path} holds a "{info.model}", but the recipe asks for "{options.model}"')
    if options is not None:
        _stem(path, info.stem, options)
        if options.options not in ({}, info.options):
            asked = f"the recipe asks for {options.options}"
            raise CheckpointError(f'{path} holds a "{info.model}" of the options {dict(info.options)}, but {asked}')
    if info.classes != classes:
        raise CheckpointError(f"{path} was trained for other classes: {_difference(info.classes, classes)}")
    if (info.mean, info.std) != (data.mean, data.std):
        raise CheckpointError(
            f"{path} was trained with data.mean {list(info.mean)} and data.std {list(info.std)}, "
            f"not {list(data.mean)} and {list(data.std)}: train on images that are normalised alike"
        )


def _refuse_any_call(path: Path, info: WeightsInfo) -> None:
    """CheckpointError if the file, not the recipe, names a function that can be called with any arguments."""
    try:
        refused = imported.is_imported(info.model) and imported.takes_any_caller(info.model)
    except NetworkCodeError:
        raise
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if refused:
        raise CheckpointError(
            f"{path} holds a network of {info.model}, which takes any arguments, and a file must not decide what is "
            "called: name num_classes among its arguments, or build the network yourself and load the file's tensors"
        )


def _stem(path: Path, named: str, options: TeacherConfig | StudentConfig) -> zoo.BuiltStem:
    """The stem that a file names. CheckpointError if the recipe asks for another one."""
    if options.stem not in ("auto", named):
        raise CheckpointError(f'{path} has stem "{named}", but the recipe asks for "{options.stem}": set it to "auto"')
    stem: zoo.BuiltStem = named  # type: ignore[assignment]
    return stem


def _own_network(path: Path, tensors: dict[str, Tensor], info: WeightsInfo, image_size: int) -> zoo.Model:
    stem: zoo.BuiltStem = info.stem  # type: ignore[assignment]
    try:
        untried = image_size != info.image_size
        model = zoo.build(info.model, len(info.classes), image_size, stem, info.options, untried=untried)
    except NetworkCodeError:
        raise
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None
    _load_into(path, model.module, tensors)
    return model


def _plain_network(
    path: Path, tensors: dict[str, Tensor], options: TeacherConfig | StudentConfig, classes: int, image_size: int
) -> zoo.Model:
    tensors, stem = _plain_stem(path, tensors, options)
    model = zoo.build(options.model, classes, image_size, stem, options.options)
    _load_into(path, model.module, tensors)
    return model


def _plain_stem(
    path: Path, tensors: dict[str, Tensor], options: TeacherConfig | StudentConfig
) -> tuple[dict[str, Tensor], Stem]:
    """A state dict without its stem mark, and its stem.

    A state dict copied from a file of udskd's has a mark. torchvision's own files do not record a stem, so that an
    explicit option decides.
    """
    tensors, mark = take_stem_mark(tensors)
    if mark is not None:
        return tensors, _stem(path, mark, options)
    return tensors, "imagenet" if options.stem == "auto" and not tiny.is_tiny(options.model) else options.stem


def _load_into(path: Path, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    wanted = module.state_dict()
    _check_state_dict(path, wanted, tensors)
    wanted.update({name: tensors[name] for name in wanted})
    try:
        module.load_state_dict(wanted)  # not `tensors`, which lacks the version number that MNASNet's needs
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not fit the network: {reason}") from None
    if (
        fault := find_invalid_tensor(module.state_dict())
    ) is not None:  # after loading: a value may overflow in the dtype
        raise CheckpointError(f"{path} holds no usable network: {fault}; give the weights of a training that succeeded")


def _check_state_dict(path: Path, wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """CheckpointError if the tensors differ from a network's state dict in their names, shapes or kinds of dtypes."""
    missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unknown:
        what = f"it lacks {missing[0]}" if missing else f"it has {unknown[0]}, which the network lacks"
        counts = f"{len(missing)} missing, {len(unknown)} unknown"
        raise CheckpointError(f"{path} does not fit the network: {what} ({counts})")
    for name, ours in wanted.items():
        theirs = tensors[name]
        if theirs.shape != ours.shape:
            raise CheckpointError(
                f"{path} does not fit the network: {name} is {list(theirs.shape)} in the file and "
                f"{list(ours.shape)} in the network (another number of classes, stem or image size)"
            )
        if not _is_compatible(theirs.dtype, ours.dtype):
            found, needed = (str(t.dtype).removeprefix("torch.") for t in (theirs, ours))
            raise CheckpointError(
                f"{path} does not fit the network: {name} is {found} in the file and {needed} in the network"
            )


def _is_compatible(theirs: torch.dtype, ours: torch.dtype) -> bool:
    """Whether the network can load a file's dtype: no complex values, and no integers for floating-point weights."""
    return not theirs.is_complex and (theirs.is_floating_point or not ours.is_floating_point)


def find_invalid_tensor(tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor that no trained network has: one with a value that is not finite, or with a negative variance,
    of which batch-norm takes the square root. None if there is no such tensor."""
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            bad = int((~tensor.isfinite()).sum())
            return f"{name} has {bad} of {tensor.numel()} values that are NaN or infinite"
        if name.endswith("running_var") and (tensor < 0).any():
            return f"{name} has a negative variance, {float(tensor.min()):.3g}"
    return None


def _is_finite(tensor: Tensor) -> bool:
    """isfinite().all() in one pass: the extremes of values of which one is NaN are NaN."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def _difference(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    if len(theirs) != len(ours):
        return f"{len(theirs)} classes, not these {len(ours)}"
    where = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return f'class {where} is "{theirs[where]}" there and "{ours[where]}" here'
