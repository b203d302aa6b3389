"""Stages are found in every kind of network; a FeatureExtractor returns outputs of layers and keeps none of them."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from udskd.config.schema import Stem
from udskd.errors import ConfigError
from udskd.models import zoo
from udskd.models.features import FeatureExtractor, Layer, choose_layers, find_stages, meta_copy

FEATURES = "features."
OPTION = "sdkd.student_a_layers"


def build(name: str, size: int, stem: Stem = "auto") -> nn.Module:
    """On the meta device if the network can be built there: the tests need only shapes."""
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return zoo.build(name, 10, size, stem).module


def tiny(seed: int = 0, size: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    return zoo.build("tiny_plain_4", 3, size).module


def images(rows: int = 4, size: int = 8) -> Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(1))


@contextmanager
def world_of_one(folder: Path) -> Iterator[None]:
    """A process group of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


# name, prefix of the layers, then (layer, channels, side) of each stage for images of 224 px
IMAGENET = [
    ("resnet18", "", "relu 64 112, layer1 64 56, layer2 128 28, layer3 256 14, layer4 512 7"),
    ("resnet50", "", "relu 64 112, layer1 256 56, layer2 512 28, layer3 1024 14, layer4 2048 7"),
    ("mobilenet_v2", FEATURES, "1 16 112, 3 24 56, 6 32 28, 13 96 14, 18 1280 7"),
    ("shufflenet_v2_x1_0", "", "conv1 24 112, stage2 116 28, stage3 232 14, conv5 1024 7"),
    (
        "densenet121",
        FEATURES,
        "relu0 64 112, denseblock1 256 56, denseblock2 512 28, denseblock3 1024 14, norm5 1024 7",
    ),
    ("efficientnet_b0", FEATURES, "1 16 112, 2 24 56, 3 40 28, 5 112 14, 8 1280 7"),
    ("mobilenet_v3_small", FEATURES, "0 16 112, 1 16 56, 3 24 28, 8 48 14, 12 576 7"),
    ("convnext_tiny", FEATURES, "1 96 56, 3 192 28, 5 384 14, 7 768 7"),
    ("vgg11_bn", FEATURES, "2 64 224, 6 128 112, 13 256 56, 20 512 28, 27 512 14"),
    (
        "regnet_y_400mf",
        "",
        (
            "stem 32 112, trunk_output.block1 48 56, trunk_output.block2 104 28, trunk_output.block3 208 14, "
            "trunk_output.block4 440 7"
        ),
    ),
    ("googlenet", "", "conv1 64 112, conv3 192 56, inception3b 480 28, inception4e 832 14, inception5b 1024 7"),
    (
        "inception_v3",  # unpadded convolutions change the resolution as well
        "",
        (
            "Conv2d_1a_3x3 32 111, Conv2d_2b_3x3 64 109, Conv2d_3b_1x1 80 54, Conv2d_4a_3x3 192 52, Mixed_5d 288 25, "
            "Mixed_6e 768 12, Mixed_7c 2048 5"
        ),
    ),
    ("squeezenet1_0", FEATURES, "1 96 109, 5 256 54, 10 512 27, 12 512 13"),
    ("swin_t", "", "permute 768 7"),
]


@pytest.mark.parametrize(("name", "prefix", "expected"), IMAGENET, ids=[name for name, _, _ in IMAGENET])
def test_the_stages_are_the_last_layers_of_each_resolution(name: str, prefix: str, expected: str) -> None:
    triples = (item.split() for item in expected.split(", "))
    want = [Layer(prefix + layer, int(channels), int(side)) for layer, channels, side in triples]
    assert find_stages(build(name, 224, "imagenet"), 224) == want


@pytest.mark.parametrize(("stem", "first"), [("imagenet", "relu 16"), ("half", "layer1 16"), ("small", "layer1 32")])
def test_a_stem_with_the_resolution_of_the_first_stage_is_not_a_stage(stem: Stem, first: str) -> None:
    layer = find_stages(build("resnet18", 32, stem), 32)[0]
    assert f"{layer.name} {layer.side}" == first


def test_the_identity_in_place_of_a_removed_pooling_layer_is_not_a_stage() -> None:
    assert find_stages(build("shufflenet_v2_x1_0", 32, "small"), 32)[0].name == "conv1"


