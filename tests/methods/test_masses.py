"""Bounded masses: compared with an independent solver and with other distributions that keep the bounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from udskd.methods.masses import bound_logits, bound_masses

ROWS = 24
SEEDS = st.integers(0, 2**31)
CLASSES = st.integers(2, 9)
SPREADS = st.sampled_from([0.3, 2.0, 10.0])


def random_p(generator: torch.Generator, classes: int, spread: float) -> Tensor:
    return (spread * torch.randn(ROWS, classes, dtype=torch.float64, generator=generator)).softmax(-1)


def random_masks(generator: torch.Generator, p: Tensor) -> tuple[Tensor, Tensor]:
    """Every class in near, in wrong, or in neither; near is never empty, nor is everything wrong."""
    group = torch.randint(0, 3, p.shape, generator=generator)
    group.scatter_(-1, torch.randint(0, p.shape[-1], (ROWS, 1), generator=generator), 0)
    return group == 0, group == 1


def mass(q: Tensor, group: Tensor) -> Tensor:
    return (q * group).sum(-1)


def divergence(q: Tensor, p: Tensor) -> Tensor:
    return torch.where(q > 0, q * (q / p).log(), 0.0).sum(-1)


def root(residual: Callable[[Tensor], Tensor]) -> Tensor:
    """By bisection, where a falling residual [ROWS] crosses 0, or 0 where it never is above."""
    lower, upper = torch.zeros(ROWS, dtype=torch.float64), torch.full((ROWS,), 90.0, dtype=torch.float64)
    for _ in range(60):
        middle = (lower + upper) / 2
        above = residual(middle) > 0
        lower, upper = torch.where(above, middle, lower), torch.where(above, upper, middle)
    return upper


def solved_by_its_dual(p: Tensor, near: Tensor, wrong: Tensor, least: float, most: float) -> Tensor:
    """q = p exp(μ near - ν wrong) / Z with the multipliers found numerically, one inside the other."""

    def q(mu: Tensor, nu: Tensor) -> Tensor:
        return (p.log() + mu[:, None] * near - nu[:, None] * wrong).softmax(-1)

    def best_mu(nu: Tensor) -> Tensor:
        return root(lambda mu: least - mass(q(mu, nu), near))

    nu = root(lambda nu: mass(q(best_mu(nu), nu), wrong) - most)
    return q(best_mu(nu), nu)


@pytest.mark.parametrize(("least", "most"), [(0.5, 0.3), (0.2, 0.05), (0.7, 0.3), (0.0, 0.1), (0.4, 1.0), (0.9, 0.6)])
def test_bounding_agrees_with_an_independent_solver(least: float, most: float) -> None:
    generator = torch.Generator().manual_seed(1)
    p = random_p(generator, 5, 2.0)
    near, wrong = random_masks(generator, p)
    q = bound_masses(p, near, wrong, least=least, most=most)
    torch.testing.assert_close(q, solved_by_its_dual(p, near, wrong, least, most), rtol=0, atol=1e-8)


def shared(generator: torch.Generator, group: Tensor) -> Tensor:
    """A random distribution on the group's classes; 0 everywhere where there are none."""
    weight = group * torch.rand(group.shape, dtype=torch.float64, generator=generator) ** 4
    return weight / weight.sum(-1, keepdim=True).clamp(min=1e-300)


def feasible(generator: torch.Generator, near: Tensor, wrong: Tensor, least: float, most: float) -> Tensor:
    """Any distribution that keeps both bounds."""
    rest = ~(near | wrong)
    in_near, in_wrong = torch.rand(2, ROWS, 1, dtype=torch.float64, generator=generator)
    in_near = least + (1 - least) * in_near
    in_wrong = (1 - in_near).clamp(max=most) * in_wrong * wrong.any(-1, keepdim=True)
    in_near = torch.where(rest.any(-1, keepdim=True), in_near, 1 - in_wrong)
    in_rest = (1 - in_near - in_wrong) * rest.any(-1, keepdim=True)
    return sum(m * shared(generator, g) for m, g in ((in_near, near), (in_wrong, wrong), (in_rest, rest)))  # type: ignore[return-value]


