"""The values that each option may have."""

from __future__ import annotations

import math
import re
from typing import Any

from udskd.config.schema import Config, flatten
from udskd.errors import ConfigError


def check(config: Config) -> None:
    """Raise ConfigError for a value out of range; the message names the option, the value and the range. The rules that
    need the methods are in udskd.methods.check."""
    values = flatten(config)
    for name, value in values.items():
        if isinstance(value, str) and not _is_text(value):
            raise ConfigError(
                f"{name} is {value!r}, a name that is not UTF-8, which the run's recipe cannot hold: rename it"
            )
        if isinstance(value, int) and value.bit_length() > 63:
            raise ConfigError(f"{name} must fit into 64 bits, got an integer of {value.bit_length()} bits")
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


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # Python keeps bytes of a command line that are not UTF-8 as lone surrogates
        return False
    return True


def _is_device(value: str) -> bool:
    return re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is not None


# The test of a value and the allowed values in words, by the options' names (a regular expression).
_RULES: dict[str, tuple[Any, str]] = {
    r"seed|data\.workers": (_finite(0), "0 or more"),
    r"data\.classes": (_finite(2), "at least 2"),
    r"data\.max_pixels": (_finite(1), "at least 1"),
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