@settings(max_examples=20, deadline=None)
@given(size=st.integers(8, 70), family=st.sampled_from(["tiny_plain_8", "tiny_separable_8"]))
def test_the_tiny_networks_have_three_stages_at_any_size(size: int, family: str) -> None:
    sides = [size, (size + 1) // 2, ((size + 1) // 2 + 1) // 2]
    want = [Layer(f"features.{2 * i + 2}", 8 << i, side) for i, side in enumerate(sides)]
    assert find_stages(build(family, size), size) == want


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Dropout(), nn.Flatten(), nn.Linear(channels, 3)]


def test_a_layer_that_runs_twice_is_not_a_stage() -> None:
    twice = nn.Conv2d(4, 4, 3, padding=1)
    assert find_stages(nn.Sequential(nn.Conv2d(3, 4, 1), twice, twice, *head(4)), 8) == [Layer("0", 4, 8)]


def test_stages_are_in_the_order_in_which_they_run_even_if_a_resolution_recurs() -> None:
    up = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 2, 2), nn.Upsample(scale_factor=2), *head(5))
    assert find_stages(up, 8) == [Layer("1", 5, 4), Layer("2", 5, 8)]


def test_a_network_in_double_precision_has_stages() -> None:
    assert find_stages(nn.Sequential(nn.Conv2d(3, 4, 1), *head(4)).double(), 8) == [Layer("0", 4, 8)]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_channels_and_side_are_those_of_the_outputs(name: str) -> None:
    module = zoo.build(name, 10, 40).module.eval()
    stages = find_stages(module, 40)
    with torch.no_grad():
        _, features = FeatureExtractor(module, [stage.name for stage in stages])(images(1, 40))
    assert [tuple(f.shape) for f in features] == [(1, s.channels, s.side, s.side) for s in stages]


@pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32"])
def test_a_network_of_patches_is_refused_in_one_sentence(name: str) -> None:
    words = r'^sdkd.student_a_layers is "auto", but a VisionTransformer has no stages: encoder gives [^\n]*$'
    with pytest.raises(ConfigError, match=words):
        choose_layers(build(name, 32), 32, "auto", 1, OPTION)


def test_finding_stages_does_not_change_the_network() -> None:
    module = tiny().train()
    before = copy.deepcopy(module.state_dict())
    find_stages(module, 8)
    assert module.training
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_auto_selects_the_last_stages() -> None:
    layers = choose_layers(build("resnet18", 32), 32, "auto", 3, OPTION)
    assert [layer.name for layer in layers] == ["layer2", "layer3", "layer4"]


def test_names_select_any_layers() -> None:
    layers = choose_layers(build("resnet18", 32), 32, "layer1.0.conv1, layer4", 3, OPTION)
    assert layers == (Layer("layer1.0.conv1", 64, 32), Layer("layer4", 512, 4))


@pytest.mark.parametrize(
    ("wanted", "count", "words"),
    [
        ("auto", 5, ["sdkd.stages", "1 to 4", "got 5", "layer1 (32 px), layer2 (16 px)"]),
        ("auto", 0, ["sdkd.stages", "got 0"]),
        ("layer5", 1, ['no layer "layer5"', 'did you mean "layer4"']),
        ("layer3.1.con2", 1, ['no layer "layer3.1.con2"', "did you mean"]),
        ("", 1, ['no layer ""']),
        ("layer2,", 1, ['no layer ""']),
        ("layer3,layer2", 1, ["order", '"layer3" does not run before "layer2"']),
        ("layer3,layer3", 1, ["different layers", '"layer3"']),
        ("fc", 1, ['"fc"', "maps [B, C, H, W]", "[1, 10]"]),
        ("layer1.0.relu", 1, ['"layer1.0.relu"', "once", "2 times"]),
    ],
)
def test_invalid_layers_are_refused_in_one_sentence(wanted: str, count: int, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        choose_layers(build("resnet18", 32), 32, wanted, count, OPTION)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in ["sdkd.", *words]), error.value


def test_a_layer_that_never_runs_is_refused() -> None:
    module = tiny()
    module.add_module("aside", nn.Conv2d(3, 3, 1))
    with pytest.raises(ConfigError, match=r'"aside" must run once .* 0 times'):
        choose_layers(module, 8, "aside", 1, OPTION)


def prefixes(module: nn.Module, names: Sequence[str], x: Tensor) -> list[Tensor]:
    """The outputs of some layers of a tiny network, computed by the layers up to them."""
    layers = module.get_submodule("features")
    assert isinstance(layers, nn.Sequential)
    return [layers[: int(name.rpartition(".")[2]) + 1](x) for name in names]


