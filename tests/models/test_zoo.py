"""Networks by name: stems, sizes, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from udskd.config.schema import Stem
from udskd.errors import ConfigError
from udskd.models import tiny, zoo


def early_resolution(module: nn.Module, size: int, layer: str) -> int:
    """Side of the input feature maps of a layer."""
    seen: list[int] = []
    module.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    with torch.no_grad():
        module.eval()(torch.zeros(1, 3, size, size))
    return seen[0]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer1"),
        ("mobilenet_v2", "features.3"),
        ("mobilenet_v3_small", "features.2.block.0"),
        ("shufflenet_v2_x0_5", "stage2"),
        ("regnet_x_400mf", "trunk_output.block2"),
        ("efficientnet_b0", "features.3"),
        ("densenet121", "features.denseblock1.denselayer1.norm1"),
        ("convnext_tiny", "features.1.0.block.0"),
        ("mnasnet0_5", "layers.9"),
    ],
)
def test_the_stem_sets_the_resolution_of_the_first_stage(name: str, layer: str) -> None:
    stems: dict[Stem, int] = {"imagenet": 8, "half": 16, "small": 32}
    for stem, resolution in stems.items():
        model = zoo.build(name, 5, 32, stem)
        assert (model.stem, early_resolution(model.module, 32, layer)) == (stem, resolution)


@pytest.mark.parametrize(("size", "stem"), [(64, "small"), (95, "small"), (96, "imagenet"), (224, "imagenet")])
def test_auto_is_small_below_96_pixels(size: int, stem: str) -> None:
    assert zoo.build("shufflenet_v2_x0_5", 5, size).stem == stem


def test_the_imagenet_stem_is_torchvisions_own_network() -> None:
    from torchvision.models import resnet18

    built, own = zoo.build("resnet18", 10, 64, "imagenet").module, resnet18(num_classes=10)
    shapes = [{name: tensor.shape for name, tensor in m.state_dict().items()} for m in (built, own)]
    assert shapes[0] == shapes[1]
    built.load_state_dict(own.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(built.eval()(x), own.eval()(x), rtol=0, atol=0)


def test_a_small_resnet_stem_is_a_3x3_convolution_without_pooling() -> None:
    module = zoo.build("resnet18", 10, 32, "small").module
    conv = module.get_submodule("conv1")
    assert isinstance(conv, nn.Conv2d)
    assert (conv.kernel_size, conv.stride, conv.padding, conv.bias) == ((3, 3), (1, 1), (1, 1), None)
    assert isinstance(module.get_submodule("maxpool"), nn.Identity)


def test_a_half_resnet_stem_keeps_its_convolution_without_pooling() -> None:
    module = zoo.build("resnet18", 10, 64, "half").module
    conv = module.get_submodule("conv1")
    assert isinstance(conv, nn.Conv2d)
    assert (conv.kernel_size, conv.stride) == ((7, 7), (2, 2))
    assert isinstance(module.get_submodule("maxpool"), nn.Identity)


def test_a_vision_transformer_keeps_its_patches_for_small_images() -> None:
    model = zoo.build("vit_b_16", 7, 32, "auto")
    assert model.stem == "imagenet"
    with torch.no_grad():
        assert model.module(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_googlenet_has_one_output_in_training_too() -> None:
    module = zoo.build("googlenet", 7, 64).module.train()
    assert module(torch.randn(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("name", ["tiny_plain_4", "tiny_separable_8"])
@pytest.mark.parametrize("size", [8, 13, 32])
def test_the_tiny_networks_accept_any_size_from_8(name: str, size: int) -> None:
    module = zoo.build(name, 6, size).module
    logits = module(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 6)
    logits.sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_a_separable_network_is_smaller_than_a_plain_one() -> None:
    plain, separable = (zoo.parameter_count(zoo.build(f"tiny_{k}_16", 10, 32).module) for k in ("plain", "separable"))
    assert separable < plain / 3


def test_the_description_has_model_parameters_and_stem() -> None:
    text = zoo.build("resnet18", 20, 64).describe()
    assert all(word in text for word in ("resnet18", "11.2 M", "small"))


@pytest.mark.parametrize(
    ("name", "size", "stem", "words"),
    [
        ("resnet19", 64, "auto", ['"resnet19"', 'did you mean "resnet18"']),
        ("tiny_plain", 64, "auto", ["tiny_plain_W"]),
        ("tiny_plain_0", 64, "auto", ["width"]),
        ("vit_b_16", 32, "small", ["vit_b_16", "imagenet"]),
        ("tiny_plain_4", 32, "half", ["tiny_plain_4", '"half"', '"auto"']),
        ("alexnet", 32, "imagenet", ["alexnet", "32 px"]),
        ("maxvit_t", 50, "auto", ["maxvit_t", "50 px"]),
        ("vit_b_16", 33, "auto", ["vit_b_16", "33 px"]),
        ("fcn_resnet50", 64, "auto", ["unknown model"]),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(name: str, size: int, stem: Stem, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        zoo.build(name, 5, size, stem)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), error.value


def test_tiny_names_are_recognised() -> None:
    assert [tiny.is_tiny(n) for n in ("tiny_plain_16", "tiny_separable_8", "tiny_plain_", "resnet18")] == [
        True,
        True,
        False,
        False,
    ]
