"""The source of the CUDA kernels, run on the CPU: every regime at its limits, with any alignment of the logits and any
order of the threads.

A generic kernel serves teachers that require gradients and peers that are not detached. The tests of all backends run
it; in most tests here, only the students require gradients.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.loss.helpers import emulated
from tests.loss.helpers.inputs import LossInputs, agree, backends, make
from tests.loss.helpers.regimes import DTYPES, REGIMES, VARIANTS, assert_exact, groups, results, shapes
from tests.loss.test_any_input import VALUES, Case, assert_agrees, cases, plain
from tests.loss.test_values import assert_as_exact_as_eager
from udskd.loss import ops
from udskd.loss.options import Modes, Scalars

pytestmark = [
    *(mark for parameter in backends("emulated") for mark in parameter.marks),
    pytest.mark.usefixtures("reset_gpu_afterwards"),
]


# --- every regime ----------------------------------------------------------------------------------------------------


# Of the narrow rows, quick are those of the regimes that the library chooses for them.
@pytest.mark.slow_for(
    cases=lambda dtype, regime, group: (
        dtype != torch.float32 or (group == "narrow" and regime not in ("lanes8", "warp"))
    )
)
@pytest.mark.parametrize(("regime", "group"), groups())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_regime_is_as_exact_as_pytorch(dtype: torch.dtype, regime: str, group: str) -> None:
    some = shapes(regime, group)
    with emulated.forced(regime):
        for k in range(max(len(some), len(VARIANTS) if group != "wide" else 4)):
            assert_exact(*some[k % len(some)], dtype, k)


@pytest.mark.parametrize("regime", REGIMES)
@settings(max_examples=20)
@given(case=st.one_of(*(cases(values) for values in VALUES)))
def test_every_regime_takes_any_input(regime: str, case: Case) -> None:
    with emulated.forced(regime):
        assert_agrees("emulated", case, plain)


@pytest.mark.parametrize("regime", REGIMES)
def test_a_label_that_is_no_class_makes_its_row_nan_and_no_other(regime: str) -> None:
    made = make(6, 40, dtype=torch.float32).like(learning=(1, 2))
    assert made.target is not None
    for label in (40, -1, 10**12):
        labels = made.target.clone()
        labels[4] = label
        with emulated.forced(regime):
            broken = results("recompute", LossInputs(*made.inputs[:3], labels), reduction="none")
            clean = results("recompute", made, reduction="none")
        assert broken[0][4].isnan()
        assert all(x[4].isnan().all() for x in broken[-2:])
        others = [0, 1, 2, 3, 5]
        for x, y in zip([broken[0], *broken[-2:]], [clean[0], *clean[-2:]], strict=True):
            assert torch.equal(x[others], y[others])


@pytest.mark.slow_for(cases=lambda learning: len(learning) == 1)
@pytest.mark.parametrize("learning", [(1,), (2,), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("regime", REGIMES)
def test_every_element_of_a_gradient_is_written(regime: str, learning: tuple[int, ...]) -> None:
    """No element of a gradient is left unwritten (the emulator fills memory with 0xCD); ignored rows have zeros."""
    made = make(37, 100, dtype=torch.float32, ignored=9)
    everything = results("recompute", made)[-3:]
    with emulated.forced(regime):
        for form in ("fused", "recompute"):
            some = results(form, made.like(learning=learning))
            for k, x in zip(learning, some[9:], strict=True):
                agree("emulated", x, everything[k])
                assert (x[made.target == -100] == 0).all()


@pytest.mark.parametrize(("regime", "group"), [pair for pair in groups() if pair[1] != "wide"])
def test_the_threads_order_changes_no_bit(regime: str, group: str) -> None:
    for (rows, classes), form in zip(shapes(regime, group)[-4:], itertools.cycle(["fused", "recompute"])):
        made = make(rows, classes, dtype=torch.float32, ignored=rows // 3).like(learning=(1, 2))
        outcomes = []
        for seed in (0, 1, 12345):
            emulated.order(seed)
            with emulated.forced(regime):
                outcomes.append(results(form, made, reduction="sum"))
        for other in outcomes[1:]:
            assert all(torch.equal(x, y) for x, y in zip(other, outcomes[0], strict=True)), (rows, classes)


SHARE = 19  # the saved column kShare: negative if the generic kernel computed the row


def kept(teacher: Tensor | None, a: Tensor, b: Tensor | None, labels: Tensor) -> Tensor:
    """The numbers of each row that the forward pass saves."""
    scalars = Scalars(kd_weight=0.9 if teacher is not None else 0.0, peer_weight=0.5 if b is not None else 0.0)
    fused = ops.OPERATORS["emulated"].namespace.dual_student_loss_fused.default
    needs = [False, True, b is not None]
    out: Tensor = fused(teacher, a, b, labels, *[None] * 4, [*scalars], [*Modes(reduction=1)], needs)[4]
    return out


@pytest.mark.parametrize("missing", [(0,), (2,), (0, 2)], ids=["teacher", "student b", "both"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_networks_that_are_not_there_do_not_take_the_generic_kernel(
    dtype: torch.dtype, missing: tuple[int, ...]
) -> None:
    for classes, first in itertools.product((2, 3, 5, 10, 33, 100), (0, 1)):
        made = make(9, classes + first, dtype=dtype)
        t, a, b = (x.detach()[:, first:] for x in made.logits)
        labels = torch.arange(9) % classes
        rows = kept(None if 0 in missing else t, a, None if 2 in missing else b, labels)
        assert (rows[:, SHARE] > 0).all(), (classes, first)


def test_only_a_row_with_an_infinity_takes_the_generic_kernel() -> None:
    made = make(9, 40, dtype=torch.float32)
    t, a, b = (x.detach().clone() for x in made.logits)
    a[3, 7] = -torch.inf
    assert kept(t, a, b, torch.arange(9))[:, SHARE].sign().tolist() == [1, 1, 1, -1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("form", ["fused", "recompute"])
def test_labels_that_are_counted_beforehand_are_counted_alike(form: str) -> None:
    """With more rows than each block counts by itself, the mean equals that of the parts."""
    made = make(40_000, 3, dtype=torch.float32, ignored=1234).like(learning=(1, 2))
    emulated.log()
    whole = results(form, made)
    assert [line.split()[0] for line in emulated.log()].count("count") == 1
    summed = results(form, made, reduction="sum")
    for x, y in zip(whole[-2:], summed[-2:], strict=True):
        torch.testing.assert_close(x, y / (40_000 - 1234))
    torch.testing.assert_close(whole[0], summed[0] / (40_000 - 1234))


# --- where logits lie in memory ---------------------------------------------------------------------------------------


def laid(x: Tensor, layout: str) -> Tensor:
    rows, classes = x.shape
    if layout == "plain":
        return x.clone()
    if layout == "every other row":
        return torch.stack([x, x.new_full(x.shape, torch.nan)], 1).flatten(0, 1)[::2]
    if layout == "expanded":
        return x[:1].expand(x.shape)
    first, padding = {"[1:]": (1, 0), "[3:]": (3, 0), "padded": (0, 5), "[1:-8]": (1, 8)}[layout]
    wide = x.new_full((rows, first + classes + padding), torch.nan)
    wide[:, first : first + classes] = x
    return wide[:, first : first + classes]


LAYOUTS = [
    *(("[1:]",) * 3, ("every other row",) * 3, ("padded",) * 3, ("expanded",) * 3),
    *(("[1:]", "plain", "plain"), ("plain", "[1:]", "[3:]"), ("[3:]", "padded", "every other row")),
    *(("expanded", "plain", "[1:-8]"), ("plain", "expanded", "padded"), ("padded", "[1:-8]", "[1:-8]")),
]


@pytest.mark.parametrize("layouts", LAYOUTS, ids=", ".join)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_may_lie_anywhere(dtype: torch.dtype, layouts: tuple[str, str, str]) -> None:
    for rows, classes in ((5, 10), (5, 33), (40, 100), (5, 1000), (3, 4100)):
        made = make(rows, classes, dtype=dtype)
        t, a, b = (laid(x.detach(), layout) for x, layout in zip(made.logits, layouts, strict=True))
        assert_as_exact_as_eager("emulated", LossInputs(t, a, b, made.target), dtype, (1, 2))


@pytest.mark.parametrize("regime", REGIMES)
def test_every_regime_takes_rows_that_begin_anywhere(regime: str) -> None:
    for dtype, first in itertools.product(DTYPES, range(9)):
        made = make(4, 101 + first, dtype=dtype)
        rows = LossInputs(*(x.detach()[:, first:] for x in made.logits), make(4, 101).target)
        with emulated.forced(regime):
            assert_as_exact_as_eager("emulated", rows, dtype, (1, 2))
