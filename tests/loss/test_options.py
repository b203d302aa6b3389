"""LossOptions: one object with all options of the loss, checked when it is made."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch

import udskd
from udskd.loss.functional import DEFAULTS
from udskd.loss.options import NAMES, LossOptions, Modes, Scalars


def make(**changes: Any) -> LossOptions:
    return LossOptions(**{**DEFAULTS, **changes})


def test_the_function_has_these_options() -> None:
    assert set(NAMES) == set(DEFAULTS)


def test_options_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        make().temperature = 2.0  # type: ignore[misc]


def test_numbers_are_packed_by_name() -> None:
    options = make(
        temperature=2.0, kd_weight=0.25, label_smoothing=0.125, trust="uncertain", uncertainty="margin", reduction="sum"
    )
    assert options.scalars == [*Scalars(kd_weight=0.25, temperature=2.0, peer_temperature=2.0, label_smoothing=0.125)]
    assert options.modes == [*Modes(uncertainty=2, trust_uncertain=1, reduction=1)]


def test_a_tensor_leaves_its_number_neutral() -> None:
    weight, certainty = torch.tensor(0.5), torch.rand(3)
    options = make(ce_weight=weight, uncertainty=certainty)
    assert Scalars(*options.scalars).ce_weight == 1.0
    assert list(options.tensors()) == ["ce_weight", "uncertainty"]
    assert options.tensors()["ce_weight"] is weight


def test_replaced_options_are_checked() -> None:
    options = make()
    assert options.replaced({}) is options
    assert options.replaced({"temperature": 3.0}).scalars[3:5] == [3.0, 3.0]
    with pytest.raises(ValueError, match="temperature must be from"):
        options.replaced({"temperature": 0.0})


def test_the_module_checks_an_option_when_it_is_set() -> None:
    criterion = udskd.DualStudentLoss()
    with pytest.raises(ValueError, match="trust must be one of"):
        criterion.trust = "me"
    assert criterion.trust == "confident"
