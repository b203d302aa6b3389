"""What stands behind a command that takes a recipe: the recipe, and the options that replace its values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from udskd.cli.options import parse
from udskd.config import recipes, rules, schema, toml
from udskd.config.schema import Config
from udskd.errors import ConfigError

C = TypeVar("C", bound=Config)
USAGE = (
    "Give a RECIPE.toml, or the name of a recipe (udskd recipes), first; the options replace its values. The loss's "
    "options also go without their prefix."
)


@dataclass(frozen=True)
class TrainCommand(Config):
    """The options of `udskd train`: a Config's, and two more."""

    resume: str | None = None
    """Continue the run in this folder after the last step it saved; "auto": the run that these options would start, if
    it was begun."""
    previous: bool = False
    """With --resume: continue from the state saved before the last one, if the last one is damaged."""


@dataclass(frozen=True)
class CacheCommand(Config):
    """The options of `udskd cache-teacher`: a Config's, and one more."""

    epochs: int | None = None
    """Epochs to cache; training.epochs by default. Those that the folder holds already stay."""


def train(argv: Sequence[str]) -> tuple[Config, Path | None, bool]:
    """The options of `udskd train`: the recipe's (or the resumed run's), as the command line changes them; the run to
    continue, if any; and whether from its state before the last."""
    command, begin = _read(argv, TrainCommand, "udskd train")
    resume = None if command.resume in (None, "auto") else Path(command.resume)
    if begin is None and resume is not None:
        if not (resume / "config.toml").is_file():
            raise ConfigError(f"{resume} is not a run folder: it has no config.toml")
        command = _changed(argv, TrainCommand, "udskd train", toml.load(resume / "config.toml"))
    elif begin is None:
        raise ConfigError("give a recipe (udskd train RECIPE.toml) or a run to continue (udskd train --resume RUN)")
    config = _config(command)
    rules.check(config)
    if command.resume == "auto":
        begun = schema.run_folder(config)
        resume = begun if (begun / "config.toml").is_file() else None
    if command.previous and resume is None:
        raise ConfigError("--previous needs --resume RUN: it says which state of that run to continue from")
    return config, resume, command.previous


def cache(argv: Sequence[str]) -> tuple[Config, Path, int | None]:
    """The options of `udskd cache-teacher`, the folder of the cache, and for how many epochs."""
    command, begin = _read(argv, CacheCommand, "udskd cache-teacher")
    if begin is None or not any(argument.partition("=")[0] == "--output" for argument in argv):
        raise ConfigError("give a recipe and a folder: udskd cache-teacher RECIPE.toml --output DIR")
    config = _config(command)
    rules.check(config)
    return config, Path(command.output or ""), command.epochs


def plain(argv: Sequence[str], prog: str) -> Config:
    """The options of a command that has no others than a recipe's; without a recipe, the defaults'."""
    config, _ = _read(argv, Config, prog)
    rules.check(config)
    return config


def _read(argv: Sequence[str], kind: type[C], prog: str) -> tuple[C, str | None]:
    """The command as a recipe and the options make it, and the recipe's name, if there is one."""
    command, positional = _parsed(argv, kind, prog, Config())
    if len(positional) > 1:
        raise ConfigError(f'unexpected argument "{positional[1]}" after the recipe {positional[0]}')
    if positional:
        return _changed(argv, kind, prog, toml.load(recipes.find(positional[0]))), positional[0]
    return command, None


def _changed(argv: Sequence[str], kind: type[C], prog: str, config: Config) -> C:
    return _parsed(argv, kind, prog, config)[0]


def _parsed(argv: Sequence[str], kind: type[C], prog: str, config: Config) -> tuple[C, list[str]]:
    known = [f.name for f in fields(kind) if f.name not in Config.__dataclass_fields__]
    return parse(kind(**_values(config)), argv, prog=f"{prog} [RECIPE.toml]", description=USAGE, known=known)


def _config(command: Config) -> Config:
    return Config(**_values(command))


def _values(config: Config) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in fields(Config)}
