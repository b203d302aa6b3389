"""LossOptions: one object with all options of the loss, checked when it is made."""

from __future__ import annotations

import weakref
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch

import udskd
from udskd.loss.functional import DEFAULTS
from udskd.loss.options import NAMES, LossOptions, Modes, Scalars, remembered


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


def given(**changes: Any) -> tuple[Any, ...]:
    return tuple((DEFAULTS | changes)[name] for name in NAMES)


def test_equal_options_are_made_once() -> None:
    assert remembered(given(temperature=3.0)) is remembered(given(temperature=3.0))
    assert remembered(given(temperature=3.0)).scalars == make(temperature=3.0).scalars
    assert remembered(given(temperature=2.5)).scalars == make(temperature=2.5).scalars


def test_a_value_of_another_type_is_checked_although_it_is_equal() -> None:
    remembered(given(detach_peer=True, temperature=1))
    for wrong in ({"detach_peer": 1}, {"temperature": True}):
        with pytest.raises(TypeError):
            remembered(given(**wrong))


def test_an_option_that_cannot_be_a_key_is_named() -> None:
    with pytest.raises(ValueError, match="trust must be one of"):
        udskd.dual_student_loss(None, torch.zeros(2, 3), trust=["confident"])  # type: ignore[arg-type]


def test_remembered_options_keep_no_tensor_alive() -> None:
    weight = torch.tensor(0.5)
    alive = weakref.ref(weight)
    for name in ("ce_weight", "kd_weight", "peer_weight", "uncertainty"):
        remembered(given(**{name: weight}))
    del weight
    assert alive() is None


def test_the_module_checks_an_option_when_it_is_set() -> None:
    criterion = udskd.DualStudentLoss()
    with pytest.raises(ValueError, match="trust must be one of"):
        criterion.trust = "me"
    assert criterion.trust == "confident"
