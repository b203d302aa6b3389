"""The operator with PyTorch's other features: opcheck, torch.compile, export, autocast, CUDA graphs, second
derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import udskd
from tests.loss.helpers.inputs import LossInputs, backends, device_of, make
from udskd.loss import ops
from udskd.loss.options import Modes, Scalars

NATIVE = backends("cpu", "emulated", "cuda")
Arguments = tuple[Any, ...]


def operators(backend: str) -> Any:
    return ops.OPERATORS[backend].namespace


def arguments(
    problem: LossInputs,
    *,
    reduction: int = 0,
    coefficients: bool = False,
    certainty: bool = False,
    normalized: bool = True,
) -> Arguments:
    """The arguments of the compiled operator."""
    rows, device = len(problem.student_a), problem.student_a.device
    weight = torch.full((), 0.5, device=device, requires_grad=True)
    each = torch.rand(rows, device=device)
    tensors = (weight, each.clone().requires_grad_(), weight.detach()) if coefficients else (None, None, None)
    return (
        *problem.inputs,
        *tensors,
        each if certainty else None,
        [*Scalars(peer_temperature=2.0, label_smoothing=0.1)],
        [*Modes(normalize_weights=int(normalized), detach_peer=0, reduction=reduction)],
    )


def layouts() -> dict[str, LossInputs]:
    made = make(6, 10, dtype=torch.float32)

    def each(change: Any) -> LossInputs:
        t, a, b = (change(x.detach()).requires_grad_() for x in made.logits)
        return LossInputs(t, a, b, None if made.target is None else made.target[: len(a)] % a.shape[1])

    return {
        "contiguous": each(lambda x: x.clone()),
        "transposed": each(lambda x: x.t().contiguous().t()),
        "sliced": each(lambda x: x[:, 1:9]),
        "every other row": each(lambda x: x[::2]),
        "expanded": each(lambda x: x[:1].expand(6, 10)),
        "empty": each(lambda x: x[:0]),
        "half": each(lambda x: x.half()),
    }


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("backend", NATIVE)
def test_opcheck_of_the_forward_operator(backend: str, layout: str) -> None:
    problem = layouts()[layout].like(device=device_of(backend)) if backend == "cuda" else layouts()[layout]
    # The mean over no rows is NaN, which opcheck reports as a difference.
    torch.library.opcheck(
        operators(backend).dual_student_loss.default, arguments(problem, reduction=int(layout == "empty"))
    )


@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("backend", NATIVE)
def test_opcheck_with_tensor_coefficients_and_every_reduction(backend: str, reduction: int) -> None:
    problem = make(5, 8, dtype=torch.float32).like(device=device_of(backend))
    full = arguments(problem, reduction=reduction, coefficients=True, certainty=True)
    torch.library.opcheck(operators(backend).dual_student_loss.default, full)


@pytest.mark.parametrize("missing", [{"teacher": False}, {"two": False}, {"target": None}, {"target": "soft"}])
@pytest.mark.parametrize("backend", NATIVE)
def test_opcheck_without_some_inputs(backend: str, missing: dict[str, Any]) -> None:
    problem = make(5, 8, dtype=torch.float32, **missing).like(device=device_of(backend))
    torch.library.opcheck(operators(backend).dual_student_loss.default, arguments(problem))


@pytest.mark.parametrize(
    "wanted", [(True, True, True, True), (False, True, False, False), (False, False, False, False)]
)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded", "empty"])
@pytest.mark.parametrize("backend", NATIVE)
def test_opcheck_of_the_backward_operator(backend: str, layout: str, wanted: tuple[bool, ...]) -> None:
    problem = layouts()[layout].like(device=device_of(backend)) if backend == "cuda" else layouts()[layout]
    fixed = [None if x is None else x.detach() for x in problem.inputs]
    full = (*fixed, *arguments(problem)[4:])
    loss, _, _, _, rows = operators(backend).dual_student_loss.default(*full)
    backward = (torch.ones_like(loss), rows, *full, list(wanted))
    torch.library.opcheck(operators(backend).dual_student_loss_backward.default, backward)


def fused_arguments(problem: LossInputs, *wanted: bool) -> Arguments:
    """The same without normalized weights, and with gradients instead of tensors that require them."""
    fixed = [None if x is None else x.detach() for x in problem.inputs]
    return *fixed, *arguments(problem, normalized=False)[4:], list(wanted)


@pytest.mark.parametrize("wanted", [(True, True, True), (False, True, False), (False, False, False)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded"])
@pytest.mark.parametrize("backend", NATIVE)
def test_opcheck_of_the_fused_operator(backend: str, layout: str, wanted: tuple[bool, ...]) -> None:
    problem = layouts()[layout].like(device=device_of(backend)) if backend == "cuda" else layouts()[layout]
    torch.library.opcheck(operators(backend).dual_student_loss_fused.default, fused_arguments(problem, *wanted))


@pytest.mark.parametrize("backend", backends("emulated", "cuda"))
def test_opcheck_of_the_operator_that_scales_gradients(backend: str) -> None:
    problem = make(6, 10, dtype=torch.float32).like(device=device_of(backend))
    fused = operators(backend).dual_student_loss_fused.default
    loss, _, _, _, *kept = fused(*fused_arguments(problem, False, True, True))
    torch.library.opcheck(operators(backend).dual_student_loss_scale.default, (torch.full_like(loss, 2.5), *kept))


def train_step(model: nn.Module, x: Tensor, teacher: Tensor, target: Tensor, backend: str) -> Tensor:
    a, b = model(x).chunk(2, -1)
    return udskd.dual_student_loss(
        teacher, a.contiguous(), b.contiguous(), target, backend=backend, temperature=3.0
    ).loss  # type: ignore[arg-type]


@pytest.mark.slow_for(cases=lambda backend, dynamic: backend == "reference" or not dynamic)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", backends())
def test_compiled_without_graph_breaks_equals_eager(backend: str, dynamic: bool) -> None:
    device = device_of(backend)
    torch.manual_seed(0)
    model, made = nn.Linear(5, 20).to(device), make(8, 10, dtype=torch.float32).like(device=device)
    assert made.teacher is not None
    torch.compiler.reset()
    compiled = torch.compile(train_step, fullgraph=True, dynamic=dynamic)
    for rows in (8, 6):
        x = torch.randn(rows, 5, device=device)
        args = (x, made.teacher.detach()[:rows], made.target[:rows], backend)  # type: ignore[index]
        results = []
        for step in (train_step, compiled):
            model.zero_grad()
            loss = step(model, *args)
            loss.backward()
            results.append((loss.detach(), model.weight.grad.clone()))  # type: ignore[union-attr]
        torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"detach_peer": False, "reduction": "none"}, {"uncertainty": "margin", "normalize_weights": True}]
)
@pytest.mark.parametrize("backend", NATIVE)
def test_compiled_with_options_and_a_learned_coefficient(backend: str, options: dict[str, Any]) -> None:
    made = make(6, 9, dtype=torch.float32).like(device=device_of(backend))
    weight = torch.tensor(0.4, device=device_of(backend), requires_grad=True)

    def loss(t: Tensor, a: Tensor, b: Tensor, w: Tensor) -> Tensor:
        return udskd.dual_student_loss(t, a, b, made.target, kd_weight=w, backend=backend, **options).loss.sum()  # type: ignore[arg-type]

    torch.compiler.reset()
    leaves = (*made.logits, weight)
    eager = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*leaves), leaves)
    torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("backend", NATIVE)
def test_export(backend: str) -> None:
    class Step(nn.Module):
        def forward(self, t: Tensor, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
            return udskd.dual_student_loss(t, a, b, y, backend=backend).loss  # type: ignore[arg-type]

    inputs = tuple(
        x.detach() for x in make(6, 9, dtype=torch.float32).like(device=device_of(backend)).inputs if x is not None
    )
    rows = torch.export.Dim("rows", min=2, max=64)
    exported = torch.export.export(Step(), inputs, dynamic_shapes=tuple({0: rows} for _ in inputs))
    small = tuple(x[:3] for x in inputs)
    assert torch.equal(exported.module()(*small), Step()(*small))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", backends())
def test_autocast_neither_casts_nor_copies(backend: str, dtype: torch.dtype) -> None:
    made = make(6, 9, dtype=dtype).like(device=device_of(backend))
    expected = udskd.dual_student_loss(*made.inputs, backend=backend)
    with torch.autocast(device_of(backend), dtype=dtype):
        out = udskd.dual_student_loss(*made.inputs, backend=backend)
    assert torch.equal(out.loss, expected.loss)
    assert out.loss.dtype == torch.float32
    assert torch.autograd.grad(out.loss, made.student_a)[0].dtype == dtype


@pytest.mark.parametrize("wrt", ["student_a", "coefficient"])
@pytest.mark.parametrize("backend", NATIVE)
def test_a_second_derivative_is_refused_with_a_way_out(backend: str, wrt: str) -> None:
    made = make(4, 6).like(device=device_of(backend))
    weight = torch.tensor(0.5, dtype=torch.float64, device=device_of(backend), requires_grad=True)
    loss = udskd.dual_student_loss(*made.inputs, kd_weight=weight, backend=backend).loss  # type: ignore[arg-type]
    first = torch.autograd.grad(loss, made.student_a if wrt == "student_a" else weight, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        torch.autograd.grad(first.square().sum(), made.student_a)


def test_the_reference_has_second_derivatives() -> None:
    made = make(2, 3, two=False, teacher=False)
    assert torch.autograd.gradgradcheck(
        lambda a: udskd.dual_student_loss(None, a, None, made.target, backend="reference").loss, made.student_a
    )


@pytest.mark.parametrize("backend", backends("cuda"))
def test_nothing_waits_for_the_gpu(backend: str) -> None:
    made = make(6, 9, dtype=torch.float32).like(device="cuda")
    for current in (backend, "reference"):
        udskd.dual_student_loss(*made.inputs, backend=current).loss.backward()  # type: ignore[arg-type]
        torch.cuda.set_sync_debug_mode("error")
        try:
            udskd.dual_student_loss(*made.inputs, backend=current).loss.backward()  # type: ignore[arg-type]
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", backends("cuda"))
def test_a_cuda_graph_replays(backend: str) -> None:
    made = make(64, 100, dtype=torch.float32).like(device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        udskd.dual_student_loss(*made.inputs, backend=backend).loss.backward()  # type: ignore[arg-type]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = udskd.dual_student_loss(*made.inputs, backend=backend)  # type: ignore[arg-type]
        gradients = torch.autograd.grad(out.loss, made.logits)
    for scale in (1.0, 0.5, 2.0):
        with torch.no_grad():
            made.student_a.mul_(scale)
        graph.replay()
        expected = udskd.dual_student_loss(*made.inputs, backend=backend)  # type: ignore[arg-type]
        assert torch.equal(out.loss, expected.loss)
        assert all(
            torch.equal(x, y) for x, y in zip(gradients, torch.autograd.grad(expected.loss, made.logits), strict=True)
        )
