"""Which form of the gradients runs, and the memory of each form."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import udskd
from tests.loss.helpers import forms
from tests.loss.helpers.inputs import OPTIONS, LossInputs, backends, can_fuse, device_of, make, on_gpu, same
from udskd.loss import ops
from udskd.loss.options import Modes, Scalars

FORMS = ("fused", "recompute")
NATIVE = backends("cpu", "emulated", "cuda")


class Calls(TorchDispatchMode):
    """Records the calls of the compiled operators, as "loss", "gradients" or "scale", and their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.forward: list[str] = []
        self.backward: list[str] = []
        self.outputs: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace in ("udskd", "udskd_emulated"):
            self.outputs += out or ()
            if func.name().endswith(("backward", "scale")):
                self.backward.append("scale" if func.name().endswith("scale") else "gradients")
            else:
                self.forward.append("gradients" if func.name().endswith("fused") and any(args[-1]) else "loss")
        return out


def put(backend: str, *shape: int, dtype: torch.dtype = torch.float32, **options: Any) -> LossInputs:
    return make(*shape, dtype=dtype, **options).like(device=device_of(backend))


def form_of(backend: str, problem: LossInputs, **options: Any) -> str:
    """The form of a call, from the operators that it calls."""
    with Calls() as calls:
        loss = udskd.dual_student_loss(*problem.inputs, backend=backend, **options).loss  # type: ignore[arg-type]
        if not loss.requires_grad:
            assert calls.forward == ["loss"]
            return "loss"
        loss.sum().backward()
    ready = ("scale",) if on_gpu(backend) else ()  # where the host does not read values
    asked = {(("gradients",), ready): "fused", (("loss",), ("gradients",)): "recompute"}
    return asked[tuple(calls.forward), tuple(calls.backward)]


def frozen(problem: LossInputs, *learning: int) -> LossInputs:
    """The inputs, of which only these of teacher, student_a and student_b require gradients."""
    logits = [x.detach().requires_grad_(k in learning) for k, x in enumerate(problem.logits)]
    return LossInputs(*logits, problem.target)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", NATIVE)