@pytest.mark.parametrize("names", [("features.4", "features.6"), ("features.6", "features.0", "features.3")])
def test_the_outputs_of_layers_come_in_the_order_of_their_names(names: tuple[str, ...]) -> None:
    module, x = tiny().eval(), images()
    logits, features = FeatureExtractor(module, names)(x)
    assert torch.equal(logits, module(x))
    for got, want in zip(features, prefixes(module, names, x), strict=True):
        assert torch.equal(got, want)


def test_gradients_flow_through_the_outputs_of_layers() -> None:
    module, x = tiny().eval(), images()
    _, (feature,) = FeatureExtractor(module, ["features.4"])(x)
    upstream = torch.randn_like(feature)
    weight = module.get_submodule("features.1.0").weight
    (want,) = prefixes(module, ["features.4"], x)
    expected = torch.autograd.grad(want, weight, upstream)  # type: ignore[arg-type]
    torch.testing.assert_close(torch.autograd.grad(feature, weight, upstream), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_call_keeps_no_tensor(compiled: bool) -> None:
    extractor = FeatureExtractor(tiny(), ["features.4", "features.6"])
    out = (torch.compile(extractor, backend="eager") if compiled else extractor)(images())
    kept = [weakref.ref(t) for t in (out[0], *out[1])]
    del out
    gc.collect()
    assert [ref() for ref in kept] == [None, None, None]


def test_a_call_of_the_network_itself_keeps_no_outputs() -> None:
    module, seen = tiny(), list[Tensor]()
    extractor = FeatureExtractor(module, ["features.4"])
    module.get_submodule("features.4").register_forward_hook(lambda *call: seen.append(call[2]))
    assert module(images()).shape == (4, 3)
    kept = weakref.ref(seen.pop())
    gc.collect()
    assert kept() is None
    assert len(extractor(images())[1]) == 1


def test_a_failed_call_does_not_affect_the_next_one() -> None:
    module = tiny().eval()
    extractor = FeatureExtractor(module, ["features.4"])
    with pytest.raises(RuntimeError):
        extractor(torch.randn(4, 5, 8, 8))
    assert extractor._capture.outputs is None
    assert torch.equal(extractor(images())[1][0], prefixes(module, ["features.4"], images())[0])


def test_a_deep_copy_returns_the_outputs_of_its_own_layers() -> None:
    extractor = FeatureExtractor(tiny().eval(), ["features.4"])
    twin = copy.deepcopy(extractor)
    nn.init.zeros_(extractor.module.get_submodule("features.4.0").weight)  # type: ignore[arg-type]
    (mine,), (theirs,) = extractor(images())[1], twin(images())[1]
    assert mine.unique().numel() <= mine.shape[1] < theirs.unique().numel()


def test_the_networks_weights_have_the_prefix_module() -> None:
    module = tiny()
    assert list(FeatureExtractor(module, ["features.4"]).state_dict()) == [
        f"module.{name}" for name in module.state_dict()
    ]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_network_gives_the_same_in_one_graph(backend: str) -> None:
    extractor, x = FeatureExtractor(tiny(), ["features.4", "features.6"]).eval(), images()
    compiled = torch.compile(extractor, backend=backend, fullgraph=True)
    for _ in range(2):
        logits, features = compiled(x)
        torch.testing.assert_close((logits, features), extractor(x))
    assert extractor.module(x).shape == (4, 3)


def test_a_network_in_parallel_gives_the_same_compiled_or_not(tmp_path: Path) -> None:
    extractor, x = FeatureExtractor(tiny(), ["features.4", "features.6"]).eval(), images()
    want = extractor(x)
    upstream = [torch.randn_like(t) for t in (want[0], *want[1])]

    def gradients(out: tuple[Tensor, tuple[Tensor, ...]]) -> list[Tensor | None]:
        extractor.zero_grad()
        torch.autograd.backward([out[0], *out[1]], upstream)
        return [None if p.grad is None else p.grad.clone() for p in extractor.parameters()]

    expected = gradients(extractor(x))
    with world_of_one(tmp_path):
        parallel = DistributedDataParallel(extractor)
        for forward in (parallel, torch.compile(parallel, backend="eager")):
            out = forward(x)
            torch.testing.assert_close(out, want)
            torch.testing.assert_close(gradients(out), expected)


def test_a_copy_on_the_meta_device_has_the_modules_and_none_of_the_values() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    module[2].weight = module[0].weight
    copied = meta_copy(module)
    assert isinstance(copied, nn.Sequential)
    assert {t.device.type for t in copied.state_dict().values()} == {"meta"}
    assert copied[2].weight is copied[0].weight
    assert {t.device.type for t in module.state_dict().values()} == {"cpu"}
