"""Which form of the gradient runs, and what memory each form takes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import udskd
from tests.ops.problems import OPTIONS, Problem, backends, make
from udskd import forms

FORMS = ("fused", "recompute")
pytestmark = [mark for parameter in backends("cpu") for mark in parameter.marks]


class Calls(TorchDispatchMode):
    """What the compiled operators are asked for: "loss", or "gradients"; and what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.forward: list[str] = []
        self.backward: list[str] = []
        self.outputs: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "udskd":
            self.outputs += out
            if "backward" in func.name():
                self.backward.append("gradients")
            else:
                self.forward.append("gradients" if func.name().endswith("fused") and any(args[-3:]) else "loss")
        return out


def form_of(problem: Problem, **options: Any) -> str:
    """What a call does, seen from outside."""
    with Calls() as calls:
        loss = udskd.dual_student_loss(*problem.inputs, backend="cpu", **options).loss
        if not loss.requires_grad:
            assert calls.forward == ["loss"]
            return "loss"
        loss.sum().backward()
    asked = {(("gradients",), ()): "fused", (("loss",), ("gradients",)): "recompute"}
    return asked[tuple(calls.forward), tuple(calls.backward)]


def frozen(problem: Problem, *learning: int) -> Problem:
    """The problem with gradients only for these of teacher, student_a and student_b."""
    logits = [x.detach().requires_grad_(k in learning) for k, x in enumerate(problem.logits)]
    return Problem(*logits, problem.target)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_reduced_loss_is_fused_but_not_in_float16(dtype: torch.dtype, options: dict[str, Any]) -> None:
    fusable = dtype != torch.float16 and options.get("reduction") != "none"
    assert form_of(make(dtype=dtype), **options) == ("fused" if fusable else "recompute")


@pytest.mark.parametrize("name", ["ce_weight", "kd_weight", "peer_weight"])
def test_a_coefficient_that_learns_is_recomputed_and_one_that_does_not_is_fused(name: str) -> None:
    made = make(dtype=torch.float32)
    for weight in (torch.tensor(0.5), torch.rand(7)):
        assert form_of(made, **{name: weight}) == "fused"
        assert form_of(made, **{name: weight.requires_grad_()}) == "recompute"
        assert form_of(frozen(made), **{name: weight}) == "recompute"


def test_a_float16_teacher_forbids_fusing_only_if_it_learns() -> None:
    made = make(dtype=torch.float32)
    mixed = Problem(made.logits[0].detach().half(), *made.inputs[1:])
    assert form_of(mixed) == "fused"
    assert form_of(Problem(mixed.logits[0].requires_grad_(), *made.inputs[1:])) == "recompute"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_without_anything_to_learn_there_are_no_gradients(dtype: torch.dtype, reduction: str) -> None:
    made = make(dtype=dtype)
    assert form_of(frozen(made), reduction=reduction) == "loss"
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert form_of(made, reduction=reduction) == "loss"


@pytest.mark.parametrize("learning", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)], ids=str)
def test_whoever_learns_the_loss_is_fused(learning: tuple[int, ...]) -> None:
    assert form_of(frozen(make(dtype=torch.float32), *learning)) == "fused"


def test_parameters_are_fused_as_tensors_are() -> None:
    made = make(dtype=torch.float32)
    assert form_of(Problem(made.teacher, torch.nn.Parameter(made.student_a.detach()), None, made.target)) == "fused"


def test_only_recompute_recomputes_what_could_be_fused() -> None:
    with forms.only("recompute"):
        assert form_of(make(dtype=torch.float32)) == "recompute"


@pytest.mark.parametrize("why", ["float16", "none", "learned coefficient"])
def test_only_fused_refuses_what_cannot_be(why: str) -> None:
    made = make(dtype=torch.float16 if why == "float16" else torch.float32)
    options: dict[str, Any] = {
        "float16": {},
        "none": {"reduction": "none"},
        "learned coefficient": {"kd_weight": torch.tensor(0.5, requires_grad=True)},
    }[why]
    with forms.only("fused"):
        with pytest.raises(ValueError, match="the fused form needs"):
            udskd.dual_student_loss(*made.inputs, backend="cpu", **options)
        with torch.no_grad():  # nothing to fuse
            udskd.dual_student_loss(*made.inputs, backend="cpu", **options)
    assert form_of(made, **options) == "recompute"


