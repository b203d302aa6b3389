"""Every dtype of every input with every dtype of the logits, compared with the float64 oracle of the same rounded
inputs, on every backend, eager and compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import udskd
from tests.loss.helpers import eager
from tests.loss.helpers.inputs import DTYPES, backends, device_of, make

ROWS = 6
INPUTS = ("teacher", "target", "ce_weight", "kd_weight", "peer_weight", "uncertainty")
LOGITS = ("teacher", "student_a", "student_b", "target")


def inputs(classes: int, students: torch.dtype, which: str, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Arguments of the loss whose students have one dtype, and one other input another; all others are float32."""
    made = make(ROWS, classes, seed=classes, target="soft")
    each = {name: torch.rand(ROWS, generator=torch.Generator().manual_seed(k)) for k, name in enumerate(INPUTS[2:])}
    given = dict(zip(LOGITS, made.inputs, strict=True)) | each
    dtypes = {**dict.fromkeys(given, torch.float32), "student_a": students, "student_b": students, which: dtype}
    return {name: x.detach().to(device, dtypes[name]) for name, x in given.items() if x is not None}


def answer(loss: Any, given: dict[str, Any], learning: list[str], **options: Any) -> list[Tensor]:
    """All outputs, and the gradients of the inputs that require them, for a grad_output of 1.5."""
    leaves = {name: x.detach().clone().requires_grad_(name in learning) for name, x in given.items()}
    out = loss(**leaves, **options)
    gradients = torch.autograd.grad(out.loss, [leaves[name] for name in learning], torch.full_like(out.loss, 1.5))
    return [x.detach() for x in (*out, *gradients)]


def assert_exact(loss: Any, given: dict[str, Any], which: str, arithmetic: torch.dtype, **options: Any) -> None:
    """Within a few units in the last place of each result's dtype; a sum is as exact as its arithmetic. A coefficient
    learns if it is the input in question: one that learns rules out the fused form."""
    learning = ["student_a", "student_b", "teacher", *(name for name in INPUTS[2:5] if name == which)]
    exact = {name: x.double().cpu() for name, x in given.items()}
    for ours, truth in zip(
        answer(loss, given, learning, **options), answer(eager.dual_student_loss, exact, learning), strict=True
    ):
        rounding = max(torch.finfo(ours.dtype).eps, torch.finfo(arithmetic).eps * 16)
        allowed = rounding * (1 + truth.abs().max().item())
        assert (ours.double().cpu() - truth).abs().max().item() <= allowed


@pytest.mark.slow_for(cases=lambda backend, students: backend == "emulated" and students != torch.float32)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", INPUTS)
@pytest.mark.parametrize("students", DTYPES, ids=str)
@pytest.mark.parametrize("backend", backends())
def test_every_input_of_every_dtype(backend: str, students: torch.dtype, which: str, dtype: torch.dtype) -> None:
    wide = torch.float64 in (students, dtype if which == "teacher" else None)
    for classes in (5, 100, 513):  # shorter than a vector, several rows together, aligned
        given = inputs(classes, students, which, dtype, device_of(backend))
        assert_exact(udskd.dual_student_loss, given, which, torch.float64 if wide else torch.float32, backend=backend)


@pytest.mark.slow_for(cases=lambda dtype: dtype != torch.bfloat16)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", INPUTS)
@pytest.mark.parametrize("backend", backends("reference", "cpu", "cuda"))
def test_every_input_of_every_dtype_compiled(backend: str, which: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(udskd.dual_student_loss, fullgraph=True, backend="aot_eager")
    wide = (which, dtype) == ("teacher", torch.float64)
    given = inputs(100, torch.float32, which, dtype, device_of(backend))
    assert_exact(compiled, given, which, torch.float64 if wide else torch.float32, backend=backend)


@pytest.mark.parametrize("backend", backends())
def test_one_hot_targets_from_numpy(backend: str) -> None:
    numpy = pytest.importorskip("numpy")
    made = make(4, 10, dtype=torch.float32).like(device=device_of(backend))
    assert made.target is not None
    one_hot = torch.from_numpy(numpy.eye(10)[made.target.cpu().numpy()]).to(made.target.device)
    by_label = udskd.dual_student_loss(*made.inputs, backend=backend)
    by_distribution = udskd.dual_student_loss(*made.inputs[:3], one_hot, backend=backend)
    torch.testing.assert_close(by_distribution.loss, by_label.loss)


@pytest.mark.parametrize("view", ["negative", "zero"])
@pytest.mark.parametrize("backend", backends("reference", "cpu", "emulated"))
def test_tensors_that_are_not_what_their_memory_holds(backend: str, view: str) -> None:
    t, a, b = (torch.randn(4, 10) for _ in range(3))
    if view == "negative":
        lazy = torch.complex(torch.zeros_like(a), -a).conj().imag
        assert lazy.is_neg()
    else:
        lazy, a = torch._efficientzerotensor((4, 10)), torch.zeros(4, 10)
    found = udskd.dual_student_loss(t, lazy, b, backend=backend)
    torch.testing.assert_close(found.loss, udskd.dual_student_loss(t, a, b, backend=backend).loss)
