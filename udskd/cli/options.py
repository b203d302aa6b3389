"""The command line's options: the recipe's keys by dotted names, the loss's also by their own (--temperature 2)."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import TypeVar

from udskd.config.rules import check
from udskd.config.schema import Config, LossConfig, flatten
from udskd.config.suggest import did_you_mean
from udskd.errors import ConfigError

T = TypeVar("T", bound=Config)
_SHORT = {f.name: f"loss.{f.name}" for f in fields(LossConfig)}


def parse_overrides(config: Config, argv: Sequence[str]) -> Config:
    """The config with the options of argv in place of its own.

    Raises ConfigError for an unknown option (with "did you mean"), a value of the wrong type or out of range,
    anything positional.
    """
    config, rest = parse(config, argv, prog="udskd train")
    if rest:
        raise ConfigError(f'unexpected argument "{rest[0]}"')
    check(config)
    return config


def parse(
    default: T, argv: Sequence[str], *, prog: str, description: str = "", known: Sequence[str] = ()
) -> tuple[T, list[str]]:
    """A dataclass filled from argv, and the positional arguments that it has no place for. `--help` prints and exits.

    `known` are names that "did you mean" may offer in addition to the Config's.
    """
    import tyro

    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            value, rest = tyro.cli(
                type(default),
                args=[_spelled_out(argument) for argument in _explicit_booleans(argv, default)],
                default=default,
                return_unknown_args=True,
                use_underscores=True,
                prog=prog,
                description=description,
                config=(tyro.conf.FlagConversionOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_one_sentence(stderr.getvalue())) from None
    for argument in rest:
        if argument.startswith("-"):
            name = argument.partition("=")[0].lstrip("-").replace("-", "_")
            near = did_you_mean(name, [*flatten(Config()), *_SHORT, *known], prefix="--")
            raise ConfigError(f'unknown option "{argument}"{near}')
    return value, rest


def _spelled_out(argument: str) -> str:
    """--temperature as --loss.temperature."""
    match = re.fullmatch(r"--([\w-]+)(=.*)?", argument, re.DOTALL)
    name = match and match[1].replace("-", "_")
    return f"--{_SHORT[name]}{match[2] or ''}" if match and name in _SHORT else argument


def _explicit_booleans(argv: Sequence[str], default: Config) -> list[str]:
    """--training.compile alone, and TOML's true and false, as the True and False that tyro takes."""
    switches = {name for name, value in flatten(default).items() if isinstance(value, bool)}
    arguments: list[str] = []
    for position, argument in enumerate(argv):
        previous = _name(argv[position - 1]) if position else ""
        if previous in switches and argument.lower() in ("true", "false"):
            argument = argument.capitalize()
        arguments.append(argument)
        following = argv[position + 1] if position + 1 < len(argv) else "--"
        if _name(argument) in switches and "=" not in argument and following.lower() not in ("true", "false"):
            arguments.append("True")
    return arguments


def _name(argument: str) -> str:
    name = argument.removeprefix("--").replace("-", "_") if argument.startswith("--") else ""
    return _SHORT.get(name, name)


def _one_sentence(report: str) -> str:
    """What tyro says in a box, as one line: its first paragraph."""
    lines: list[str] = []
    for line in report.strip().splitlines()[1:]:  # the first is a title
        text = re.sub(r"^[│|+╭╰]|[│|+╮╯]$", "", line.strip()).strip()
        if re.search(r"[─-]{4}", text):  # a rule
            if lines:
                break
        elif text:
            lines.append(text)
    sentence = " ".join(lines) or "the options cannot be understood"
    wrong = re.match(
        r"Error parsing (--\S+): (invalid literal for int|could not convert string to float).*?: (.*)", sentence
    )
    if wrong:  # Python's words, not the user's
        return f"{wrong[1]} must be a {'whole ' if 'int' in wrong[2] else ''}number, got {wrong[3]}"
    return sentence
