"""Wrong-mass clipping of probabilities: against its definition, row by row."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from udskd.methods.masses import clip_wrong_mass

ROWS = 24
SEEDS = st.integers(0, 2**31)
CLASSES = st.integers(2, 9)
SPREADS = st.sampled_from([0.3, 2.0, 10.0])


def random_p(generator: torch.Generator, classes: int, spread: float) -> Tensor:
    return (spread * torch.randn(ROWS, classes, dtype=torch.float64, generator=generator)).softmax(-1)


def clipped_row(p: list[float], label: int, eta: float, margin: float) -> list[float]:
    top = p.index(max(p))
    delta = 0.0 if top == label else min(eta * p[top], margin * (p[top] - p[label]))
    return [x + delta * (c == label) - delta * (c == top) for c, x in enumerate(p)]


@given(
    seed=SEEDS,
    classes=CLASSES,
    spread=SPREADS,
    eta=st.floats(0, 1, exclude_min=True, exclude_max=True),
    margin=st.floats(0, 1, exclude_min=True),
)
def test_clipping_is_its_definition(seed: int, classes: int, spread: float, eta: float, margin: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = random_p(generator, classes, spread)
    label = torch.randint(0, classes, (ROWS,), generator=generator)
    q = clip_wrong_mass(p, label, eta=eta, margin=margin)
    want = [clipped_row(row, y, eta, margin) for row, y in zip(p.tolist(), label.tolist(), strict=True)]
    torch.testing.assert_close(q, torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-15)


@given(seed=SEEDS, classes=CLASSES, spread=SPREADS, eta=st.floats(1e-6, 1 - 1e-9), margin=st.floats(1e-6, 1))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_clipping_moves_mass_between_two_classes_and_makes_none(
    dtype: torch.dtype, seed: int, classes: int, spread: float, eta: float, margin: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = random_p(generator, classes, spread).to(dtype)
    label = torch.randint(0, classes, (ROWS,), generator=generator)
    q = clip_wrong_mass(p, label, eta=eta, margin=margin)
    assert q.dtype == dtype
    assert (q >= 0).all()
    torch.testing.assert_close(q.double().sum(-1), p.double().sum(-1), rtol=0, atol=2 * torch.finfo(dtype).eps)
    others = torch.ones_like(p, dtype=torch.bool).scatter(-1, label[:, None], False)
    others.scatter_(-1, p.argmax(-1, keepdim=True), False)
    assert torch.equal(q[others], p[others])
    right = p.gather(-1, label[:, None])[:, 0] == p.amax(-1)
    assert torch.equal(q[right], p[right])


def test_with_the_papers_numbers_the_label_ends_at_least_as_probable_as_the_class_that_gave() -> None:
    p = random_p(torch.Generator().manual_seed(0), 9, 2.0)
    for label in range(9):
        q = clip_wrong_mass(p, torch.full((ROWS,), label), eta=0.5, margin=0.7)
        assert (q[:, label] >= q.gather(-1, p.argmax(-1, keepdim=True))[:, 0]).all()


def test_a_third_class_may_come_out_as_the_most_probable() -> None:
    p = torch.tensor([0.35, 0.34, 0.01, 0.30])
    q = clip_wrong_mass(p, torch.tensor(2), eta=0.5, margin=0.7)
    torch.testing.assert_close(q, torch.tensor([0.175, 0.34, 0.185, 0.30]))
    assert q.argmax() == 1


def test_the_whole_gap_and_nearly_the_whole_probability_are_an_exchange() -> None:
    p = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    q = clip_wrong_mass(p, torch.tensor([2, 0]), eta=1 - 1e-12, margin=1.0)
    torch.testing.assert_close(q, torch.tensor([[0.1, 0.3, 0.6], [0.7, 0.2, 0.1]]))


def test_the_class_that_gives_keeps_its_last_share_in_single_precision() -> None:
    q = clip_wrong_mass(torch.tensor([1.0, 0.0]), torch.tensor(1), eta=1 - 1e-10, margin=1.0)
    torch.testing.assert_close(q, torch.tensor([1e-10, 1.0]), rtol=1e-4, atol=0)


def test_half_precision_is_computed_in_single_and_rounded_once() -> None:
    p = random_p(torch.Generator().manual_seed(4), 5, 2.0).bfloat16()
    label = torch.arange(ROWS) % 5
    q = clip_wrong_mass(p, label, eta=0.3, margin=0.7)
    assert torch.equal(q, clip_wrong_mass(p.float(), label, eta=0.3, margin=0.7).bfloat16())


def test_rows_without_a_label_or_a_distribution_are_left_alone() -> None:
    p = torch.tensor([[0.7, 0.3], [0.7, 0.3], [math.nan, math.nan]])
    q = clip_wrong_mass(p, torch.tensor([-100, 2, 1]), eta=0.5, margin=0.7)
    torch.testing.assert_close(q, p, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("eta", "margin"), [(0.0, 0.5), (1.0, 0.5), (math.nan, 0.5), (0.5, 0.0), (0.5, 1.1)])
def test_shares_out_of_range_are_refused_by_name(eta: float, margin: float) -> None:
    name = "margin" if eta == 0.5 else "eta"
    with pytest.raises(ValueError, match=f"^{name} must be above 0 and "):
        clip_wrong_mass(torch.ones(1, 2) / 2, torch.zeros(1, dtype=torch.int64), eta=eta, margin=margin)


def test_labels_of_another_type_or_shape_are_refused() -> None:
    for label in (torch.ones(2), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"^label must be int64 of shape \[2\], got "):
            clip_wrong_mass(torch.ones(2, 2) / 2, label, eta=0.5, margin=0.7)


def test_any_leading_dimensions_and_no_rows_will_do() -> None:
    p, label = random_p(torch.Generator().manual_seed(5), 4, 2.0), torch.arange(ROWS) % 4
    q = clip_wrong_mass(p, label, eta=0.5, margin=0.7)
    again = clip_wrong_mass(p.view(2, 3, ROWS // 6, 4), label.view(2, 3, ROWS // 6), eta=0.5, margin=0.7)
    assert torch.equal(again.view(ROWS, 4), q)
    assert torch.equal(clip_wrong_mass(p[0], label[0], eta=0.5, margin=0.7), q[0])
    assert clip_wrong_mass(p[:0], label[:0], eta=0.5, margin=0.7).shape == (0, 4)


def test_no_value_is_looked_at_where_that_would_have_to_wait() -> None:
    p, label = torch.empty(3, 4, device="meta"), torch.empty(3, dtype=torch.int64, device="meta")
    q = clip_wrong_mass(p, label, eta=0.5, margin=0.7)  # to look at a meta tensor raises
    assert q.shape == (3, 4)
