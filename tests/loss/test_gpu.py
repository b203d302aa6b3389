"""Features of a GPU: streams, devices, graphs, synchronisation, and memory beyond 2^31 elements.

The gradients are taken in both forms; two computations in the same way are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import udskd
from tests.loss.helpers import forms
from tests.loss.helpers.inputs import backends, can_fuse, close, make
from tests.loss.test_values import assert_as_exact_as_eager

pytestmark = [mark for parameter in backends("cuda") for mark in parameter.marks]
FORMS = ("fused", "recompute")
SHAPES = [(3, 10), (256, 100), (257, 1000), (64, 21841), (4, 131072)]
Inputs = list[Tensor]


def inputs(rows: int, classes: int, seed: int = 0, ignored: int = 0, device: str = "cuda") -> Inputs:
    """A frozen teacher, both students, the labels."""
    made = make(rows, classes, dtype=torch.float32, seed=seed, ignored=ignored).like(device=device)
    teacher, a, b, target = made.inputs
    assert teacher is not None
    assert b is not None
    assert target is not None
    return [teacher.detach(), a, b, target]


def results(given: Inputs, form: Any = "auto", upstream: Tensor | None = None, **options: Any) -> list[Tensor]:
    """The loss, and the gradients of the students."""
    with forms.only(form):
        loss = udskd.dual_student_loss(*given, backend="cuda", **options).loss
    if upstream is None:
        upstream = torch.ones_like(loss)
    return [loss.detach(), *torch.autograd.grad(loss, given[1:3], upstream.expand_as(loss))]


def rewrite(given: Inputs, by: Inputs) -> None:
    with torch.no_grad():
        for x, y in zip(given, by, strict=True):
            x.copy_(y)


def assert_equal(seen: list[Tensor], expected: list[Tensor]) -> None:
    assert len(seen) == len(expected)
    for x, y in zip(seen, expected, strict=True):
        assert torch.isfinite(y).all()
        assert torch.equal(x, y)


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- streams and devices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "classes"), SHAPES)
def test_a_stream_sees_what_was_written_on_it(rows: int, classes: int, form: str) -> None:
    given = inputs(rows, classes)
    expected = results(given, form)
    late = [torch.zeros_like(x).requires_grad_(x.requires_grad) for x in given]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)  # tens of milliseconds, in which another stream would read zeros
        rewrite(late, given)
        seen = results(late, form)
    torch.cuda.current_stream().wait_stream(side)
    assert_equal(seen, expected)


def test_values_on_another_stream_are_as_exact() -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        assert_as_exact_as_eager("cuda", make(33, 1001, seed=5, ignored=4), torch.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "classes"), SHAPES)
def test_streams_do_not_disturb_each_other(rows: int, classes: int, form: str) -> None:
    given = [inputs(rows, classes, seed=seed, ignored=seed % 2) for seed in range(4)]
    expected = [results(each, form) for each in given]
    streams = [torch.cuda.Stream() for _ in given]
    seen: list[list[list[Tensor]]] = [[] for _ in given]
    torch.cuda.synchronize()
    for _ in range(5):
        for stream, each, found in zip(streams, given, seen, strict=True):
            with torch.cuda.stream(stream):
                found.append(results(each, form))
    torch.cuda.synchronize()
    for found, right in zip(seen, expected, strict=True):
        for one in found:
            assert_equal(one, right)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("form", FORMS)
def test_tensors_of_another_than_the_current_device(form: str) -> None:
    expected = results(inputs(64, 1000), form)
    seen = results(inputs(64, 1000, device="cuda:1"), form)
    assert torch.cuda.current_device() == 0
    assert {x.device.index for x in seen} == {1}
    for x, y in zip(seen, expected, strict=True):  # the other GPU may be of another kind
        close(x.cpu(), y.cpu())


# --- many labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", [10, 1000])
def test_labels_that_are_counted_beforehand_are_counted_alike(classes: int, form: str) -> None:
    given = inputs(20_000, classes, ignored=1234)
    means, sums = results(given, form), results(given, form, reduction="sum")
    for mean, total in zip(means, sums, strict=True):
        close(mean, total / (20_000 - 1234))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        seen = results(given, form)
    for _ in range(3):
        graph.replay()
        assert_equal(seen, means)


# --- graphs and compilers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "classes"), SHAPES)
def test_a_captured_step_replays_on_new_inputs(rows: int, classes: int, form: str, reduction: str) -> None:
    options = {"reduction": reduction}
    if form == "fused" and not can_fuse("cuda", options):
        pytest.skip("has no fused form")
    static = inputs(rows, classes)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        results(static, form, **options)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        seen = results(static, form, **options)
    for seed in (1, 2, 3):
        fresh = inputs(rows, classes, seed=seed, ignored=seed - 1)
        rewrite(static, fresh)
        graph.replay()
        assert_equal(seen, results(fresh, form, **options))


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_compiled_whole_on_new_inputs(mode: str | None) -> None:
    def loss(*given: Tensor) -> Tensor:
        return udskd.dual_student_loss(*given, backend="cuda").loss

    torch.compiler.reset()
    compiled = torch.compile(loss, mode=mode, fullgraph=True)
    for seed in range(4):  # a CUDA graph is recorded in the second call
        given = inputs(64, 1000, seed=seed, ignored=seed)
        torch.compiler.cudagraph_mark_step_begin()
        value = compiled(*given)
        seen = [value.detach().clone(), *(x.clone() for x in torch.autograd.grad(value, given[1:3]))]
        for x, y in zip(seen, results(given), strict=True):
            close(x, y)


# --- waiting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_neither_pass_waits_for_the_gpu(form: str, normalized: bool, reduction: str) -> None:
    options = {"normalize_weights": normalized, "reduction": reduction}
    if form == "fused" and not can_fuse("cuda", options):
        pytest.skip("has no fused form")
    given, upstream = inputs(256, 100, ignored=5), torch.tensor(0.5, device="cuda")
    expected = results(given, form, upstream, **options)
    with no_waiting():
        seen = results(given, form, upstream, **options)
        with torch.no_grad():
            udskd.dual_student_loss(*given, backend="cuda", **options)
    assert_equal(seen, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "classes"), SHAPES)
def test_ten_runs_are_the_same_to_the_bit(rows: int, classes: int, form: str) -> None:
    given, upstream = inputs(rows, classes, ignored=1), torch.tensor(3.0, device="cuda")
    first = results(given, form, upstream)
    for _ in range(9):
        assert_equal(results(given, form, upstream), first)


# --- memory ----------------------------------------------------------------------------------------------------------

PER_ROW, OVERHEAD = 256, 1 << 20  # bytes that a call may take beside the gradients; the logits' rows have thousands


def peak(given: Inputs, gradients: bool, form: str = "auto") -> int:
    """Peak memory of a call in PyTorch's allocator, in bytes."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    if gradients:
        results(given, form)
    else:
        with torch.no_grad():
            udskd.dual_student_loss(*given, backend="cuda")
    return int(torch.cuda.memory_stats()["requested_bytes.all.peak"]) - before


