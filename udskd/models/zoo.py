"""Classification networks by name, with a stem that fits the image size."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from udskd.config.schema import Stem
from udskd.config.suggest import did_you_mean
from udskd.errors import ConfigError, explain_missing_packages
from udskd.models import imported, tiny
from udskd.models.features import meta_copy, trace

BuiltStem = Literal["imagenet", "half", "small"]
_FIXED_STRIDE = ("VisionTransformer", "MaxVit")  # built for one image size: the stride of the patches cannot change
SMALL_BELOW = 96  # pixels: for smaller images, "auto" removes the early down-sampling


@dataclass(frozen=True)
class Model:
    """A network and how it was built."""

    name: str
    stem: BuiltStem
    num_classes: int
    image_size: int
    module: nn.Module
    trained_at: int | None = None
    """Image size in pixels that the weights were trained at, if their file records it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments with which it was built, if it is imported."""

    def describe(self) -> str:
        """One line for the log: name, parameters, stem, and the image size of its training if that is another."""
        stem = "" if imported.is_imported(self.name) else f", stem {self.stem}"
        text = f"{self.name}, {parameter_count(self.module) / 1e6:.3g} M parameters{stem}"
        other = self.trained_at not in (None, self.image_size)
        return f"{text}, trained on images of {self.trained_at} px" if other else text


def parameter_count(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in module.parameters())


def build(
    name: str,
    num_classes: int,
    image_size: int,
    stem: Stem = "auto",
    options: Mapping[str, Any] | None = None,
    *,
    untried: bool = True,
) -> Model:
    """A randomly initialised network for images [B, 3, image_size, image_size] -> logits [B, num_classes].

    Most of torchvision's networks down-sample the image by four before their first stage, which suits 224 px. Stem
    "imagenet" keeps that, "half" down-samples by two, "small" not at all. "auto" is "small" below 96 px and "imagenet"
    otherwise; for networks without a stem to change (vision transformers) it is always "imagenet".

    options: keyword arguments of an imported network (udskd.models.imported), which has no stem to change.
    untried: whether the network may be one that does not take images of this size, so that it has to be tried.

    Raises ConfigError for an unknown name or option, a stem that the network cannot have, images too small for it, and
    an output other than logits.
    """
    if imported.is_imported(name):
        return _imported(name, num_classes, image_size, stem, options or {}, untried)
    if options:
        raise ConfigError(f'model "{name}" takes no options, got {", ".join(options)}: they are for imported networks')
    if tiny.is_tiny(name):
        model = Model(name, "small", num_classes, image_size, tiny.build(name, num_classes))
        if stem not in ("auto", "small"):
            raise ConfigError(
                f'model "{name}" has no stem "{stem}": the tiny networks never shrink the image early (use "auto")'
            )
        return model
    wanted: BuiltStem = ("small" if image_size < SMALL_BELOW else "imagenet") if stem == "auto" else stem
    module = _torchvision(name, num_classes, image_size)
    if wanted != "imagenet" and not _reduce_stride(module, wanted):
        if stem != "auto":
            raise ConfigError(
                f'model "{name}" has no early down-sampling for stem "{stem}" to change: use stem "imagenet"'
            )
        wanted = "imagenet"
    if untried:
        _check_image_size(name, module, num_classes, image_size)
    return Model(name, wanted, num_classes, image_size, module)


def _imported(
    name: str, num_classes: int, image_size: int, stem: Stem, options: Mapping[str, Any], untried: bool
) -> Model:
    if stem not in ("auto", "imagenet"):
        raise ConfigError(f'model "{name}" has no stem "{stem}", only torchvision\'s networks have: use "auto"')
    module = imported.build(name, num_classes, image_size, options)
    if any(isinstance(p, UninitializedParameter) for p in module.parameters()):
        raise ConfigError(f'model "{name}" has lazy layers without shapes: give their input sizes')
    if untried:
        _check_imported(name, module, num_classes, image_size)
    return Model(name, "imagenet", num_classes, image_size, module, options=dict(options))


def _torchvision(name: str, num_classes: int, image_size: int) -> nn.Module:
    with explain_missing_packages():
        import torchvision
        from torchvision.models import get_model, list_models  # type: ignore[attr-defined]

    zoo = list_models(module=torchvision.models)
    if name not in zoo:
        known = (
            "any of torchvision's classification models, tiny_plain_W, tiny_separable_W, timm:NAME, and "
            "package.module:function"
        )
        raise ConfigError(f'unknown model "{name}"{_near_models(name, zoo)}; known are {known}')
    options: dict[str, object] = {"num_classes": num_classes}
    if name in ("googlenet", "inception_v3"):  # one output in training as well, and torchvision's own initialisation
        options |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    if name.startswith("maxvit"):
        options["input_size"] = (image_size, image_size)
    try:
        module: nn.Module = get_model(name, weights=None, **options)
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f'model "{name}" cannot be built for images of {image_size} px: {reason}') from None
    return module


def _near_models(name: str, zoo: list[str]) -> str:
    own = did_you_mean(name, [*zoo, *tiny.FAMILIES])
    if f"{imported.TIMM}{name.partition('.')[0]}" in (of_timm := imported.timm_names()):
        return f' (did you mean "{imported.TIMM}{name}"?)'
    return own or did_you_mean(imported.TIMM + name, of_timm)


def _reduce_stride(module: nn.Module, stem: BuiltStem) -> bool:
    """Remove the first factor of four of the network's down-sampling, or for "half" only its second factor of two.

    The layers that down-sample are those with a stride, in the order in which they run, grouped by the resolution of
    their input (parallel branches of a block have the same input). False if there are none that can be changed.
    """
    if type(module).__name__ in _FIXED_STRIDE:
        return False
    groups = _strided_layers(module)
    if not groups:
        return False
    first = groups[0]
    if _stride(first[0][1]) == 4:  # a single convolution down-samples by four (ConvNeXt, AlexNet)
        _set_stride(module, first, 2 if stem == "half" else 1)
        return True
    for group in groups[1:2] if stem == "half" else groups[:2]:
        _set_stride(module, group, 1)
    return True


def _strided_layers(module: nn.Module) -> list[list[tuple[str, nn.Module]]]:
    groups: dict[int, list[tuple[str, nn.Module]]] = {}
    for call in trace(module, 224).all():
        if isinstance(call.layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)) and _stride(call.layer) > 1:
            groups.setdefault(call.input_side, []).append((call.name, call.layer))
    return [groups[side] for side in sorted(groups, reverse=True)]


def _stride(layer: nn.Module) -> int:
    stride = layer.stride
    return int(stride[0] if isinstance(stride, tuple) else stride)  # type: ignore[arg-type]


def _set_stride(module: nn.Module, layers: list[tuple[str, nn.Module]], stride: int) -> None:
    for name, _ in layers:
        layer = module.get_submodule(name)
        if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
            module.set_submodule(name, nn.Identity())
        elif isinstance(layer, nn.Conv2d) and layer.in_channels == 3:
            module.set_submodule(name, _first_convolution(layer, stride))
        elif isinstance(layer, nn.Conv2d):
            layer.stride = (stride, stride)


def _first_convolution(old: nn.Conv2d, stride: int) -> nn.Conv2d:
    """A 3x3 convolution in place of the larger kernel of a strided one."""
    new = nn.Conv2d(3, old.out_channels, 3, stride, 1, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new


def _check_image_size(name: str, module: nn.Module, num_classes: int, image_size: int) -> None:
    """ConfigError if the network cannot take images of this size, from one pass on the meta device."""
    try:
        _check_logits(name, _try(meta_copy(module), image_size, "meta"), num_classes)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f'model "{name}" does not take images of {image_size} px: {reason}') from None


def _check_imported(name: str, module: nn.Module, num_classes: int, image_size: int) -> None:
    """As _check_image_size. A network that the meta device cannot run, since its code reads values, runs on the CPU."""
    try:
        logits = _try(meta_copy(module), image_size, "meta")
    except Exception:
        try:
            logits = _try(copy.deepcopy(module), image_size, "cpu")
        except ConfigError as error:
            raise ConfigError(f'model "{name}": {error}') from None
        except Exception as error:
            raise imported.code_error(name, error, f"does not take images of {image_size} px") from error
    _check_logits(name, logits, num_classes)


def _try(module: nn.Module, image_size: int, device: str) -> torch.Tensor:
    """The output for two images that are zero, in eval mode."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        logits: torch.Tensor = module.eval()(torch.zeros(2, 3, image_size, image_size, device=device))
    return logits


def _check_logits(name: str, logits: torch.Tensor, num_classes: int) -> None:
    if logits.shape != (2, num_classes):
        raise ConfigError(f'model "{name}" gives {list(logits.shape)} instead of [2, {num_classes}] logits')
    if not logits.is_floating_point():
        raise ConfigError(f'model "{name}" gives logits of {str(logits.dtype).removeprefix("torch.")}, not floats')
