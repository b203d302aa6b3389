"""The values that each option may have."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from udskd.config.schema import Config, flatten, value_type
from udskd.config.suggest import did_you_mean
from udskd.errors import ConfigError

MAX_WORKERS = 1024
MAX_IMAGE_SIZE = 8192
"""Pixels. A batch of 12 such images fills 2.4 GB as bytes."""


def check(config: Config) -> None:
    """Raise ConfigError for a value of the wrong type or out of range; the message names the option, the value and the
    range. The rules that need the methods are in udskd.methods.check."""
    _check_sections(config)
    values = flatten(config)
    for name, value in values.items():
        _check_type(name, value)
        if isinstance(value, str):
            _check_text(name, value)
        if isinstance(value, int) and value.bit_length() > 63:
            raise ConfigError(f"{name} must fit into 64 bits, got {shown(value)}")
    for pattern, (test, expected) in _RULES.items():
        for name, value in values.items():
            if re.fullmatch(pattern, name) and value is not None and not test(value):
                raise ConfigError(f"{name} must be {expected}, got {shown(value)}")
    if not 0 < config.data.crop_scale[0] <= config.data.crop_scale[1] <= 1:
        raise ConfigError(
            f"data.crop_scale must be two numbers 0 < smallest <= largest <= 1, got {config.data.crop_scale}"
        )


def convert(name: str, value: Any, kind: Any) -> Any:
    """A value as the type of an option: an integer is accepted for a float, a list for a tuple. ConfigError if it is
    something else, or an integer that no float can hold."""
    if get_origin(kind) is Literal and isinstance(value, str) and value in get_args(kind):
        return value
    if get_origin(kind) is tuple and isinstance(value, (list, tuple)) and len(value) == len(get_args(kind)):
        return tuple(convert(name, v, k) for v, k in zip(value, get_args(kind), strict=True))
    if get_origin(kind) is dict and isinstance(value, dict):
        _check_plain(name, value)
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _to_float(name, value)
    if kind in (int, str) and isinstance(value, kind) and not isinstance(value, bool):
        return value
    if kind is bool and isinstance(value, bool):
        return value
    found = f'"{shown(value)[1:-1]}"' if isinstance(value, str) else f"{shown(value)} ({type(value).__name__})"
    near = did_you_mean(value, get_args(kind)) if isinstance(value, str) and get_origin(kind) is Literal else ""
    raise ConfigError(f"{name} must be {_in_words(kind)}, got {found}{near}")


def _check_plain(name: str, value: Any) -> None:
    """ConfigError unless TOML and JSON can both hold the value, and it equals itself after reading."""
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _check_text(name, str(key))
            _check_plain(f"{name}.{key}", inner)
    elif isinstance(value, str):
        _check_text(name, value)
    elif not (
        (isinstance(value, int) and value.bit_length() < 64) or (isinstance(value, float) and math.isfinite(value))
    ):
        expected = "a string, a finite number, true or false, or an array or a table of these"
        raise ConfigError(f"{name} must be {expected}, got {shown(value)}")


def _to_float(name: str, value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(f"{name} must be a number below 1.8e308, got {shown(value)}") from None


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return f"an array of {len(get_args(hint))} numbers"
    if get_origin(hint) is dict:
        return "a table of keyword arguments"
    return {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}[hint]


class _Shortened(reprlib.Repr):
    """repr() of any value in a few words: that of a long integer or a deeply nested array would raise an error."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 100, 100

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 128 else f"an integer of {x.bit_length()} bits"


shown = _Shortened().repr
"""A value as messages show it."""


def _check_sections(config: Config) -> None:
    for section, default in vars(Config()).items() if isinstance(config, Config) else [("config", Config())]:
        value = getattr(config, section, config)
        if is_dataclass(default) and not isinstance(value, type(default)):
            raise ConfigError(f"{section} must be a {type(default).__name__}, got {shown(value)}")
        if not is_dataclass(default):
            _check_type(section, value)


def _check_type(name: str, value: Any) -> None:
    """ConfigError unless the value is of the option's type. A recipe has been converted; a Config in Python may hold
    anything."""
    hint = _TYPES[name]
    kind = value_type(hint)
    if value is None and kind is not hint:
        return
    if isinstance(value, list) and get_origin(kind) is tuple:
        raise ConfigError(f"{name} must be {_in_words(kind)} in a tuple, got a list")
    convert(name, value, kind)


def _check_text(name: str, value: str) -> None:
    if not _is_text(value):
        raise ConfigError(
            f"{name} is {shown(value)}, a name that is not UTF-8, which the run's recipe cannot hold: rename it"
        )
    if "\0" in value:
        raise ConfigError(f"{name} is {shown(value)}: no name can hold a zero byte")


def _types() -> Iterator[tuple[str, Any]]:
    for section, hint in get_type_hints(Config).items():
        if is_dataclass(hint):
            yield from ((f"{section}.{name}", kind) for name, kind in get_type_hints(hint).items())
        else:
            yield section, hint


_TYPES = dict(_types())
"""The annotation of each option by its dotted name."""


def _finite(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Any:
    def test(value: float) -> bool:
        above = value > low if open_low else value >= low
        return math.isfinite(value) and above and (value < high if open_high else value <= high)

    return test


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # Python keeps bytes of a command line that are not UTF-8 as lone surrogates
        return False
    return True


def _is_mixup(alpha: float) -> bool:
    return alpha == 0 or 1e-3 <= alpha <= 1e3


def _is_device(value: str) -> bool:
    return re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,8}))?", value) is not None


# The test of a value and the allowed values in words, by the options' names (a regular expression).
_RULES: dict[str, tuple[Any, str]] = {
    r"seed": (_finite(0), "0 or more"),
    r"data\.workers": (_finite(0, MAX_WORKERS), f"from 0 to {MAX_WORKERS}"),
    r"data\.classes": (_finite(2), "at least 2"),
    r"data\.max_pixels": (_finite(1), "at least 1"),
    r"data\.image_size": (_finite(8, MAX_IMAGE_SIZE), f"from 8 to {MAX_IMAGE_SIZE}"),
    r"data\.mixup": (_is_mixup, "0, or from 0.001 to 1000"),
    r"data\.(flip|max_unreadable)": (_finite(0, 1), "between 0 and 1"),
    r"data\.eval_crop": (_finite(0.01, 1), "from 0.01 to 1"),
    r"data\.std": (lambda std: all(1e-6 <= s <= 1e6 for s in std), "three numbers above 0, from 1e-06 to 1e+06"),
    r"data\.mean": (lambda mean: all(abs(m) <= 1e6 for m in mean), "three numbers from -1e+06 to 1e+06"),
    r"loss\.(\w+_)?temperature": (_finite(1e-6, 1e6), "from 1e-06 to 1e+06"),
    r"(\w+)\.label_smoothing": (_finite(0, 1, open_high=True), "at least 0 and below 1"),
    r"loss\.\w+_weight|(\w+)\.weight_decay": (_finite(0), "a finite number, 0 or more"),
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
