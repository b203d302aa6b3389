"""Recipes: strict conversion from TOML to Config and back. Keys, types and choices are those of schema.py."""

from __future__ import annotations

import sys
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tomli_w

from udskd.config.rules import check, convert, shown
from udskd.config.schema import Config, value_type
from udskd.config.suggest import did_you_mean
from udskd.errors import ConfigError
from udskd.files import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

T = TypeVar("T")
_MAX_BYTES = 2**20
"""Of a recipe, which has a few kilobytes."""


def load(path: str | Path) -> Config:
    """Read a recipe. Keys that are left out keep their defaults.

    Raises ConfigError for a missing file, TOML that does not parse, an unknown section or key, a value of the wrong
    type, and every value out of range (udskd.config.rules).
    """
    try:
        table = tomllib.loads(read_text(path, _MAX_BYTES))
    except FileNotFoundError:
        raise ConfigError(f"there is no recipe at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    except (RecursionError, ValueError) as error:  # arrays in arrays, an integer of thousands of digits
        reason = (
            "its values are nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"
        )
        raise ConfigError(f"{path} cannot be read as a recipe: {reason}") from None
    try:
        config = _from_table(Config, table, "")
        check(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return config


def dump(config: Config) -> str:
    """TOML text that load() reads back to an equal Config. Options that are None, their default, are left out."""
    return tomli_w.dumps(_without_none(asdict(config)))


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None and value != {}
    }


def _from_table(cls: type[T], table: dict[str, Any], section: str) -> T:
    hints = get_type_hints(cls)
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{section}.{key}" if section else key
        if key not in names:
            kind = "section" if isinstance(value, dict) else "key"
            place = f"in section [{section}]" if section else "at the top level"
            raise ConfigError(f'unknown {kind} "{key}" {place}{did_you_mean(key, sorted(names))}')
        if is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{name} is a section: write [{name}] and its keys below, not {name} = {shown(value)}"
                )
            values[key] = _from_table(hints[key], value, name)
        else:
            values[key] = convert(name, value, value_type(hints[key]))
    return cls(**values)


def parse_table(name: str, text: str) -> dict[str, Any]:
    """An inline table, such as "{depth = 3}". ConfigError if it is none."""
    try:
        table = tomllib.loads(f"value = {text.strip()}")
    except (RecursionError, ValueError):
        table = {}
    if table.keys() != {"value"} or not isinstance(table["value"], dict):
        raise ConfigError(f'{name} must be an inline table, such as "{{depth = 3}}", got {shown(text)}')
    found: dict[str, Any] = convert(name, table["value"], dict[str, Any])
    return found
