"""Options of the command line replace the values of a recipe."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from udskd.cli.options import parse
from udskd.config import toml
from udskd.config.schema import Config, LossConfig, flatten, with_values


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
        ("--normalize-weights TRUE", {"loss.normalize_weights": True}),
        ("--detach_peer false", {"loss.detach_peer": False}),
        ("--training.channels_last False", {"training.channels_last": False}),
        ("--data.crop_scale 0.2 0.9", {"data.crop_scale": (0.2, 0.9)}),
        ("--output runs/a --method kd", {"output": "runs/a", "method": "kd"}),
        ("--data.mean -0.5 0 1e-3", {"data.mean": (-0.5, 0.0, 0.001)}),
    ],
)
def test_an_option_replaces_the_recipes_value(argv: str, changed: dict[str, object]) -> None:
    assert parse(argv.split()) == with_values(Config(), changed)


def test_options_that_are_not_given_keep_the_recipes_values(tmp_path: Path) -> None:
    recipe = Config(seed=9, loss=LossConfig(temperature=3.0, detach_peer=False))
    (tmp_path / "recipe.toml").write_text(toml.dump(recipe))
    options = [str(tmp_path / "recipe.toml"), "--kd_weight", "0.5"]
    assert parse(options) == with_values(recipe, {"loss.kd_weight": 0.5})


@pytest.mark.parametrize("switch", ["--training.compile", "--training.cuda-graph", "--normalize-weights"])
def test_a_switch_does_not_take_the_recipe_as_its_value(tmp_path: Path, switch: str) -> None:
    (tmp_path / "recipe.toml").write_text("seed = 9\n")
    recipe = str(tmp_path / "recipe.toml")
    assert parse([switch, recipe]) == parse([recipe, f"{switch}=true"])


def test_an_empty_name_is_no_recipe() -> None:
    with pytest.raises(click.ClickException, match="cannot be read"):
        parse([""])


def test_none_removes_a_value_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[data]\nclasses = 3\n[student_a]\nlr = 0.5\n")
    options = [str(tmp_path / "recipe.toml"), "--data.classes", "None", "--student_a.lr", "None"]
    assert parse(options) == Config()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--temprature 2", ["'--temprature'", "Did you mean", "'--temperature'"]),
        ("--epochs 2", ["'--epochs'", "Did you mean", "'--training.epochs'"]),
        ("--lr 2", ["'--lr'", "'--student_a.lr'", "'--teacher.lr'", "'--training.lr'"]),
        ("--data.rot x", ["Did you mean", "'--data.root'"]),
        ("--seed x", ["--seed", "integer", "'x'"]),
        ("--temperature warm", ["--loss.temperature", "float", "'warm'"]),
        ("--temperature -1", ["loss.temperature", "from 1e-06 to 1e+06"]),
        ("--trust me", ["--loss.trust", "confident", "uncertain"]),
        ("--training.epochs", ["--training.epochs", "requires an argument"]),
        ("--training.compile=maybe", ["--training.compile", "'true', 'false'", "'maybe'"]),
        ("--training.compile=", ["--training.compile", "'true', 'false'", "''"]),
        (f"--seed 1{'0' * 400}", ["seed must fit into 64 bits"]),
        ("--data.crop_scale 0.5", ["--data.crop_scale", "requires 2 arguments"]),
        ("recipe.toml stray", ["unexpected extra argument", "stray"]),
    ],
)
def test_a_mistake_is_one_sentence(argv: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.ClickException) as error:
        parse(argv.split())
    message = error.value.format_message()
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert capsys.readouterr() == ("", "")


def test_help_lists_every_option_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.exceptions.Exit):
        parse(["--help"])
    text = capsys.readouterr().out
    assert all(f"--{name} " in text or f"--{name}," in text for name in flatten(Config()))
    assert "Passes over the training images" in text
