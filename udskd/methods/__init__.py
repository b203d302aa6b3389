"""The methods by name: one file for each paper."""

from __future__ import annotations

from udskd.errors import ConfigError
from udskd.methods.base import COMPONENTS, Method
from udskd.methods.ce import CrossEntropy
from udskd.methods.dml import MutualLearning
from udskd.methods.kd import Distillation
from udskd.methods.udskd import UncertaintyAwareDualStudent

__all__ = ["COMPONENTS", "Method", "get", "names"]

_METHODS: dict[str, type[Method]] = {
    m.name: m for m in (CrossEntropy, Distillation, MutualLearning, UncertaintyAwareDualStudent)
}


def names() -> tuple[str, ...]:
    """Every method's name."""
    return tuple(_METHODS)


def get(name: str) -> type[Method]:
    """The method's class; ConfigError with the list of what is known otherwise."""
    if name not in _METHODS:
        from udskd.recipe import did_you_mean

        raise ConfigError(f'unknown method "{name}"{did_you_mean(name, names())}; known are {", ".join(names())}')
    return _METHODS[name]