def test_a_reduced_loss_is_fused_but_not_in_float16_nor_normalized_on_a_gpu(
    backend: str, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    fusable = dtype != torch.float16 and can_fuse(backend, options)
    assert form_of(backend, put(backend, dtype=dtype), **options) == ("fused" if fusable else "recompute")


@pytest.mark.parametrize("name", ["ce_weight", "kd_weight", "peer_weight"])
@pytest.mark.parametrize("backend", NATIVE)
def test_a_coefficient_that_learns_is_recomputed_and_one_that_does_not_is_fused(backend: str, name: str) -> None:
    made = put(backend)
    device = device_of(backend)
    for weight in (torch.tensor(0.5, device=device), torch.rand(7, device=device)):
        assert form_of(backend, made, **{name: weight}) == "fused"
        assert form_of(backend, made, **{name: weight.requires_grad_()}) == "recompute"
        assert form_of(backend, frozen(made), **{name: weight}) == "recompute"


@pytest.mark.parametrize("backend", NATIVE)
def test_a_float16_teacher_forbids_fusing_only_if_it_learns(backend: str) -> None:
    made = put(backend)
    mixed = LossInputs(made.logits[0].detach().half(), *made.inputs[1:])
    assert form_of(backend, mixed) == "fused"
    assert form_of(backend, LossInputs(mixed.logits[0].requires_grad_(), *made.inputs[1:])) == "recompute"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", NATIVE)
def test_without_anything_to_learn_there_are_no_gradients(backend: str, dtype: torch.dtype, reduction: str) -> None:
    made = put(backend, dtype=dtype)
    assert form_of(backend, frozen(made), reduction=reduction) == "loss"
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert form_of(backend, made, reduction=reduction) == "loss"


@pytest.mark.parametrize("learning", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("backend", NATIVE)
def test_the_loss_is_fused_for_any_networks_that_learn(backend: str, learning: tuple[int, ...]) -> None:
    assert form_of(backend, frozen(put(backend), *learning)) == "fused"


@pytest.mark.parametrize("backend", NATIVE)
def test_parameters_are_fused_as_tensors_are(backend: str) -> None:
    made = put(backend)
    student = torch.nn.Parameter(made.student_a.detach())
    assert form_of(backend, LossInputs(made.teacher, student, None, made.target)) == "fused"


@pytest.mark.parametrize("backend", NATIVE)
def test_only_recompute_recomputes_what_could_be_fused(backend: str) -> None:
    with forms.only("recompute"):
        assert form_of(backend, put(backend)) == "recompute"


@pytest.mark.parametrize("why", ["float16", "none", "learned coefficient"])
@pytest.mark.parametrize("backend", NATIVE)
def test_only_fused_refuses_what_cannot_be(backend: str, why: str) -> None:
    made = put(backend, dtype=torch.float16 if why == "float16" else torch.float32)
    options: dict[str, Any] = {
        "float16": {},
        "none": {"reduction": "none"},
        "learned coefficient": {"kd_weight": torch.tensor(0.5, device=device_of(backend), requires_grad=True)},
    }[why]
    with forms.only("fused"):
        with pytest.raises(ValueError, match="the fused form needs"):
            udskd.dual_student_loss(*made.inputs, backend=backend, **options)
        with torch.no_grad():  # nothing to fuse
            udskd.dual_student_loss(*made.inputs, backend=backend, **options)
    assert form_of(backend, made, **options) == "recompute"


@pytest.mark.parametrize("backend", backends("emulated", "cuda"))
def test_only_fused_refuses_normalized_weights_on_a_gpu(backend: str) -> None:
    with forms.only("fused"), pytest.raises(ValueError, match="on a GPU no normalized weights"):
        udskd.dual_student_loss(*put(backend).inputs, normalize_weights=True, backend=backend)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", NATIVE)
def test_only_ends_with_its_block_even_by_an_exception(backend: str) -> None:
    made = put(backend)
    with forms.only("recompute"):
        with forms.only("fused"):
            assert form_of(backend, made) == "fused"
        assert form_of(backend, made) == "recompute"
        with pytest.raises(ValueError, match="temperature"), forms.only("fused"):
            udskd.dual_student_loss(*made.inputs, temperature=0.0, backend=backend)
        assert form_of(backend, made) == "recompute"
    assert form_of(backend, made) == "fused"


def operator(backend: str, problem: LossInputs, flags: tuple[bool, ...], reduction: int = 0) -> list[Tensor]:
    inputs = [None if x is None else x.detach() for x in problem.inputs]
    fused = ops.OPERATORS[backend].namespace.dual_student_loss_fused.default
    return list(fused(*inputs, None, None, None, None, [*Scalars()], [*Modes(reduction=reduction)], flags))


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("missing", [{}, {"teacher": False}, {"two": False}], ids=str)
@pytest.mark.parametrize("backend", NATIVE)
def test_the_operator_returns_an_empty_tensor_for_a_gradient_that_is_not_needed(
    backend: str, missing: dict[str, bool], flags: tuple[bool, ...]
) -> None:
    made = put(backend, **missing)
    *outputs, teacher, a, b = operator(backend, made, flags)
    there = [wanted and x is not None for wanted, x in zip(flags, made.inputs[:3], strict=True)]
    assert [x.numel() for x in (teacher, a, b)] == [made.student_a.numel() * x for x in there]
    # On a GPU the saved rows, the last of the outputs, depend on the kernel.
    same_outputs = slice(4) if on_gpu(backend) else slice(5)
    for x, y in zip(outputs[same_outputs], operator(backend, made, (False,) * 3)[same_outputs], strict=True):
        same(backend, x, y)


@pytest.mark.parametrize("backend", NATIVE)
def test_the_operator_has_no_gradient_of_an_unreduced_loss(backend: str) -> None:
    made = put(backend)
    assert operator(backend, made, (False, False, False), reduction=2)[0].shape == (7,)
    with pytest.raises(RuntimeError, match="depends on grad_output"):
        operator(backend, made, (False, True, False), reduction=2)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("backend", NATIVE)
def test_without_grad_nothing_of_the_logits_size_is_made(backend: str, off: Any) -> None:
    made = put(backend, 4, 500)
    with off(), Calls() as calls:
        udskd.dual_student_loss(*made.inputs, backend=backend)
    assert calls.outputs
    assert max(x.numel() for x in calls.outputs) <= 4 * 20


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", NATIVE)
def test_nothing_of_the_logits_size_is_saved_but_the_inputs(backend: str, form: Any) -> None:
    made = put(backend, 4, 500)
    inputs = {x.data_ptr() for x in made.logits}
    packed: list[Tensor] = []
    with forms.only(form), torch.autograd.graph.saved_tensors_hooks(lambda x: (packed.append(x), x)[1], lambda x: x):
        udskd.dual_student_loss(*made.inputs, backend=backend)
    assert packed
    assert all(x.data_ptr() in inputs or x.numel() < made.student_a.numel() / 4 for x in packed)


def peak(device: str, step: Callable[[], Any]) -> int:
    """The peak memory of a step in bytes, without the memory in use before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        kept = step()
    changes = [e.nbytes() for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    del kept
    return max(itertools.accumulate(changes))


@pytest.mark.parametrize("upstream", [1.0, 2.5])
@pytest.mark.parametrize("learning", [(1,), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", NATIVE)
def test_a_step_takes_the_memory_of_its_gradients(
    backend: str, form: Any, learning: tuple[int, ...], upstream: float
) -> None:
    device = device_of(backend)
    made, given = frozen(put(backend, 16, 5000), *learning), torch.tensor(upstream, device=device)

    def loss() -> Tensor:
        with forms.only(form):
            return udskd.dual_student_loss(*made.inputs, backend=backend).loss  # type: ignore[arg-type]

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(), [x for x in made.logits if x.requires_grad], given)

    step()  # allocates memory that persists, such as a GPU's scratch, which does not count
    one = made.student_a.numel() * 4
    assert peak(device, loss) / one == pytest.approx(len(learning) if form == "fused" else 0, abs=0.05)
    assert peak(device, step) / one == pytest.approx(len(learning), abs=0.05)
