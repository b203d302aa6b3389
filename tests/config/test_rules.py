"""Absurd values: each ends in one sentence that names the option, from a recipe, the command line, and Python."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest

from udskd.cli.options import parse
from udskd.config import rules, schema, toml
from udskd.config.schema import Config
from udskd.errors import ConfigError

HUGE = 10**5000
OBJECTS = (None, 1, -1, 1.5, HUGE, -HUGE, float("nan"), float("inf"), True, "x", "", b"x", [], {}, (1, 2, 3), object())


def refusal(action: Callable[[], object]) -> str | None:
    """The sentence with which an action refuses a value, None if it takes it. Any other error is a failure."""
    try:
        action()
    except (ConfigError, click.ClickException) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        return text if "\n" not in text else pytest.fail(text)
    return None


def test_any_object_in_python_is_taken_or_refused_in_one_sentence() -> None:
    for name, value in itertools.product(schema.flatten(Config()), OBJECTS):
        config = schema.with_values(Config(), {name: value})
        text = refusal(partial(rules.check, config))
        if text is None:
            assert schema.flatten(toml_round_trip(config)) == schema.flatten(config)
        else:
            assert name in text
            assert len(text) < 500


def toml_round_trip(config: Config) -> Config:
    table = toml.tomllib.loads(toml.dump(config))
    return toml._from_table(Config, table, "")


@pytest.mark.parametrize("value", [{}, None, 3, Config()])
def test_a_section_that_is_something_else_is_one_sentence(value: Any) -> None:
    with pytest.raises(ConfigError, match="data must be a DataConfig"):
        rules.check(schema.with_values(Config(), {"data": value}))
    with pytest.raises(ConfigError, match="must be a Config"):
        rules.check(value if not isinstance(value, Config) else value.data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("data.workers", 10**12), ("data.image_size", 10**9), ("training.lr", 10**400), ("data.mixup", 1e-320)],
        *[("data.eval_crop", 1e-320), ("data.std", (1e-300, 1.0, 1.0)), ("data.mean", (1e300, 0.0, 0.0))],
        *[("data.root", "a\0b"), ("output", "a\0b")],
        *[("training.device", "cuda:" + "9" * 20), ("training.device", "cuda:-1"), ("training.device", "mps")],
        *[("training.device", "cuda:\u0663"), ("training.device", "cuda:01"), ("training.device", "meta")],
        *[pytest.param("seed", HUGE, id="seed"), pytest.param("loss.temperature", HUGE, id="temperature")],
    ],
)
def test_an_absurd_value_is_refused(name: str, value: Any) -> None:
    text = refusal(partial(rules.check, schema.with_values(Config(), {name: value})))
    assert str(text).startswith(f"{name} ")


@pytest.mark.parametrize(
    "text",
    [
        "seed = " + "1" * 5000,
        "seed = 0x" + "f" * 5000,
        "[data]\nmean = [0x" + "f" * 5000 + ", 1, 1]",
        "seed = " + "[" * 5000 + "]" * 5000,
        "seed = " + "[" * 200 + "]" * 200,
        "seed" + ".a" * 5000 + " = 1",
        "seed = " + "{a = " * 300 + "1" + "}" * 300,
        "a" * 5000 + " = 1",
        "[training]\nlr = 1" + "0" * 400,
        "[training]\nlr = 1e400",
        'output = "a\\u0000b"',
    ],
    ids=[str(number) for number in range(11)],
)
def test_a_recipe_of_absurd_values_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    assert str(path) in str(refusal(partial(toml.load, path)))


@pytest.mark.parametrize("value", ["1" * 5000, "1e400", "nan", "inf", "-1", "x", "1e-400", "9" * 25])
def test_an_absurd_value_on_the_command_line_is_taken_or_refused(value: str) -> None:
    for name, default in schema.flatten(Config()).items():
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            refusal(partial(parse, [f"--{name}={value}"]))
    assert refusal(partial(parse, [f"--training.lr={value}"])) or float(value) > 0
