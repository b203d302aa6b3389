"""Batches and assertions that the tests of several methods share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from udskd.loss import dispatch
from udskd.methods.base import Answers, Method

B, C = 6, 5
OPTIONS: dict[str, Any] = {"temperature": 3.0, "ce_weight": 0.7, "kd_weight": 0.8, "peer_weight": 0.4}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def answers(rows: int = B, scale: float = 3.0, dtype: torch.dtype = torch.float64, seed: int = 0) -> Answers:
    """Random logits of C classes, the students' with gradient."""
    generator = torch.Generator().manual_seed(seed)
    t, a, b = (scale * torch.randn(rows, C, dtype=torch.float64, generator=generator) for _ in range(3))
    y = torch.randint(0, C, (rows,), generator=generator)
    return Answers(t.to(dtype), a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_(), y)


def in_double(x: Answers) -> Answers:
    """The same numbers in fp64, as new leaves."""
    assert x.teacher is not None
    a, b = (s.detach().double().requires_grad_() for s in (x.student_a, x.student_b))
    return Answers(x.teacher.double(), a, b, x.target)


def on_meta() -> Answers:
    """Tensors without values: code that reads one raises."""
    t, a, b = (torch.empty(B, C, device="meta") for _ in range(3))
    return Answers(t, a.requires_grad_(), b.requires_grad_(), torch.empty(B, dtype=torch.int64, device="meta"))


def mixed(x: Answers) -> Tensor:
    """A target as mixup makes it, [B, C]."""
    return 0.3 * F.one_hot(x.target, C).double() + 0.7 / C


def kd(x: Answers, student: Tensor) -> Tensor:
    """T² KL(teacher ‖ student) [B] at temperature 3."""
    assert x.teacher is not None
    return 9 * F.kl_div((student / 3).log_softmax(-1), (x.teacher / 3).softmax(-1), reduction="none").sum(-1)


def margin(x: Answers) -> Tensor:
    """The teacher's weight for uncertainty="margin", [B]."""
    assert x.teacher is not None
    top = x.teacher.softmax(-1).topk(2).values
    return top[:, 0] - top[:, 1]


def assert_takes_an_inference_tensor(method: Method, x: Answers) -> None:
    """The teacher's logits may come from inference_mode, whose tensors autograd does not save."""
    assert x.teacher is not None
    with torch.inference_mode():
        teacher = x.teacher.clone()
    inputs = [x.student_a, x.student_b]
    losses = [method.loss(each)["loss"] for each in (replace(x, teacher=teacher), x)]
    for got, want in zip(*(torch.autograd.grad(loss, inputs) for loss in losses), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def assert_requests_backend(monkeypatch: pytest.MonkeyPatch, method: Method, x: Answers, wanted: str) -> None:
    """Every call of the operator in the loss has the backend of the options."""
    asked, choose = [], dispatch.choose

    def noted(backend: str, device: torch.device) -> str:
        asked.append(backend)
        return choose(backend, device)

    monkeypatch.setattr(dispatch, "choose", noted)
    method.loss(x)
    assert asked
    assert set(asked) == {wanted}


def assert_same(
    loss: Tensor,
    want: Tensor,
    inputs: Sequence[Tensor],
    wanted_inputs: Sequence[Tensor],
    tolerance: float | None = None,
) -> None:
    """The losses (at least float32) and their gradients for an arbitrary grad_output agree; gradients have the dtypes
    of their inputs."""
    upstream = 0.37
    rounding = ROUNDING[inputs[0].dtype] if tolerance is None else max(tolerance, ROUNDING[inputs[0].dtype])
    tolerance = min(rounding, ROUNDING[torch.float32]) if tolerance is None else tolerance
    torch.testing.assert_close(loss.double(), want, rtol=tolerance, atol=tolerance)
    got, wanted = torch.autograd.grad(upstream * loss, inputs), torch.autograd.grad(upstream * want, wanted_inputs)
    for one, other, x in zip(got, wanted, inputs, strict=True):
        assert one.dtype == x.dtype
        torch.testing.assert_close(one.double(), other, rtol=rounding, atol=rounding)


def assert_loss_of_nothing(loss: Tensor, x: Answers) -> None:
    """For a batch without rows, the mean is NaN, as in F.cross_entropy, and gradients have no rows."""
    loss.backward()
    assert loss.isnan()
    assert x.student_a.grad is not None
    assert x.student_a.grad.shape == (0, C)