@given(seed=SEEDS, classes=CLASSES, spread=SPREADS, least=st.floats(0, 1), most=st.floats(0, 1))
def test_no_distribution_within_the_bounds_is_closer(
    seed: int, classes: int, spread: float, least: float, most: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = random_p(generator, classes, spread)
    near, wrong = random_masks(generator, p)
    q = bound_masses(p, near, wrong, least=least, most=most)
    torch.testing.assert_close(q.sum(-1), torch.ones(ROWS, dtype=torch.float64))
    assert (q >= 0).all()
    assert (mass(q, near) >= least - 1e-12).all()
    assert (mass(q, wrong) <= most + 1e-12).all()
    for step in (1e-4, 1e-2, 0.3, 1.0):
        other = (1 - step) * q + step * feasible(generator, near, wrong, least, most)
        assert (mass(other, near) >= least - 1e-9).all()
        assert (mass(other, wrong) <= most + 1e-9).all()
        assert (divergence(other, p) >= divergence(q, p) - 1e-9).all()


@given(seed=SEEDS, least=st.floats(0, 1), most=st.floats(0, 1))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_within_both_bounds_keep_every_bit(dtype: torch.dtype, seed: int, least: float, most: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = random_p(generator, 5, 2.0).to(dtype)
    near, wrong = random_masks(generator, p)
    q = bound_masses(p, near, wrong, least=least, most=most)
    kept = (mass(p.double(), near) > least + 0.02) & (mass(p.double(), wrong) < most - 0.02)
    assert q.dtype == dtype
    assert torch.equal(q[kept], p[kept])


def test_bounding_keeps_the_ratios_within_each_group() -> None:
    generator = torch.Generator().manual_seed(3)
    p = random_p(generator, 7, 2.0)
    near, wrong = random_masks(generator, p)
    q = bound_masses(p, near, wrong, least=0.6, most=0.1)
    assert (q != p).any(-1).sum() > ROWS / 2
    for group in (near, wrong, ~(near | wrong)):
        factor = torch.where(group, q / p, torch.nan)
        spread = factor.nan_to_num(-math.inf).amax(-1) / factor.nan_to_num(math.inf).amin(-1)
        torch.testing.assert_close(spread[group.any(-1)], torch.ones(int(group.any(-1).sum()), dtype=torch.float64))


@pytest.mark.parametrize(
    ("p", "near", "wrong"),
    [
        ([0.0, 0.9, 0.1, 0.0], [1, 0, 0, 1], [0, 1, 0, 0]),  # near has nothing
        ([0.0, 1.0, 0.0, 0.0], [1, 0, 0, 0], [0, 1, 0, 0]),  # near and the rest have nothing
        ([0.0, 0.5, 0.5, 0.0], [1, 0, 0, 1], [0, 1, 1, 0]),  # nor is there a rest
        ([0.3, 0.7, 0.0, 0.0], [1, 0, 0, 0], [0, 1, 0, 0]),  # the rest has nothing, and needs nothing
        ([0.3, 0.0, 0.7, 0.0], [1, 0, 0, 0], [0, 1, 0, 1]),  # wrong has nothing
    ],
)
def test_a_group_without_probability_is_filled_as_in_the_limit(
    p: list[float], near: list[int], wrong: list[int]
) -> None:
    exact, tiny = torch.tensor(p, dtype=torch.float64), 1e-10
    masks = torch.tensor(near).bool(), torch.tensor(wrong).bool()
    q = bound_masses(exact, *masks, least=0.5, most=0.3)
    torch.testing.assert_close(q, bound_masses((exact + tiny) / (1 + 4 * tiny), *masks, least=0.5, most=0.3))
    assert mass(q, masks[0]) >= 0.5 - 1e-12
    assert mass(q, masks[1]) <= 0.3 + 1e-12


def test_all_probability_may_be_asked_for_or_forbidden() -> None:
    p = torch.tensor([0.2, 0.5, 0.3])
    near, wrong = torch.tensor([True, False, False]), torch.tensor([False, True, False])
    torch.testing.assert_close(bound_masses(p, near, wrong, least=1, most=1), torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(bound_masses(p, near, wrong, least=0, most=0), torch.tensor([0.4, 0.0, 0.6]))
    assert torch.equal(bound_masses(p, near & False, near | ~near, least=0, most=1), p)


def test_bounds_that_no_distribution_meets_are_refused() -> None:
    p = torch.full((2, 3), 1 / 3)
    first, none = torch.tensor([[True, False, False]] * 2), torch.zeros(2, 3, dtype=torch.bool)
    every = torch.tensor([[False, False, False], [True, True, True]])
    with pytest.raises(ValueError, match=r"^near must not be empty where least is above 0, .* in row 0$"):
        bound_masses(p, none, first, least=0.1, most=0.5)
    with pytest.raises(ValueError, match=r"^wrong must not hold every class where most is below 1, .* in row 1$"):
        bound_masses(p, none, every, least=0.0, most=0.5)
    with pytest.raises(ValueError, match=r"^near and wrong must not have a class in common in row 1$"):
        bound_masses(p, first, every, least=0.1, most=0.5)


@pytest.mark.parametrize(("name", "share"), [(n, s) for n in ("least", "most") for s in (-0.1, 1.1, math.nan)])
def test_bounds_out_of_range_are_refused_by_name(name: str, share: float) -> None:
    p, near = torch.ones(1, 2) / 2, torch.tensor([[True, False]])
    with pytest.raises(ValueError, match=rf"^{name} must be in \[0, 1\], got "):
        bound_masses(p, near, ~near, **{"least": 0.5, "most": 0.5, name: share})


def test_masks_of_another_type_or_shape_are_refused_by_name() -> None:
    p, near = torch.ones(1, 2) / 2, torch.tensor([[True, False]])
    with pytest.raises(ValueError, match=r"^near must be bool of p's shape \[1, 2\], got torch.int64 of shape"):
        bound_masses(p, near.long(), ~near, least=0.5, most=0.5)
    with pytest.raises(ValueError, match=r"^wrong must be bool .* got torch.bool of shape \[2\]$"):
        bound_masses(p, near, ~near[0], least=0.5, most=0.5)


def test_a_row_of_nan_stays_so_and_spoils_no_other() -> None:
    p = torch.tensor([[math.nan] * 3, [0.2, 0.5, 0.3]])
    near, wrong = torch.tensor([[True, False, False]] * 2), torch.tensor([[False, True, False]] * 2)
    q = bound_masses(p, near, wrong, least=0.5, most=0.3)
    assert q[0].isnan().all()
    torch.testing.assert_close(q[1], torch.tensor([0.5, 0.5 * 0.5 / 0.8 - 0.0125, 0.1875 + 0.0125]))


def test_logits_far_apart_are_bounded_exactly_in_single_precision() -> None:
    logits = torch.tensor([[1e4, -1e4, -1e4 - 1.0], [1e4, -1e4, -1e4 + 1.0]])
    near, wrong = torch.tensor([[False, True, False]] * 2), torch.tensor([[True, False, False]] * 2)
    q = bound_logits(logits, near, wrong, least=0.5, most=0.3).exp()
    share = 0.7 / (1 + math.exp(-1))  # near is e times as likely as the rest; where it is less likely, its bound binds
    torch.testing.assert_close(q, torch.tensor([[0.3, share, 0.7 - share], [0.3, 0.5, 0.2]]))


def test_where_nears_bound_implies_wrongs_the_rest_keeps_its_ratio_to_wrong() -> None:
    near, wrong = torch.tensor([True, False, False]), torch.tensor([False, True, False])
    logits = torch.tensor([0.0, 50.0, 0.0], dtype=torch.float64)
    log_q = bound_logits(logits, near, wrong, least=0.7, most=0.3)  # 1 - 0.7 > 0.3 in floating point
    torch.testing.assert_close(log_q.exp()[:2], torch.tensor([0.7, 0.3], dtype=torch.float64))
    torch.testing.assert_close(log_q[1] - log_q[2], logits[1] - logits[2])


def test_a_mass_that_is_rounded_to_above_one_is_not_taken_for_too_much() -> None:
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    near = torch.arange(100).expand(64, 100) == 0
    assert (logits.softmax(-1).sum(-1) > 1).any()
    assert torch.equal(bound_logits(logits - 30 * near, near, ~near, least=0.0, most=1.0), logits - 30 * near)


def test_logits_that_are_no_distribution_are_given_back() -> None:
    logits = torch.tensor([[-math.inf] * 2, [math.inf, 0.0], [math.nan, 0.0]])
    near = torch.tensor([[False, True]] * 3)
    q = bound_logits(logits, near, ~near, least=0.5, most=0.3)
    torch.testing.assert_close(q, logits, rtol=0, atol=0, equal_nan=True)


def test_any_leading_dimensions_and_no_rows_will_do() -> None:
    p = random_p(torch.Generator().manual_seed(5), 4, 2.0)
    near, wrong = random_masks(torch.Generator().manual_seed(6), p)
    q = bound_masses(p, near, wrong, least=0.5, most=0.3)
    cut = [x.view(2, 3, ROWS // 6, 4) for x in (p, near, wrong)]
    assert torch.equal(bound_masses(*cut, least=0.5, most=0.3).view(ROWS, 4), q)
    assert torch.equal(bound_masses(p[0], near[0], wrong[0], least=0.5, most=0.3), q[0])
    assert bound_masses(p[:0], near[:0], wrong[:0], least=0.5, most=0.3).shape == (0, 4)


def test_no_value_is_looked_at_where_that_would_have_to_wait() -> None:
    p = torch.empty(3, 4, device="meta")  # to look at a meta tensor raises
    mask = torch.empty(3, 4, dtype=torch.bool, device="meta")
    assert bound_masses(p, mask, mask, least=0.5, most=0.3).shape == (3, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_rows_that_cannot_be_met_are_nan_and_no_others() -> None:
    p, group = torch.full((3, 2), 0.5, device="cuda"), torch.tensor([[0, 0], [1, 1], [2, 1]], device="cuda")
    q = bound_masses(p, group == 2, group == 1, least=0.6, most=0.3)
    assert q.isnan().tolist() == [[True, True], [True, True], [False, False]]
