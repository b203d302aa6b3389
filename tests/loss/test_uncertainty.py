"""Certainty weights: known values, bounds and meaning."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from udskd.loss.uncertainty import certainty, entropy, normalize


def logits_of(*p: float) -> torch.Tensor:
    return torch.tensor([p], dtype=torch.float64).log()


def test_entropy_of_a_coin_is_log_two() -> None:
    assert entropy(logits_of(0.5, 0.5)).item() == pytest.approx(math.log(2))


def test_entropy_at_a_temperature_is_that_of_the_tempered_distribution() -> None:
    tempered = torch.softmax(logits_of(0.7, 0.2, 0.1) / 3, -1)
    assert entropy(logits_of(0.7, 0.2, 0.1), 3.0).item() == pytest.approx(-(tempered * tempered.log()).sum().item())


@pytest.mark.parametrize("kind", ["entropy", "max_prob", "margin"])
def test_certain_is_one(kind: str) -> None:
    assert certainty(logits_of(1.0, 0.0, 0.0), kind).item() == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "value"), [("entropy", 0.0), ("max_prob", 0.25), ("margin", 0.0)])
def test_uniform_is_the_least(kind: str, value: float) -> None:
    assert certainty(torch.zeros(1, 4, dtype=torch.float64), kind).item() == pytest.approx(value, abs=1e-12)  # type: ignore[arg-type]


def test_margin_is_the_gap_between_the_first_two() -> None:
    assert certainty(logits_of(0.2, 0.7, 0.1), "margin").item() == pytest.approx(0.5)


def test_the_papers_weight() -> None:
    p = (0.7, 0.2, 0.1)
    h = -sum(x * math.log(x) for x in p)
    assert certainty(logits_of(*p)).item() == pytest.approx(1 - h / math.log(3))


@given(
    st.lists(st.floats(-80, 80, width=32), min_size=2, max_size=40),
    st.sampled_from(["entropy", "max_prob", "margin", "none"]),
)
def test_weights_stay_between_zero_and_one(values: list[float], kind: str) -> None:
    weight = certainty(torch.tensor([values], dtype=torch.float32), kind)  # type: ignore[arg-type]
    assert 0 <= weight.item() <= 1


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=20))
def test_normalized_weights_have_mean_one(values: list[float]) -> None:
    weight = torch.tensor(values, dtype=torch.float64)
    assert normalize(weight, torch.ones(len(values), dtype=torch.bool)).mean().item() == pytest.approx(1)


def test_rows_that_do_not_count_do_not_move_the_mean() -> None:
    weight = torch.tensor([1.0, 3.0, 100.0, math.nan])
    out = normalize(weight, torch.tensor([True, True, False, True]))
    assert out[:2].tolist() == [0.5, 1.5]
    assert out[3].isnan()
