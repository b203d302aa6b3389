"""The contract besides the numbers: shapes, saved tensors, terms that are not computed, reproducible results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

import udskd
from tests.loss.helpers.inputs import DTYPES, backends, device_of, make, same

BACKENDS = backends()


@pytest.mark.parametrize("backend", BACKENDS)
def test_leading_dimensions_are_rows(backend: str) -> None:
    flat = make(12, 10).like(device=device_of(backend))
    assert flat.teacher is not None
    assert flat.student_b is not None
    assert flat.target is not None
    expected = udskd.dual_student_loss(*flat.inputs, reduction="none", backend=backend)
    deep = [x.detach().reshape(3, 4, 10).requires_grad_() for x in flat.logits]
    out = udskd.dual_student_loss(*deep, flat.target.reshape(3, 4), reduction="none", backend=backend)
    assert [x.shape for x in out] == [(3, 4)] * len(out)
    assert all(torch.equal(x.flatten(), y) for x, y in zip(out, expected, strict=True))
    gradient = torch.autograd.grad(out.loss.sum(), deep[1])[0]
    assert torch.equal(gradient.reshape(12, 10), torch.autograd.grad(expected.loss.sum(), flat.student_a)[0])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_weight_and_entropy_keep_the_leading_dimensions(backend: str, reduction: Any) -> None:
    deep = [x.detach().reshape(2, 3, 2, 10) for x in make(12, 10).like(device=device_of(backend)).logits]
    out = udskd.dual_student_loss(*deep, reduction=reduction, backend=backend)
    assert [x.shape for x in out] == [()] * 7 + [(2, 3, 2)] * 2


@pytest.mark.parametrize("shape", [(12,), (3, 4)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_rows_come_flat_or_with_the_leading_dimensions(backend: str, shape: tuple[int, ...]) -> None:
    flat = make(12, 10).like(device=device_of(backend))
    each = torch.rand(12, dtype=torch.float64, device=flat.student_a.device)
    expected = udskd.dual_student_loss(*flat.inputs[:3], kd_weight=each, uncertainty=each, backend=backend)
    deep = [x.reshape(3, 4, 10) for x in flat.logits]
    weights = each.reshape(shape)
    out = udskd.dual_student_loss(*deep, kd_weight=weights, uncertainty=weights, backend=backend)
    assert torch.equal(out.loss, expected.loss)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_loss_is_the_weighted_sum_of_its_components(backend: str, reduction: Any) -> None:
    out = udskd.dual_student_loss(
        *make(9, 10).like(device=device_of(backend)).inputs,
        ce_weight=0.3,
        kd_weight=1.7,
        peer_weight=0.6,
        reduction=reduction,
        backend=backend,
    )
    total = 0.3 * (out.ce_a + out.ce_b) + 1.7 * (out.kd_a + out.kd_b) + 0.6 * (out.peer_a + out.peer_b)
    torch.testing.assert_close(out.loss, total, rtol=1e-13, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_loss_is_differentiable(backend: str) -> None:
    out = udskd.dual_student_loss(*make().like(device=device_of(backend)).inputs, backend=backend)
    assert [x.requires_grad for x in out] == [True] + [False] * 8


@pytest.mark.parametrize("wanted", ["teacher", "student_a", "student_b"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_only_for_who_asks(backend: str, wanted: str) -> None:
    made = make().like(device=device_of(backend))
    everything = torch.autograd.grad(udskd.dual_student_loss(*made.inputs, backend=backend).loss, made.logits)
    names = ("teacher", "student_a", "student_b")
    alone = [x.detach().requires_grad_(name == wanted) for x, name in zip(made.logits, names, strict=True)]
    udskd.dual_student_loss(*alone, made.target, backend=backend).loss.backward()
    for x, name, expected in zip(alone, names, everything, strict=True):
        if name == wanted:
            assert x.grad is not None
            same(backend, x.grad, expected)
        else:
            assert x.grad is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_grad_the_loss_is_the_same_and_keeps_nothing(backend: str) -> None:
    made = make().like(device=device_of(backend))
    expected = udskd.dual_student_loss(*made.inputs, backend=backend).loss.detach()
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            out = udskd.dual_student_loss(*made.inputs, backend=backend)
        assert out.loss.grad_fn is None
        same(backend, out.loss, expected)


@pytest.mark.parametrize("backend", backends("cpu", "emulated", "cuda"))
def test_the_teacher_may_come_from_inference_mode(backend: str) -> None:
    made = make().like(device=device_of(backend))
    assert made.teacher is not None
    with torch.inference_mode():
        teacher = made.teacher.detach() * 1
    loss = udskd.dual_student_loss(teacher, *made.inputs[1:], backend=backend).loss
    expected = udskd.dual_student_loss(made.teacher.detach(), *made.inputs[1:], backend=backend).loss
    for x, y in zip(*(torch.autograd.grad(out, made.logits[1:]) for out in (loss, expected)), strict=True):
        assert torch.equal(x, y)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("backend", backends("cpu", "emulated", "cuda"))
def test_forward_mode_is_refused_rather_than_ignored(backend: str) -> None:
    made = make().like(device=device_of(backend))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(made.student_a.detach(), torch.randn_like(made.student_a))
        with pytest.raises((NotImplementedError, RuntimeError), match="forward"):
            udskd.dual_student_loss(None, dual, None, made.target, backend=backend)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "padded rows", "unaligned", "expanded"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides(backend: str, dtype: torch.dtype, layout: str) -> None:
    def lay(x: torch.Tensor) -> torch.Tensor:
        rows, classes = x.shape
        if layout == "transposed":
            return x.t().contiguous().t()
        if layout == "sliced":
            return torch.stack([x, -x], -1).flatten(1)[:, ::2]
        if layout == "padded rows":
            return torch.cat([x, x.new_full((rows, 3), torch.nan)], 1)[:, :classes]
        if layout == "unaligned":
            return torch.cat([x.new_zeros(rows, 1), x], 1)[:, 1:]
        return x[:1].expand(rows, classes)

    made = make(5, 12, dtype=dtype).like(device=device_of(backend))
    odd = [lay(x.detach()).requires_grad_() for x in made.logits]
    assert layout == "expanded" or not any(x.is_contiguous() for x in odd)
    plain = [x.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for x in odd]
    results = []
    for logits in (odd, plain):
        loss = udskd.dual_student_loss(*logits, made.target, backend=backend).loss
        results.append([loss.detach(), *torch.autograd.grad(loss, logits)])
    for x, y in zip(*results, strict=True):
        same(backend, x, y)


@pytest.mark.parametrize("kind", ["expanded", "strided", "zero", "one", "large", "negative"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_upstream_gradient(backend: str, kind: str) -> None:
    device = device_of(backend)
    made = make(6, 10).like(device=device)
    rows = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).to(device)
    upstream = {
        "expanded": rows[:1].expand(6),
        "strided": rows[::2],
        "zero": rows[:6] * 0,
        "one": rows[:6] * 0 + 1,
        "large": rows[:6] * 65536,
        "negative": -rows[:6].abs(),
    }[kind]
    out = udskd.dual_student_loss(*made.inputs, reduction="none", backend=backend)
    ours = torch.autograd.grad(out.loss, made.logits, upstream, retain_graph=True)
    each = [[g[i] for g in torch.autograd.grad(out.loss[i], made.logits, retain_graph=True)] for i in range(6)]
    for k, gradient in enumerate(ours):
        expected = torch.stack([upstream[i] * each[i][k] for i in range(6)])
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_retained_graph_gives_the_same_gradient_again(backend: str) -> None:
    made = make().like(device=device_of(backend))
    loss = udskd.dual_student_loss(*made.inputs, backend=backend).loss * 3
    first = torch.autograd.grad(loss, made.logits, retain_graph=True)
    for x, y in zip(first, torch.autograd.grad(loss, made.logits), strict=True):
        same(backend, x, y)


@pytest.mark.slow_for(cases=lambda backend, dtype: backend == "emulated" and dtype != torch.float32)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bits_repeat(backend: str, dtype: torch.dtype) -> None:
    made = make(64, 100, dtype=dtype).like(device=device_of(backend))
    runs = []
    for _ in range(10):
        out = udskd.dual_student_loss(*made.inputs, backend=backend)
        runs.append([*out, *torch.autograd.grad(out.loss, made.logits)])
    assert all(torch.equal(x, y) for run in runs[1:] for x, y in zip(run, runs[0], strict=True))


def test_the_module_is_the_function() -> None:
    made = make()
    module = udskd.DualStudentLoss(temperature=2.0, uncertainty="margin", detach_peer=False)
    expected = udskd.dual_student_loss(*made.inputs, temperature=2.0, uncertainty="margin", detach_peer=False)
    assert all(torch.equal(x, y) for x, y in zip(module(*made.inputs), expected, strict=True))
    assert "temperature=2.0" in repr(module)


def test_the_module_refuses_unknown_options_at_once() -> None:
    with pytest.raises(TypeError, match="temprature"):
        udskd.DualStudentLoss(temprature=2.0)


@pytest.mark.parametrize("device", ["meta"])
def test_meta_tensors_get_shapes(device: str) -> None:
    made = make().like(device=device)
    out = udskd.dual_student_loss(*made.inputs, backend="reference")
    assert out.loss.shape == ()
    assert out.weight.shape == (7,)
