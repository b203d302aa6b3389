"""The stages of a convolutional network, found from the shapes of its feature maps; and its features there."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from udskd.config.suggest import did_you_mean
from udskd.errors import ConfigError

_GLOBAL_POOLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
# An Identity stands in place of a layer that udskd.models.zoo has removed from a stem.
_NO_STAGE = (*_GLOBAL_POOLING, nn.AvgPool2d, nn.MaxPool2d, nn.LPPool2d, nn.FractionalMaxPool2d, nn.Identity)


@dataclass(frozen=True)
class Layer:
    """A layer whose output is feature maps [B, channels, side, side]."""

    name: str
    channels: int
    side: int


def find_stages(module: nn.Module, image_size: int) -> list[Layer]:
    """The last layer of each resolution along the trunk, for images [B, 3, image_size, image_size], in order.

    The trunk is the chain of layers that run one after the other. A layer that down-samples by more than two and has
    resolutions in between (`features`) is replaced by the layers in it. Pooling layers and the layers after the global
    pooling are not stages.

    Raises ConfigError for a network without such layers, such as a vision transformer.
    """
    return _stages(module, trace(module, image_size))


def choose_layers(module: nn.Module, image_size: int, wanted: str, count: int, option: str) -> tuple[Layer, ...]:
    """The layers that an option selects: the last `count` stages for "auto", or those whose names it lists with commas.

    option: its full name, such as "sdkd.teacher_layers"; the option for the count is "stages" in the same section.

    Raises ConfigError for fewer stages than `count`, an unknown name, a layer that does not run exactly once or whose
    output is not feature maps, and layers that are not listed in the order in which they run.
    """
    root = trace(module, image_size)
    try:
        stages = _stages(module, root)
    except ConfigError as error:
        raise ConfigError(f'{option} is "{wanted}", but {error}') from None
    if wanted == "auto":
        return _last(stages, count, option)
    calls = list(root.all())
    layers = tuple(_named(module, calls, stages, name.strip(), option) for name in wanted.split(","))
    run = [call.name for call in calls]
    for before, after in itertools.pairwise(layers):
        if run.index(before.name) >= run.index(after.name):
            order = f'"{before.name}" does not run before "{after.name}"'
            raise ConfigError(f"{option} must name different layers in the order in which they run, but {order}")
    return layers


class FeatureExtractor(nn.Module):
    """A network that also returns the outputs of some of its layers: images -> (logits, outputs of the layers).

    A call of the wrapped network itself returns the logits alone and keeps no outputs.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self._layers = tuple(layers)
        self._capture = _Capture()
        for name in self._layers:
            module.get_submodule(name).register_forward_hook(_CaptureHook(name, self._capture))

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits [B, C] of images [B, 3, S, S], and the outputs of the layers in the order of `layers`."""
        outputs: dict[str, Tensor] = {}
        self._capture.outputs = outputs
        try:
            logits = self.module(images)
        finally:
            self._capture.outputs = None
        return logits, tuple(outputs[name] for name in self._layers)


class _Capture:
    """The outputs of the extractor's active call; None while it is not active."""

    def __init__(self) -> None:
        self.outputs: dict[str, Tensor] | None = None


class _CaptureHook:
    """The hook of one layer. A deep copy of the network has a copy of this object, while it would share a closure."""

    def __init__(self, name: str, capture: _Capture) -> None:
        self._name, self._capture = name, capture

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self._capture.outputs is not None:
            self._capture.outputs[self._name] = output


@dataclass
class LayerCall:
    """One call of a layer, and the calls within it."""

    name: str
    layer: nn.Module
    input_side: int
    """Side of the input feature maps; 0 if the input is not feature maps."""
    shape: tuple[int, ...] = ()
    """Shape of the output; () if it is not a tensor."""
    within: list[LayerCall] = field(default_factory=list)

    @property
    def side(self) -> int:
        """Side of the output feature maps; 0 if the output is not feature maps."""
        return _side(self.shape)

    def all(self) -> Iterator[LayerCall]:
        """The calls within it at any depth, and itself, in the order in which they end."""
        for call in self.within:
            yield from call.all()
        yield self

    def trunk(self) -> Iterator[LayerCall]:
        """The consecutive calls up to the global pooling; a call of several stages is replaced by the calls in it."""
        for call in self.within:
            if call._pools_globally():
                return
            inner = list(call.trunk())
            between = any(call.side < part.side < call.input_side for part in inner)
            if call.side:
                yield from inner if between and call.input_side > 2 * call.side else [call]

    def _pools_globally(self) -> bool:
        """Whether it is the global pooling, or a head that contains it (SqueezeNet's)."""
        has_pooling = any(isinstance(call.layer, _GLOBAL_POOLING) for call in self.within)
        return isinstance(self.layer, _GLOBAL_POOLING) or (has_pooling and self.side == 1 < self.input_side)


