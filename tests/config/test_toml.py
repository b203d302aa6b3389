"""Recipes: strict reading, ranges, and a faithful round trip."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import udskd
from udskd import methods
from udskd.config import recipes, schema, toml
from udskd.config.schema import Config, DataConfig, LossConfig, TeacherConfig, TrainingConfig
from udskd.errors import ConfigError

weights = st.floats(0, 1e6, allow_nan=False)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


def load_text(path: Path, text: str) -> Config:
    path.write_text(text, encoding="utf-8")
    return toml.load(path)


@given(
    seed=st.integers(0, 2**40),
    output=st.none() | texts,
    root=texts,
    weight=weights,
    switch=st.booleans(),
    scale=st.tuples(st.floats(1e-6, 0.5), st.floats(0.5, 1.0)),
    lr=st.none() | st.floats(1e-12, 10, exclude_min=True),
)
def test_a_dumped_config_loads_back_equal(tmp_path_factory, seed, output, root, weight, switch, scale, lr):  # type: ignore[no-untyped-def]
    config = Config(
        seed=seed,
        output=output,
        data=DataConfig(root=root, crop_scale=scale, classes=None if switch else 7),
        teacher=TeacherConfig(lr=lr),
        loss=LossConfig(kd_weight=weight, detach_peer=switch, uncertainty="margin"),
        training=TrainingConfig(compile=switch),
    )
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    assert load_text(path, toml.dump(config)) == config


def test_keys_that_are_left_out_keep_their_defaults(tmp_path: Path) -> None:
    assert load_text(tmp_path / "r.toml", "seed = 3\n[loss]\ntemperature = 2") == replace(
        Config(), seed=3, loss=LossConfig(temperature=2.0)
    )


def test_a_whole_number_stands_for_a_float(tmp_path: Path) -> None:
    value = load_text(tmp_path / "r.toml", "[loss]\ntemperature = 2").loss.temperature
    assert type(value) is float


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sed = 1", ['unknown key "sed"', "at the top level", 'did you mean "seed"']),
        ("[lss]\ntemperature = 1", ['unknown section "lss"', 'did you mean "loss"']),
        ("[loss]\ntemprature = 1", ['"temprature"', "[loss]", 'did you mean "temperature"']),
        ("[loss]\ntemperature = 'hot'", ["loss.temperature", "a number", '"hot"']),
        ("[training]\nepochs = 1.5", ["training.epochs", "a whole number", "1.5"]),
        ("[training]\nepochs = true", ["training.epochs", "a whole number", "True"]),
        ("[training]\ncompile = 1", ["training.compile", "true or false", "1"]),
        ("[loss]\ntrust = 'confidant'", ["loss.trust", '"uncertain"', 'did you mean "confident"']),
        ("[data]\ncrop_scale = [0.5]", ["data.crop_scale", "array of 2 numbers"]),
        ("[data]\nmean = [0.5, 'a', 0.5]", ["data.mean", "a number", '"a"']),
        ("data = 3", ["[data]", "section"]),
        ("seed = x", ["not valid TOML", "line 1"]),
        ("[loss]\ntemperature = 0", ["loss.temperature", "from 1e-06 to 1e+06", "0.0"]),
        ("[loss]\nkd_weight = nan", ["loss.kd_weight", "finite"]),
        ("[loss]\nlabel_smoothing = 1.0", ["loss.label_smoothing", "below 1"]),
        ("[teacher]\nlabel_smoothing = -0.1", ["teacher.label_smoothing"]),
        ("[data]\ncrop_scale = [0.9, 0.1]", ["data.crop_scale", "smallest <= largest"]),
        ("[data]\nstd = [0.1, 0.0, 0.1]", ["data.std", "above 0"]),
        ("[training]\nepochs = 0", ["training.epochs", "at least 1"]),
        ("[student_b]\nlr = -1.0", ["student_b.lr", "above 0"]),
        ("[training]\ndevice = 'gpu'", ["training.device", '"cuda:N"', "gpu"]),
        ("seed = -1", ["seed", "0 or more", "-1"]),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "r.toml"
    with pytest.raises(ConfigError) as error:
        load_text(path, text)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in [str(path), *words]), message


def test_an_unknown_method_is_refused_by_the_check_before_a_run(tmp_path: Path) -> None:
    config = load_text(tmp_path / "r.toml", "method = 'udksd'")
    with pytest.raises(ConfigError, match=r'^unknown method "udksd" \(did you mean "udskd"\?\); known are'):
        methods.check(config)


def test_a_recipe_is_read_without_pytorch(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("method = 'udskd'\n")
    program = "import sys; from udskd.config import toml; toml.load('r.toml'); assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(Path(udskd.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no recipe at .*nowhere\.toml"):
        toml.load(tmp_path / "nowhere.toml")


def test_a_folder_is_not_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        toml.load(tmp_path)


def test_bytes_that_are_not_text_are_not_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        toml.load(tmp_path / "r.toml")


def test_every_number_has_a_range() -> None:
    """-7 is out of range for every number but the means of the channels."""
    for name, value in schema.flatten(Config()).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            with pytest.raises(ConfigError, match=name):
                methods.check(schema.with_values(Config(), {name: type(value)(-7)}))


def test_flatten_and_with_values_are_inverse() -> None:
    changed = {"seed": 5, "data.root": "x", "loss.trust": "uncertain"}
    config = schema.with_values(Config(), changed)
    assert {k: v for k, v in schema.flatten(config).items() if v != schema.flatten(Config())[k]} == changed
    assert len(schema.flatten(config)) == 3 + sum(
        len(fields(getattr(config, f.name))) for f in fields(config) if f.name not in ("method", "seed", "output")
    )


def test_a_recipe_that_comes_with_udskd_has_a_name() -> None:
    assert toml.load(recipes.find("caltech20")).method == "udskd"
    assert recipes.find("recipes/caltech20.toml") == Path("recipes/caltech20.toml")


def test_a_file_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "caltech20").write_text("seed = 7\n")
    monkeypatch.chdir(tmp_path)
    assert toml.load(recipes.find("caltech20")).seed == 7


def test_a_name_that_no_recipe_has_is_one_sentence() -> None:
    with pytest.raises(
        ConfigError, match=r'^there is no recipe "caltech2" \(did you mean "caltech20"\?\): give a TOML'
    ):
        recipes.find("caltech2")


def test_every_recipe_has_a_title() -> None:
    assert all(len(recipes.title(path)) > 20 for path in recipes.recipes().values())


def test_the_options_of_a_network_survive_a_recipe(tmp_path: Path) -> None:
    table = {"width": 8, "act": "relu", "depths": [1, 2], "norm": {"eps": 0.5, "affine": True}}
    config = schema.with_values(Config(), {"student_a.options": table})
    (tmp_path / "recipe.toml").write_text(toml.dump(config))
    assert toml.load(tmp_path / "recipe.toml") == config
    assert "[teacher.options]" not in toml.dump(config)


@pytest.mark.parametrize("text", ["options = 3", "[student_a.options]\nday = 2020-01-01", "options = [[2020-01-01]]"])
def test_options_of_a_network_that_cannot_be_recorded_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.toml").write_text(f"[student_a]\n{text}\n")
    with pytest.raises(ConfigError, match=r"student_a\.options"):
        toml.load(tmp_path / "recipe.toml")