def test_only_ends_with_its_block_even_by_an_exception() -> None:
    made = make(dtype=torch.float32)
    with forms.only("recompute"):
        with forms.only("fused"):
            assert form_of(made) == "fused"
        assert form_of(made) == "recompute"
        with pytest.raises(ValueError, match="temperature"), forms.only("fused"):
            udskd.dual_student_loss(*made.inputs, temperature=0.0)
        assert form_of(made) == "recompute"
    assert form_of(made) == "fused"


def operator(problem: Problem, flags: tuple[bool, ...], reduction: int = 0) -> list[Tensor]:
    inputs = [None if x is None else x.detach() for x in problem.inputs]
    numbers = (1.0, 0.9, 0.5, 4.0, 4.0, 1.0, 0.0, 0, False, False, True, -100, reduction)
    return list(torch.ops.udskd.dual_student_loss_fused.default(*inputs, None, None, None, None, *numbers, *flags))


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("missing", [{}, {"teacher": False}, {"two": False}], ids=str)
def test_the_operator_gives_an_empty_tensor_for_a_gradient_nobody_wants(
    missing: dict[str, bool], flags: tuple[bool, ...]
) -> None:
    made = make(dtype=torch.float32, **missing)
    *outputs, teacher, a, b = operator(made, flags)
    there = [wanted and x is not None for wanted, x in zip(flags, made.inputs[:3], strict=True)]
    assert [x.numel() for x in (teacher, a, b)] == [made.student_a.numel() * x for x in there]
    assert all(torch.equal(x, y) for x, y in zip(outputs, operator(made, (False, False, False))[:5], strict=True))


def test_the_operator_has_no_gradient_of_an_unreduced_loss() -> None:
    made = make(dtype=torch.float32)
    assert operator(made, (False, False, False), reduction=2)[0].shape == (7,)
    with pytest.raises(RuntimeError, match="depends on grad_output"):
        operator(made, (False, True, False), reduction=2)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_without_grad_nothing_of_the_logits_size_is_made(off: Any) -> None:
    made = make(4, 500, dtype=torch.float32)
    with off(), Calls() as calls:
        udskd.dual_student_loss(*made.inputs, backend="cpu")
    assert calls.outputs
    assert max(x.numel() for x in calls.outputs) <= 4 * 8


@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_the_logits_size_is_saved_but_the_inputs(form: Any) -> None:
    made = make(4, 500, dtype=torch.float32)
    inputs = {x.data_ptr() for x in made.logits}
    packed: list[Tensor] = []
    with forms.only(form), torch.autograd.graph.saved_tensors_hooks(lambda x: (packed.append(x), x)[1], lambda x: x):
        udskd.dual_student_loss(*made.inputs, backend="cpu")
    assert packed
    assert all(x.data_ptr() in inputs or x.numel() < made.student_a.numel() / 4 for x in packed)


@pytest.mark.parametrize("upstream", [1.0, 2.5])
@pytest.mark.parametrize("learning", [(1,), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_a_step_takes_the_memory_of_its_gradients(form: Any, learning: tuple[int, ...], upstream: float) -> None:
    made = frozen(make(16, 5000, dtype=torch.float32), *learning)
    one, given = made.student_a.numel() * 4, torch.tensor(upstream)
    peaks = []
    for part in ("loss alone", "step"):
        with (
            forms.only(form),
            profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled,
        ):
            loss = udskd.dual_student_loss(*made.inputs, backend="cpu").loss
            if part == "step":
                kept = torch.autograd.grad(loss, [x for x in made.logits if x.requires_grad], given)
        changes = [e.nbytes() for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
        peaks.append(max(itertools.accumulate(changes)) / one)
    assert peaks[0] == pytest.approx(len(kept) if form == "fused" else 0, abs=0.05)
    assert peaks[1] == pytest.approx(len(kept), abs=0.05)
