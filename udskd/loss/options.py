"""The options of the loss as one object, which is checked when it is made and packed for the compiled operators."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor

from udskd.loss.checks import FLOAT32_MAX, printed, refuse_weight

TEMPERATURES = (1e-6, 1e6)
"""Beyond these, exponentials and the factor T^2 leave the range of float32."""
UNCERTAINTIES = ("entropy", "max_prob", "margin", "none")
TRUSTS = ("confident", "uncertain")
REDUCTIONS = ("mean", "sum", "none")
COEFFICIENTS = ("ce_weight", "kd_weight", "peer_weight")


class Scalars(NamedTuple):
    """The operators' argument `scalars`, in the order of csrc/loss/options.h."""

    ce_weight: float = 1.0
    kd_weight: float = 0.9
    peer_weight: float = 0.5
    temperature: float = 4.0
    peer_temperature: float = 4.0
    uncertainty_temperature: float = 1.0
    label_smoothing: float = 0.0


class Modes(NamedTuple):
    """The operators' argument `modes`, in the order of csrc/loss/options.h."""

    uncertainty: int = 0
    """Index in UNCERTAINTIES. Without effect if the operator is given a tensor of certainties."""
    trust_uncertain: int = 0
    normalize_weights: int = 0
    detach_peer: int = 1
    ignore_index: int = -100
    reduction: int = 0
    """Index in REDUCTIONS."""


@dataclass(frozen=True, eq=False)
class LossOptions:
    """The options of udskd.dual_student_loss, which documents them.

    Raises TypeError and ValueError for options that are wrong for every batch: neither the shape, device and values of
    a tensor nor the backend are checked.
    """

    temperature: float
    peer_temperature: float | None
    ce_weight: float | Tensor
    kd_weight: float | Tensor
    peer_weight: float | Tensor
    uncertainty: str | Tensor
    trust: str
    normalize_weights: bool
    uncertainty_temperature: float
    detach_peer: bool
    label_smoothing: float
    ignore_index: int
    reduction: str
    backend: str

    scalars: list[float] = field(init=False)
    modes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._check()
        # lists, because PyTorch takes longer to read a named tuple
        object.__setattr__(self, "scalars", [*self._scalars()])
        object.__setattr__(self, "modes", [*self._modes()])

    def _check(self) -> None:
        check_temperature("temperature", self.temperature)
        if self.peer_temperature is not None:
            check_temperature("peer_temperature", self.peer_temperature)
        check_temperature("uncertainty_temperature", self.uncertainty_temperature)
        for name, x in zip(COEFFICIENTS, self.coefficients):  # noqa: B905
            check_coefficient(name, x)
        if not isinstance(self.uncertainty, Tensor):
            check_choice("uncertainty", self.uncertainty, UNCERTAINTIES)
        check_choice("trust", self.trust, TRUSTS)
        check_smoothing("label_smoothing", self.label_smoothing)
        check_flag("normalize_weights", self.normalize_weights)
        check_flag("detach_peer", self.detach_peer)
        check_label("ignore_index", self.ignore_index)
        check_choice("reduction", self.reduction, REDUCTIONS)

    def _scalars(self) -> Scalars:
        ce, kd, peer = [1.0 if isinstance(x, Tensor) else x for x in self.coefficients]
        return Scalars(ce, kd, peer, self.temperature, self.tau, self.uncertainty_temperature, self.label_smoothing)

    def _modes(self) -> Modes:
        return Modes(
            UNCERTAINTIES.index("none" if isinstance(self.uncertainty, Tensor) else self.uncertainty),
            self.trust == "uncertain",
            self.normalize_weights,
            self.detach_peer,
            self.ignore_index,
            REDUCTIONS.index(self.reduction),
        )

    @property
    def tau(self) -> float:
        """peer_temperature, or temperature in its place."""
        return self.temperature if self.peer_temperature is None else self.peer_temperature

    @property
    def coefficients(self) -> tuple[float | Tensor, float | Tensor, float | Tensor]:
        """The weights of the terms, in the order of COEFFICIENTS."""
        return self.ce_weight, self.kd_weight, self.peer_weight

    def tensors(self) -> dict[str, Tensor]:
        """The options that are tensors, by name."""
        return {name: x for name in (*COEFFICIENTS, "uncertainty") if isinstance(x := getattr(self, name), Tensor)}

    def replaced(self, changes: Mapping[str, Any]) -> LossOptions:
        """The options with some of them changed; these very options without a change."""
        return LossOptions(**{name: getattr(self, name) for name in NAMES} | dict(changes)) if changes else self


NAMES = tuple(x.name for x in fields(LossOptions) if x.init)

_made = lru_cache(maxsize=64, typed=True)(LossOptions)  # typed, because 1 == True, and a flag must be a bool


def remembered(given: tuple[Any, ...]) -> LossOptions:
    """LossOptions(*given), checked and packed once for equal values. Not for torch.compile, which ignores caches.

    Options with a tensor are made each time: a cache would keep the tensor alive.
    """
    _, _, ce, kd, peer, uncertainty, *_ = given
    learned = isinstance(ce, Tensor) or isinstance(kd, Tensor) or isinstance(peer, Tensor)
    if learned or isinstance(uncertainty, Tensor) or not _is_hashable(given):
        return LossOptions(*given)
    return _made(*given)


def _is_hashable(x: object) -> bool:
    """False for an option that is wrong, such as a list; LossOptions then names it."""
    try:
        hash(x)
    except TypeError:
        return False
    return True


def check_number(name: str, x: object, expected: str = "a number") -> None:
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        raise TypeError(f"{name} must be {expected}, got {_type(x)}")


def check_coefficient(name: str, x: object) -> None:
    if isinstance(x, Tensor):
        return
    check_number(name, x, "a number or a tensor")
    if not 0 <= x <= FLOAT32_MAX:  # type: ignore[operator]  # also refuses NaN
        refuse_weight(name, x)  # type: ignore[arg-type]


def check_temperature(name: str, x: object) -> None:
    check_number(name, x)
    lowest, highest = TEMPERATURES
    if not lowest <= x <= highest:  # type: ignore[operator]  # also refuses NaN
        raise ValueError(f"{name} must be from {lowest:g} to {highest:g}, got {printed(x)}")


def check_smoothing(name: str, x: object) -> None:
    check_number(name, x)
    if not 0 <= x < 1:  # type: ignore[operator]  # also refuses NaN
        raise ValueError(f"{name} must be in [0, 1), got {printed(x)}")


def check_flag(name: str, x: object) -> None:
    if not isinstance(x, bool):
        raise TypeError(f"{name} must be True or False, got {_type(x)}")


def check_label(name: str, x: object) -> None:
    if isinstance(x, bool) or not isinstance(x, int):
        raise TypeError(f"{name} must be an integer, got {_type(x)}")
    if not -(2**63) <= x < 2**63:
        raise ValueError(f"{name} must fit into int64, got {printed(x)}")


def check_choice(name: str, x: object, known: Sequence[str]) -> None:
    if not isinstance(x, str) or x not in known:
        found = reprlib.repr(x) if isinstance(x, str) else _type(x)
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {found}")


def _type(x: object) -> str:
    """The name of a type, such as "str" or "numpy.float32"."""
    kind = type(x)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
