"""The command line's options over a recipe's values."""

from __future__ import annotations

import pytest

from udskd.cli.options import parse_overrides
from udskd.config.schema import Config, LossConfig, with_values
from udskd.errors import ConfigError


@pytest.mark.parametrize(
    ("argv", "changed"),
    [
        ("--seed 3", {"seed": 3}),
        ("--seed=3", {"seed": 3}),
        ("--data.root /x --training.epochs 7", {"data.root": "/x", "training.epochs": 7}),
        ("--teacher.checkpoint f.safetensors", {"teacher.checkpoint": "f.safetensors"}),
        ("--temperature 2", {"loss.temperature": 2.0}),
        ("--temperature=2", {"loss.temperature": 2.0}),
        ("--loss.temperature 2", {"loss.temperature": 2.0}),
        ("--peer-weight 0", {"loss.peer_weight": 0.0}),
        ("--peer_weight 0 --uncertainty none", {"loss.peer_weight": 0.0, "loss.uncertainty": "none"}),
        ("--normalize_weights --seed 1", {"loss.normalize_weights": True, "seed": 1}),
        ("--normalize_weights", {"loss.normalize_weights": True}),
        ("--detach_peer false", {"loss.detach_peer": False}),
        ("--training.channels_last False", {"training.channels_last": False}),
        ("--data.crop_scale 0.2 0.9", {"data.crop_scale": (0.2, 0.9)}),
        ("--output runs/a --method kd", {"output": "runs/a", "method": "kd"}),
    ],
)
def test_an_option_replaces_the_recipes_value(argv: str, changed: dict[str, object]) -> None:
    assert parse_overrides(Config(), argv.split()) == with_values(Config(), changed)


def test_options_that_are_not_given_keep_the_recipes_values() -> None:
    recipe = Config(seed=9, loss=LossConfig(temperature=3.0, detach_peer=False))
    assert parse_overrides(recipe, ["--kd_weight", "0.5"]) == with_values(recipe, {"loss.kd_weight": 0.5})


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--temprature 2", ["--temprature", 'did you mean "--temperature"']),
        ("--epochs 2", ["--epochs", 'did you mean "--training.epochs"']),
        ("--data.rot x", ['did you mean "--data.root"']),
        ("--seed x", ["--seed", "whole number", "'x'"]),
        ("--temperature warm", ["--loss.temperature", "number", "'warm'"]),
        ("--temperature -1", ["loss.temperature", "from 1e-06 to 1e+06"]),
        ("--trust me", ["--loss.trust", "confident", "uncertain"]),
        ("--training.epochs", ["--training.epochs", "Missing value"]),
        ("stray", ['"stray"']),
    ],
)
def test_a_mistake_is_one_sentence(argv: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse_overrides(Config(), argv.split())
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert capsys.readouterr() == ("", "")


def test_help_lists_every_option_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_overrides(Config(), ["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(word in text for word in ("--data.root", "--loss.temperature", "Passes over the training images"))