def strided(x: Tensor) -> Tensor:
    """The same values in rows of a wider matrix."""
    wide = x.new_zeros(len(x), x.shape[1] + 24)
    wide[:, 5:-19] = x.detach()
    return wide[:, 5:-19].requires_grad_(x.requires_grad)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("rows", "classes"), [(4096, 1000), (64, 131072)])
def test_a_call_takes_the_gradients_and_a_little_of_each_row(rows: int, classes: int, wide: bool) -> None:
    given = inputs(rows, classes)
    if wide:
        given = [*(strided(x) for x in given[:3]), given[3]]
    beside = PER_ROW * rows + OVERHEAD
    assert peak(given, gradients=False) <= beside
    for form in FORMS:
        assert 2 * 4 * rows * classes <= peak(given, True, form) <= 2 * 4 * rows * classes + beside


@pytest.mark.parametrize("reduction", ["sum", "none"])  # in one visit of each row, and in two
def test_rows_beyond_two_to_the_31_elements(reduction: str) -> None:
    rows, classes = 17000, 131072
    if torch.cuda.mem_get_info()[0] < 5 * 2 * rows * classes:
        pytest.skip("needs five times 4.5 GB of free GPU memory")
    g = torch.Generator("cuda").manual_seed(0)
    teacher, student = (torch.randn(rows, classes, generator=g, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    labels = torch.randint(0, classes, (rows,), generator=g, device="cuda")

    def gradient(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        loss = udskd.dual_student_loss(t, x, None, y, reduction=reduction, backend="cuda").loss  # type: ignore[arg-type]
        return torch.autograd.grad(2 * loss.sum(), x)[0]  # twice, so that what is ready is scaled

    whole = gradient(student, teacher, labels)
    border = 2**31 // classes
    for k in (0, border - 1, border, border + 1, rows - 1):
        alone = gradient(student[k : k + 1], teacher[k : k + 1], labels[k : k + 1])
        torch.testing.assert_close(whole[k : k + 1], alone, rtol=2**-6, atol=1e-8)  # elements are about 1e-5
