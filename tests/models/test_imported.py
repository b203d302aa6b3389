"""Networks of timm and of the user's own code: built, tried, and refused in one sentence."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from udskd.errors import ConfigError, NetworkCodeError
from udskd.models import zoo
from udskd.training.networks.inference import fold

OWN = "tests.models.helpers.own_networks:"
TIMM = {
    "timm:mobilenetv3_small_050": {},
    "timm:vit_tiny_patch16_224": {"patch_size": 8, "depth": 2},
    "timm:convnext_atto": {"drop_path_rate": 0.1},
}


def logits_of(module: nn.Module, size: int = 32) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = module.eval()(torch.zeros(2, 3, size, size))
    return logits


@pytest.mark.parametrize(("name", "options"), TIMM.items())
def test_a_timm_network_takes_the_image_size_and_its_own_options(name: str, options: dict[str, Any]) -> None:
    model = zoo.build(name, 5, 32, options=options)
    assert logits_of(model.module).shape == (2, 5)
    assert (model.name, model.options) == (name, options)


def test_a_tag_of_timm_is_part_of_the_name() -> None:
    assert zoo.build("timm:mobilenetv3_small_050.lamb_in1k", 5, 32).name == "timm:mobilenetv3_small_050.lamb_in1k"


@pytest.mark.parametrize("output", ["tensor", "tuple", "dict", "object"])
@pytest.mark.parametrize("name", ["small_net", "SmallNet", "any_arguments"])
def test_the_logits_are_taken_out_of_every_kind_of_output(name: str, output: str) -> None:
    module = zoo.build(OWN + name, 5, 32, options={"width": 8, "output": output}).module
    assert logits_of(copy.deepcopy(module)).shape == (2, 5)
    assert module.get_parameter("head.weight").shape == (5, 16)


@pytest.mark.parametrize("output", ["tensor", "tuple", "dict"])
def test_a_folded_network_gives_the_same_logits(output: str) -> None:
    module = zoo.build(OWN + "small_net", 5, 32, options={"output": output}).module.eval()
    folded = fold(copy.deepcopy(module))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    torch.testing.assert_close(logits_of(folded), logits_of(module))


@pytest.mark.parametrize(("name", "output"), [("ValueReader", "tensor"), ("SmallNet", "object")])
def test_a_network_that_cannot_be_traced_is_not_folded(name: str, output: str) -> None:
    module = zoo.build(OWN + name, 5, 32, options={"output": output}).module.eval()
    assert fold(module) is module


def test_a_module_is_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, num_classes))"
    (tmp_path / "nets_of_this_test.py").write_text(f"from torch import nn\ndef net(num_classes): {body}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/usr/lib"])
    assert logits_of(zoo.build("nets_of_this_test:net", 5, 8).module, 8).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("timm:resnet5", {}, ['"resnet5"', "did you mean", "timm:resnet"]),
        ("timm:resnet18.no_such_tag", {}, ["no_such_tag"]),
        ("timm:convnext_atto", {"drop_path": 0.1}, ['"drop_path"', 'did you mean "drop_path_rate"']),
        ("timm:vit_tiny_patch16_224", {"img_size": 8}, ["vit_tiny_patch16_224", "8"]),
        ("timm:convnext_atto", {"num_classes": 3}, ['"num_classes"']),
        ("vit_tiny_patch16_224", {}, ['did you mean "timm:vit_tiny_patch16_224"']),
        ("resnet18", {"width": 3}, ["resnet18", "takes no options", "width"]),
        ("no_such_module_anywhere:net", {}, ['there is no module "no_such_module_anywhere"']),
        (OWN + "smal_net", {}, ['"smal_net"', 'did you mean "small_net"', "own_networks.py"]),
        (OWN + "NUMBER", {}, ["must be a function or a class, got a int"]),
        (OWN[:-1] + ".py:", {}, ["must be written as package.module:function"]),
        (OWN + "small_net", {"widht": 3}, ['"widht"', 'did you mean "width"']),
        (OWN + "without_classes", {}, ["num_classes", "it has only width"]),
        (OWN + "needs_depth", {}, ["needs the argument depth"]),
        (OWN + "ten_classes", {}, ["[2, 10] instead of [2, 5] logits"]),
        (OWN + "features_only", {}, ["[2, 5, 30, 30] instead of [2, 5] logits"]),
        (OWN + "not_a_module", {}, ["must return a torch.nn.Module, got a Tensor"]),
        (OWN + "lazy", {}, ["lazy layers"]),
        (OWN + "WithoutLogits", {}, ["a dict of 'scores'", '"logits"']),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(name: str, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        zoo.build(name, 5, 32, options=options)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("name", "words", "line"),
    [
        ("failing", ["cannot be built", "ZeroDivisionError: no network today"], 'raise ZeroDivisionError("no network'),
        ("RefusesSmallImages", ["does not take images of 32 px", "images must have 64 px"], "raise ValueError("),
    ],
)
def test_an_error_of_the_networks_own_code_is_shown_with_its_place(name: str, words: list[str], line: str) -> None:
    with pytest.raises(NetworkCodeError) as error:
        zoo.build(OWN + name, 5, 32)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in [*words, "own_networks.py, line"]), error.value
    assert line in error.value.details
    assert "udskd/models" not in error.value.details


def test_a_stem_is_torchvisions_alone() -> None:
    with pytest.raises(ConfigError, match=r'has no stem "small"'):
        zoo.build("timm:mobilenetv3_small_050", 5, 32, "small")