def meta_copy(module: nn.Module) -> nn.Module:
    """A copy on the meta device, where a forward pass computes shapes only. The values are not copied."""
    memo: dict[int, Any] = {id(tensor): tensor.to("meta") for tensor in module.buffers()}
    memo |= {id(p): nn.Parameter(p.to("meta"), requires_grad=p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, memo)


def trace(module: nn.Module, image_size: int) -> LayerCall:
    """The call of the network in one forward pass in eval mode, with all calls within it."""
    twin = meta_copy(module).to(torch.float32).eval()
    pending = [LayerCall("", twin, 0)]

    def begin(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            call = LayerCall(name, layer, _side(_shape(inputs[0])) if inputs else 0)
            pending[-1].within.append(call)
            pending.append(call)

        return hook

    def end(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        pending.pop().shape = _shape(output)

    for name, layer in twin.named_modules():
        if layer is not twin:
            layer.register_forward_pre_hook(begin(name))
            layer.register_forward_hook(end)
    with torch.no_grad():
        twin(torch.zeros(1, 3, image_size, image_size, device="meta"))
    return pending[0]


def _stages(module: nn.Module, root: LayerCall) -> list[Layer]:
    """See find_stages. A network with a sequence of patches along the trunk is a transformer."""
    kind, calls = type(module).__name__, list(root.all())
    for call in root.within:
        if len(call.shape) == 3:
            raise ConfigError(f"a {kind} has no stages: {call.name} gives {list(call.shape)}, not maps [B, C, H, W]")
    last: dict[int, Layer] = {}
    for call in root.trunk():
        if not isinstance(call.layer, _NO_STAGE) and _times(calls, call.name) == 1:
            last[call.side] = Layer(call.name, call.shape[1], call.side)
    if not last:
        raise ConfigError(f"a {kind} has no stages: none of its layers gives maps [B, C, H, W]")
    run = [call.name for call in calls]
    return sorted(last.values(), key=lambda layer: run.index(layer.name))


def _last(stages: list[Layer], count: int, option: str) -> tuple[Layer, ...]:
    if not 1 <= count <= len(stages):
        name, have = f"{option.rpartition('.')[0]}.stages", _listed(stages)
        raise ConfigError(
            f'{name} must be from 1 to {len(stages)} where {option} is "auto", got {count}: the network has {have}'
        )
    return tuple(stages[-count:])


def _named(module: nn.Module, calls: list[LayerCall], stages: list[Layer], name: str, option: str) -> Layer:
    known = [known for known, _ in module.named_modules() if known]
    if name not in known:
        near = did_you_mean(name, [stage.name for stage in stages]) or did_you_mean(name, known)
        raise ConfigError(f'{option}: there is no layer "{name}"{near}; the stages are {_listed(stages)}')
    times = _times(calls, name)
    if times != 1:
        raise ConfigError(f'{option}: layer "{name}" must run once for each image, but it runs {times} times')
    call = next(call for call in calls if call.name == name)
    if not call.side:
        found = list(call.shape) if call.shape else "something other than a tensor"
        raise ConfigError(f'{option}: layer "{name}" must give maps [B, C, H, W], but it gives {found}')
    return Layer(name, call.shape[1], call.side)


def _listed(layers: list[Layer]) -> str:
    return ", ".join(f"{layer.name} ({layer.side} px)" for layer in layers)


def _times(calls: list[LayerCall], name: str) -> int:
    return sum(call.name == name for call in calls)


def _shape(output: Any) -> tuple[int, ...]:
    return tuple(output.shape) if isinstance(output, Tensor) else ()


def _side(shape: tuple[int, ...]) -> int:
    """S of [B, C, S, S], else 0. The images are square, so that [B, S, S, C] (Swin) gives 0 too."""
    return shape[-1] if len(shape) == 4 and shape[-1] == shape[-2] else 0
