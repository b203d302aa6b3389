"""Where a convolutional network changes its resolution, found by looking and not by name; and its features there."""

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
# what udskd.models.zoo takes out of a stem leaves an Identity behind
_NO_STAGE = (*_GLOBAL_POOLING, nn.AvgPool2d, nn.MaxPool2d, nn.LPPool2d, nn.FractionalMaxPool2d, nn.Identity)


@dataclass(frozen=True)
class Layer:
    """A layer that gives feature maps [B, channels, side, side]."""

    name: str
    channels: int
    side: int


def find_stages(module: nn.Module, image_size: int) -> list[Layer]:
    """The last layer of each resolution along the trunk, for images [B, 3, image_size, image_size], in their order.

    The trunk is the chain of layers that run one after the other. A layer that shrinks its input by more than two,
    with resolutions between, is a chain of its own (`features`) and is looked into. Pooling is no stage, and neither
    is what comes after the global one.

    Raises ConfigError for a network without such layers, such as a vision transformer.
    """
    return _stages(module, _watch(module, image_size))


def choose_layers(module: nn.Module, image_size: int, wanted: str, count: int, option: str) -> tuple[Layer, ...]:
    """The layers that an option asks for: "auto", the last `count` stages, or names joined by commas.

    option: its full name, such as "sdkd.teacher_layers"; that of the count is "stages" in the same section.

    Raises ConfigError for fewer stages than asked for, a name that the network does not have, a layer that does not
    run exactly once or gives no feature maps, and layers that are not named in the order in which they run.
    """
    root = _watch(module, image_size)
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
    """A network that also gives away what some of its layers gave: images -> (logits, these layers' outputs).

    Whoever calls the network itself gets the logits alone, and nothing is kept of that call.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self._layers = tuple(layers)
        self._taken = _Taken()
        for name in self._layers:
            module.get_submodule(name).register_forward_hook(_Tap(name, self._taken))

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits [B, C] of images [B, 3, S, S], and the layers' outputs in the order in which they were named."""
        outputs: dict[str, Tensor] = {}
        self._taken.into = outputs
        try:
            logits = self.module(images)
        finally:
            self._taken.into = None
        return logits, tuple(outputs[name] for name in self._layers)


class _Taken:
    """Where the outputs of the call in progress go; None while somebody else calls the network."""

    def __init__(self) -> None:
        self.into: dict[str, Tensor] | None = None


class _Tap:
    """The hook of one layer; an object and not a closure, so that a deep copy's hooks belong to the copy."""

    def __init__(self, name: str, taken: _Taken) -> None:
        self._name, self._taken = name, taken

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self._taken.into is not None:
            self._taken.into[self._name] = output


@dataclass
class _Call:
    """One call of a layer, and the calls within it."""

    name: str
    layer: nn.Module
    before: int
    """Side of the feature maps that it was given; 0 if it was given something else."""
    shape: tuple[int, ...] = ()
    """Of its output; () if that is no tensor."""
    within: list[_Call] = field(default_factory=list)

    @property
    def side(self) -> int:
        """Of the feature maps that it gave; 0 if it gave something else."""
        return _side(self.shape)

    def all(self) -> Iterator[_Call]:
        """The calls within it, however deep, and itself, in the order in which they end."""
        for call in self.within:
            yield from call.all()
        yield self

    def trunk(self) -> Iterator[_Call]:
        """The calls that follow one another, up to the global pooling, looking into those that are several stages."""
        for call in self.within:
            if call._pools_all():
                return
            inner = list(call.trunk())
            several = call.before > 2 * call.side and any(call.side < part.side < call.before for part in inner)
            if call.side:
                yield from inner if several else [call]

    def _pools_all(self) -> bool:
        """Whether it is the global pooling, or a head with it inside (SqueezeNet's)."""
        inside = self.side == 1 < self.before and any(isinstance(call.layer, _GLOBAL_POOLING) for call in self.within)
        return inside or isinstance(self.layer, _GLOBAL_POOLING)


def _watch(module: nn.Module, image_size: int) -> _Call:
    """The network's call, and all within, of one forward pass in eval mode."""
    twin = copy.deepcopy(module).to("meta", torch.float32).eval()  # shapes only: costs no arithmetic
    pending = [_Call("", twin, 0)]

    def begin(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            call = _Call(name, layer, _side(_shape(inputs[0])) if inputs else 0)
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


def _stages(module: nn.Module, root: _Call) -> list[Layer]:
    """As find_stages. A sequence of patches along the trunk is what tells a transformer."""
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
        name, have = f"{option.rpartition('.')[0]}.stages", _in_words(stages)
        raise ConfigError(
            f'{name} must be from 1 to {len(stages)} where {option} is "auto", got {count}: the network has {have}'
        )
    return tuple(stages[-count:])


def _named(module: nn.Module, calls: list[_Call], stages: list[Layer], name: str, option: str) -> Layer:
    known = [known for known, _ in module.named_modules() if known]
    if name not in known:
        near = did_you_mean(name, [stage.name for stage in stages]) or did_you_mean(name, known)
        raise ConfigError(f'{option}: there is no layer "{name}"{near}; the stages are {_in_words(stages)}')
    times = _times(calls, name)
    if times != 1:
        raise ConfigError(f'{option}: layer "{name}" must run once for each image, but it runs {times} times')
    call = next(call for call in calls if call.name == name)
    if not call.side:
        came = list(call.shape) if call.shape else "something else than a tensor"
        raise ConfigError(f'{option}: layer "{name}" must give maps [B, C, H, W], but it gives {came}')
    return Layer(name, call.shape[1], call.side)


def _in_words(layers: list[Layer]) -> str:
    return ", ".join(f"{layer.name} ({layer.side} px)" for layer in layers)


def _times(calls: list[_Call], name: str) -> int:
    return sum(call.name == name for call in calls)


def _shape(output: Any) -> tuple[int, ...]:
    return tuple(output.shape) if isinstance(output, Tensor) else ()


def _side(shape: tuple[int, ...]) -> int:
    """S of [B, C, S, S], else 0. The images are square, which tells [B, S, S, C] apart (Swin)."""
    return shape[-1] if len(shape) == 4 and shape[-1] == shape[-2] else 0
