"""The source of the CUDA kernels, run on the CPU: launches of a pass, replays of a captured step, and GPUs with few
multiprocessors or without clusters."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import udskd
from tests.loss.helpers import emulated, forms
from tests.loss.helpers.inputs import agree, backends, can_fuse, make
from tests.loss.helpers.regimes import DTYPES, KERNELS, REGIMES, assert_exact, launches, results

pytestmark = [
    *(mark for parameter in backends("emulated") for mark in parameter.marks),
    pytest.mark.usefixtures("reset_gpu_afterwards"),
]


# --- launches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("options", [{}, {"normalize_weights": True}, {"reduction": "none"}], ids=str)
def test_a_pass_is_one_launch(options: dict[str, Any], regime: str) -> None:
    made = make(37, 100, dtype=torch.float32).like(learning=(1, 2))
    one = (1, 2) if regime == "split" else (1,)

    def call() -> Tensor:
        return udskd.dual_student_loss(*made.inputs, backend="emulated", **options).loss  # type: ignore[arg-type]

    with emulated.forced(regime):
        with torch.no_grad():
            assert len(launches(call)) in one
        for form in ("fused", "recompute"):
            with forms.only(form) if can_fuse("emulated", options) else nullcontext():  # type: ignore[arg-type]
                assert len(launches(call)) in one
                loss = call().sum()
            assert len(launches(loss.backward)) == 1


@pytest.mark.parametrize("regime", REGIMES)
def test_a_forced_regime_is_what_runs(regime: str) -> None:
    made = make(37, 100, dtype=torch.float32).like(learning=(1, 2))
    with emulated.forced(regime):
        (line,) = launches(lambda: udskd.dual_student_loss(*made.inputs, backend="emulated"))  # type: ignore[arg-type]
    assert KERNELS[regime] in line
    assert ("cluster=1" in line.split()) == (regime != "cluster")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_teacher_of_fewer_bits_gets_the_students_kernel(dtype: torch.dtype) -> None:
    made = make(37, 100, dtype=torch.float32).like(learning=(1, 2))
    assert made.teacher is not None
    inputs = (made.teacher.to(dtype), *made.inputs[1:])
    (line,) = launches(lambda: udskd.dual_student_loss(*inputs, backend="emulated"))  # type: ignore[arg-type]
    assert "rows<float, ThreadGroup<32>" in line


@pytest.mark.parametrize("learning", [(1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("shape", [(37, 10), (5, 1000), (3, 5000), (2, 40000)], ids=str)
@pytest.mark.parametrize("form", ["fused", "recompute"])
def test_a_captured_step_replays(form: Any, shape: tuple[int, int], learning: tuple[int, ...]) -> None:
    made = make(*shape, dtype=torch.float32, ignored=1).like(learning=learning)
    upstream, leaves = torch.tensor(1.5), [made.logits[k] for k in learning]

    def step() -> tuple[Tensor, ...]:
        """All outputs. The graph, which they keep, has what the kernels write but for them."""
        with forms.only(form):
            out = udskd.dual_student_loss(*made.inputs, backend="emulated")  # type: ignore[arg-type]
        return (*out, *torch.autograd.grad(out.loss, leaves, upstream, retain_graph=True))

    step()  # the first call of a kernel may query attributes, which cannot be captured
    outputs = emulated.captured(step)
    for change in (1.0, 0.5, -2.0):
        with torch.no_grad():
            for x in outputs:
                x.fill_(torch.nan)
            for x in (*made.logits, upstream):
                x.mul_(change)
        emulated.replay()
        for x, y in zip(outputs, step(), strict=True):
            assert x.isfinite().all()
            assert torch.equal(x, y)


# --- other GPUs -------------------------------------------------------------------------------------------------------


@pytest.mark.slow_for(cases=lambda sms: sms == 3)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("sms", [1, 3])
def test_few_multiprocessors_take_rows_in_turn(sms: int, regime: str) -> None:
    many = 700 if REGIMES[regime] < 5000 else 90  # a block holds at most 16 rows, a multiprocessor 32 blocks
    for rows, classes in ((many, 33), (many // 2, 100)):
        made = make(rows, classes, dtype=torch.float32, ignored=rows // 3).like(learning=(1, 2))
        with emulated.forced(regime):
            expected = results("fused", made)
            emulated.device("sms", sms)
            for x, y in zip(results("fused", made), expected, strict=True):
                agree("emulated", x, y)
        emulated.reset()


@pytest.mark.parametrize("capability", [75, 80])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wide_rows_need_no_clusters(dtype: torch.dtype, capability: int) -> None:
    emulated.device("capability", capability)
    for k, (rows, classes) in enumerate(((3, 8191), (2, 21841), (1, 50257))):
        assert_exact(rows, classes, dtype, 5 * k)
    with emulated.forced("cluster"):
        assert_exact(3, 1000, dtype, 0)
