"""Recipes: TOML to Config and back, strictly. Keys, types and choices come from the dataclasses in config.py."""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
import types
from collections.abc import Iterable
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from udskd.config import Config
from udskd.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

T = TypeVar("T")


def load(path: str | Path) -> Config:
    """Read a recipe. Keys that are left out keep their defaults.

    Raises ConfigError for a missing file, TOML that does not parse, an unknown section or key, a value of the wrong
    type, and everything that check() refuses.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no recipe at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    try:
        config = _from_table(Config, table, "")
        check(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return config


def dump(config: Config) -> str:
    """TOML text that load() reads back to an equal Config. Options that are None, their default, are left out."""
    values = asdict(config)
    lines = [
        f"{key} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict) and value is not None
    ]
    for section, table in values.items():
        if isinstance(table, dict):
            lines += ["", f"[{section}]"]
            lines += [f"{key} = {_toml(value)}" for key, value in table.items() if value is not None]
    return "\n".join(lines) + "\n"


def flatten(config: Config) -> dict[str, Any]:
    """Every option by its dotted name, as on the command line: {"method": ..., "data.root": ..., ...}."""
    flat: dict[str, Any] = {}
    for key, value in asdict(config).items():
        flat.update(
            {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
        )
    return flat


def run_folder(config: Config) -> Path:
    """Where a run of these options goes: its output, or runs/METHOD-DATA-seedN."""
    return Path(config.output or f"runs/{config.method}-{Path(config.data.root).resolve().name}-seed{config.seed}")


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """The config with some options, given by their dotted names, replaced."""
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        config = replace(
            config, **{section: replace(getattr(config, section), **{key: value})} if section else {key: value}
        )
    return config


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """' (did you mean "..."?)' for the closest known name, written with a prefix; '' when none is close."""
    known = list(known)
    close = [k for k in reversed(known) if k.rpartition(".")[2] == name.rpartition(".")[2]]  # epochs: training.epochs
    close = close or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f' (did you mean "{prefix}{close[0]}"?)' if close else ""


def check(config: Config) -> None:
    """Refuse values out of range, naming the option, what came, and what is allowed."""
    from udskd import methods

    methods.build(config)
    methods.teacher_stage(config)
    values = flatten(config)
    for pattern, (test, expected) in _RULES.items():
        for name, value in values.items():
            if re.fullmatch(pattern, name) and value is not None and not test(value):
                raise ConfigError(f"{name} must be {expected}, got {value!r}")
    if not 0 < config.data.crop_scale[0] <= config.data.crop_scale[1] <= 1:
        raise ConfigError(
            f"data.crop_scale must be two numbers 0 < smallest <= largest <= 1, got {config.data.crop_scale}"
        )


def _finite(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Any:
    def test(value: float) -> bool:
        above = value > low if open_low else value >= low
        return math.isfinite(value) and above and (value < high if open_high else value <= high)

    return test


def _is_device(value: str) -> bool:
    return re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is not None


# Option name (a regular expression) -> test, what is allowed in words.
_RULES: dict[str, tuple[Any, str]] = {
    r"seed|data\.workers": (_finite(0), "0 or more"),
    r"data\.classes": (_finite(2), "at least 2"),
    r"data\.image_size": (_finite(8), "at least 8"),
    r"data\.(flip|max_unreadable)": (_finite(0, 1), "between 0 and 1"),
    r"data\.eval_crop": (_finite(0, 1, open_low=True), "above 0 and at most 1"),
    r"data\.std": (lambda std: all(math.isfinite(s) and s > 0 for s in std), "three numbers above 0"),
    r"data\.mean": (lambda mean: all(math.isfinite(m) for m in mean), "three finite numbers"),
    r"loss\.(\w+_)?temperature": (_finite(1e-6, 1e6), "from 1e-06 to 1e+06"),
    r"(\w+)\.label_smoothing": (_finite(0, 1, open_high=True), "at least 0 and below 1"),
    r"loss\.\w+_weight|data\.mixup|(\w+)\.weight_decay": (_finite(0), "a finite number, 0 or more"),
    r"training\.(warmup_epochs|clip_grad_norm|save_every)": (_finite(0), "a finite number, 0 or more"),
    r"training\.(momentum|ema_decay)": (_finite(0, 1, open_high=True), "at least 0 and below 1"),
    r"training\.(epochs|batch_size|accumulate|eval_every)|teacher\.epochs": (_finite(1), "at least 1"),
    r"(sdkd|dkd)\.ramp_epochs|sdkd\.feature_weight|dkd\.(alpha|beta)": (_finite(0), "a finite number, 0 or more"),
    r"cud\.(gamma|entropy_bonus)|akd\.closeness": (_finite(0), "a finite number, 0 or more"),
    r"cud\.stage_lr|akd\.kappa": (_finite(0, open_low=True), "a finite number above 0"),
    r"cud\.(stage_epochs|max_weight)|variance\.responses|sdkd\.stages|akd\.width": (_finite(1), "at least 1"),
    r"cud\.eta|variance\.dropout": (_finite(0, 1, open_low=True, open_high=True), "above 0 and below 1"),
    r"cud\.margin": (_finite(0, 1, open_low=True), "above 0 and at most 1"),
    r"cud\.(label|wrong)_mass|akd\.decay": (_finite(0, 1, open_high=True), "at least 0 and below 1"),
    r"akd\.alpha_(min|max)": (_finite(0, 1), "between 0 and 1"),
    r"(\w+)\.lr": (_finite(0, open_low=True), "a finite number above 0"),
    r"training\.device": (_is_device, '"auto", "cpu", "cuda" or "cuda:N"'),
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
                raise ConfigError(f"{name} is a section: write [{name}] and its keys below, not {name} = {value!r}")
            values[key] = _from_table(hints[key], value, name)
        else:
            values[key] = _convert(name, value, hints[key])
    return cls(**values)


def _convert(name: str, value: Any, hint: Any) -> Any:
    """The TOML value as the option's type; a whole number may stand for a float, an array for a tuple."""
    options = [
        h for h in (get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)) if h is not type(None)
    ]
    for option in options:
        if get_origin(option) is Literal and value in get_args(option) and isinstance(value, str):
            return value
        if get_origin(option) is tuple and isinstance(value, list) and len(value) == len(get_args(option)):
            return tuple(_convert(name, v, h) for v, h in zip(value, get_args(option), strict=True))
        if option is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if option in (int, str, bool) and type(value) is option:
            return value
    came = f"{value!r} ({type(value).__name__})" if not isinstance(value, str) else f'"{value}"'
    near = (
        did_you_mean(value, get_args(options[0]))
        if isinstance(value, str) and get_origin(options[0]) is Literal
        else ""
    )
    raise ConfigError(f"{name} must be {_in_words(options[0])}, got {came}{near}")


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return f"an array of {len(get_args(hint))} numbers"
    return {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}[hint]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):  # JSON's escapes are TOML's, but TOML also forbids DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
