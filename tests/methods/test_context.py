"""The context-aware module: its reweighted targets and its own loss."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.methods.helpers.adaptive import SETTING, akd, alpha, ce, config, gap
from tests.methods.helpers.batches import DTYPES, B, C, answers, assert_same, in_double, kd
from udskd.config.schema import STUDENTS
from udskd.methods.base import Answers
from udskd.methods.context import ClassWeights, Context, standardised


def trained(module: nn.Module, seed: int = 3) -> nn.Module:
    """As if it had learned something."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator).to(p.dtype) / 2
    return module


def context(**options: Any) -> tuple[Context, ClassWeights]:
    shape = Context(config(**options))
    module = shape.modules(SETTING)["context"]
    assert isinstance(module, ClassWeights)
    return shape, module


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_module_starts_as_the_identity_bit_for_bit(dtype: torch.dtype) -> None:
    x = answers(dtype=dtype)
    assert x.teacher is not None
    teacher = x.teacher.clone()
    teacher[0, 2] = float("-inf")
    for role in STUDENTS:
        shaped = context()[0](teacher, role, replace(x, teacher=teacher)).logits
        wanted = teacher if dtype == torch.float64 else teacher.float()
        assert shaped.dtype == wanted.dtype
        assert torch.equal(shaped, wanted)


@pytest.mark.parametrize("role", STUDENTS)
def test_the_classes_are_reweighted_by_attention_over_them(role: str) -> None:
    x = answers()
    assert x.teacher is not None
    shape, module = context()
    trained(module.double())
    z = torch.stack(
        [(s - s.mean(-1, keepdim=True)) / s.std(-1, correction=0, keepdim=True) for s in (x.teacher, x.student(role))],
        -1,
    )
    embedded = module.classes.weight[None].expand(B, -1, -1)
    tokens = F.linear(torch.cat([z, embedded], -1), module.token.weight, module.token.bias)
    q, k, v = F.linear(tokens, module.attention.weight, module.attention.bias).chunk(3, -1)
    tokens = tokens + (q @ k.transpose(1, 2) / math.sqrt(32)).softmax(-1) @ v
    hidden = F.linear(tokens, module.hidden.weight, module.hidden.bias).relu()
    r = (hidden @ module.out.weight[0]).softmax(-1) * C
    p = r * x.teacher.softmax(-1)
    shaped = shape(x.teacher, role, x).logits
    torch.testing.assert_close(shaped.softmax(-1), p / p.sum(-1, keepdim=True), rtol=1e-9, atol=1e-12)
    assert (shaped - x.teacher).abs().max() > 0.1


def test_the_modules_loss_is_its_cross_entropy_and_what_it_strays_from_the_teacher() -> None:
    x = answers()
    assert x.teacher is not None
    shape, module = context(closeness=0.3)
    trained(module.double())
    shaped = shape(x.teacher, "student_a", x)
    logits = x.teacher + module(x.teacher, x.student_a.detach())
    away = F.kl_div(logits.log_softmax(-1), x.teacher.softmax(-1), reduction="none").sum(-1)
    want = F.cross_entropy(logits, x.target) + 0.3 * away.mean()
    assert shaped.loss is not None
    torch.testing.assert_close(shaped.loss, want)
    parameters = list(module.parameters())
    assert_same(shaped.loss, want, parameters, parameters)


def test_the_students_loss_never_pulls_the_module() -> None:
    x = answers(dtype=torch.float32)
    assert x.teacher is not None
    method, modules = akd(shape="context", alpha="sample")
    parameters = list(trained(modules["context"]).parameters())
    shaped = [method.shapes[0](x.teacher, role, x) for role in STUDENTS]
    assert not any(target.logits.requires_grad for target in shaped)
    assert shaped[0].loss is not None
    assert shaped[1].loss is not None
    alone = torch.autograd.grad(shaped[0].loss + shaped[1].loss, parameters)
    for got, want in zip(torch.autograd.grad(method.loss(x)["loss"], parameters), alone, strict=True):
        torch.testing.assert_close(got, want)


def test_a_student_learns_from_the_reweighted_target_and_not_from_the_modules_loss() -> None:
    x = answers(dtype=torch.float32)
    assert x.teacher is not None
    method, modules = akd(shape="context", alpha="sample")
    trained(modules["context"])
    exact = in_double(x)
    # alpha follows the gap to the teacher itself
    weight = alpha(gap(exact, exact.student_a, "ce"), "ce")
    reweighted = replace(exact, teacher=method.shapes[0](x.teacher, "student_a", x).logits.double())
    want = (weight * ce(exact.student_a, x.target) + (1 - weight) * kd(reweighted, exact.student_a)).mean()
    (got,) = torch.autograd.grad(method.loss(x)["loss"], x.student_a)
    torch.testing.assert_close(got.double(), torch.autograd.grad(want, exact.student_a)[0], rtol=1e-4, atol=1e-6)


def test_the_module_learns_what_the_teacher_gets_wrong() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(40) % C
    # a teacher that takes class 0 for class 1
    known = torch.where(y == 0, 1, y)
    t = 4 * F.one_hot(known, C).float() + torch.randn(40, C, generator=generator) / 2
    a, b = (2 * F.one_hot(y, C).float() + torch.randn(40, C, generator=generator) for _ in range(2))
    x = Answers(t, a, b, y)
    shape, module = context()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    before = F.cross_entropy(t, y)
    for _ in range(60):
        optimizer.zero_grad()
        loss = shape(t, "student_a", x).loss
        assert loss is not None
        loss.backward()
        optimizer.step()
    after = F.cross_entropy(shape(t, "student_a", x).logits, y)
    assert after < 0.5 * before


def test_neither_scale_nor_offset_of_the_logits_matters_to_the_module() -> None:
    x = torch.randn(B, C, generator=torch.Generator().manual_seed(0))
    want = (x - x.mean(-1, keepdim=True)) / x.std(-1, correction=0, keepdim=True)
    for same in (x, 3e30 * x, 1e-20 * x, x + 100):
        torch.testing.assert_close(standardised(same), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_standardised_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(B, C, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.testing.assert_close(standardised(x), standardised(x.float()), rtol=0, atol=0)


def test_excluded_classes_are_put_far_below_and_equal_logits_are_0() -> None:
    out = float("-inf")
    got = standardised(torch.tensor([[out, 1.0, 3.0], [7.0, 7.0, 7.0], [out, 5.0, out], [out, out, out]]))
    want = [[-10.0, -1.0, 1.0], [0.0, 0.0, 0.0], [-10.0, 0.0, -10.0], [-10.0, -10.0, -10.0]]
    torch.testing.assert_close(got, torch.tensor(want))


def test_a_broken_row_of_a_student_leaves_the_target_finite() -> None:
    x = answers(dtype=torch.float32)
    assert x.teacher is not None
    student = x.student_a.detach().clone()
    student[0] = float("nan")
    shape, module = context()
    trained(module)
    shaped = shape(x.teacher, "student_a", replace(x, student_a=student))
    assert shaped.logits.isfinite().all()


def test_one_module_serves_both_students_with_targets_of_their_own() -> None:
    method, modules = akd(shape="context")
    trained(modules["context"])
    x = answers()
    assert x.teacher is not None
    shape = method.shapes[0]
    a, b = (shape(x.teacher, role, x) for role in STUDENTS)
    assert not torch.allclose(a.logits, b.logits)
    assert a.loss is not None
    assert b.loss is not None
    torch.testing.assert_close(method.loss(x)["context"], (a.loss + b.loss).detach())
