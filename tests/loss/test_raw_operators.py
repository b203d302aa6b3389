"""The raw operators, torch.ops.udskd, which can be called without the checks in Python: any call returns or raises an
exception, and accesses no memory beyond that of its arguments (`make sanitize` detects such an access)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.loss.helpers import hostile
from tests.loss.helpers.inputs import backends, device_of
from udskd.loss import ops
from udskd.loss.options import Modes, Scalars

NATIVE = backends("cpu", "emulated")
EVERYWHERE = backends("cpu", "emulated", "cuda")
STUDENTS_ALONE = (False, True, True, False)
ROWS, CLASSES = hostile.ROWS, hostile.CLASSES
CALLS = int(os.environ.get("UDSKD_HOSTILE_CALLS", "300"))
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="calls are made in forked children")


def assert_all_survive(calls: list[hostile.Call]) -> None:
    returned, death = hostile.survivors(calls)
    assert death is None, death
    assert 0 < returned < len(calls)  # some calls are good, and some are not


@needs_fork
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("backend", NATIVE)
def test_hostile_calls_of_the_loss_end_without_a_signal(backend: str, seed: int) -> None:
    operators = ops.OPERATORS[backend]
    assert_all_survive(hostile.calls(operators.namespace, operators.columns, seed, CALLS, images=False))


@needs_fork
@pytest.mark.parametrize("seed", range(2))
def test_hostile_calls_of_the_image_operators_end_without_a_signal(seed: int) -> None:
    pytest.importorskip("udskd._C")
    assert_all_survive(hostile.calls(torch.ops.udskd, 0, seed, CALLS, images=True))


@dataclass
class Arguments:
    """The arguments of the forward operator, by name, and those of the backward operator."""

    teacher: Tensor | None
    student_a: Tensor
    student_b: Tensor | None
    target: Tensor | None
    ce_weights: Tensor | None = None
    kd_weights: Tensor | None = None
    peer_weights: Tensor | None = None
    certainty: Tensor | None = None
    scalars: list[float] = field(default_factory=lambda: [*Scalars()])
    modes: list[int] = field(default_factory=lambda: [*Modes()])

    @staticmethod
    def good(backend: str) -> Arguments:
        g, device = torch.Generator().manual_seed(0), device_of(backend)
        t, a, b = (torch.randn(ROWS, CLASSES, generator=g).to(device) for _ in range(3))
        return Arguments(t, a, b, torch.arange(ROWS, device=device))

    def forward(self) -> list[Any]:
        return list(vars(self).values())

    def backward(
        self, grad_loss: Tensor, rows: Tensor, needs: Sequence[bool] = (False, True, True, False)
    ) -> list[Any]:
        return [grad_loss, rows, *self.forward(), needs]


def scalars(**changes: float) -> dict[str, Any]:
    return {"scalars": [*Scalars(**changes)]}


def modes(**changes: int) -> dict[str, Any]:
    return {"modes": [*Modes(**changes)]}


LOGITS = ("teacher", "student_a", "student_b")
WRONG: dict[str, tuple[Callable[[Tensor], dict[str, Any]], str]] = {
    "no student_a": (lambda a: {"student_a": None}, "student_a must be a tensor, got None"),
    "no classes": (lambda a: dict.fromkeys(LOGITS, a[:, :0]), "two classes"),
    "one class": (lambda a: dict.fromkeys(LOGITS, a[:, :1]), "two classes"),
    "one dimension": (lambda a: {"student_a": a[0]}, "student_a"),
    "integers": (lambda a: {"student_a": a.long()}, "student_a must be floating"),
    "bool teacher": (lambda a: {"teacher": a > 0}, "teacher must be floating"),
    "complex teacher": (lambda a: {"teacher": a.to(torch.complex64)}, "teacher must be floating"),
    "float8 student_b": (lambda a: {"student_b": a.to(torch.float8_e4m3fn)}, "student_b must be floating"),
    "students of two dtypes": (lambda a: {"student_b": a.half()}, "student_b must have student_a's dtype"),
    "fewer rows": (lambda a: {"teacher": a[:2]}, "teacher must be floating and have the shape"),
    "more classes": (lambda a: {"student_b": torch.cat([a, a], 1)}, "student_b"),
    "int32 labels": (lambda a: {"target": torch.zeros(ROWS, dtype=torch.int32, device=a.device)}, "labels"),
    "int64 distribution": (lambda a: {"target": a.long()}, "target must be floating"),
    "too few labels": (lambda a: {"target": torch.zeros(2, dtype=torch.long, device=a.device)}, "labels"),
    "coefficients of another dtype": (lambda a: {"kd_weights": a[:, 0].double()}, "kd_weights"),
    "too few coefficients": (lambda a: {"ce_weights": a[:2, 0].contiguous()}, "ce_weights"),
    "coefficients of two dimensions": (lambda a: {"peer_weights": a}, "peer_weights"),
    "one certainty for all": (lambda a: {"certainty": a[0, 0].clone()}, "certainty"),
    "storage too small": (lambda a: {"teacher": hostile.shrunk(a)}, "teacher reaches beyond the end"),
    "labels beyond their storage": (
        lambda a: {"target": hostile.shrunk(torch.arange(ROWS, device=a.device))},
        "target reaches beyond the end",
    ),
    "temperature 0": (lambda a: scalars(temperature=0.0), "temperature must be from"),
    "temperature NaN": (lambda a: scalars(peer_temperature=math.nan), "peer_temperature must be from"),
    "temperature too high": (lambda a: scalars(uncertainty_temperature=1e20), "uncertainty_temperature must be from"),
    "smoothing of 1": (lambda a: scalars(label_smoothing=1.0), "label_smoothing"),
    "smoothing NaN": (lambda a: scalars(label_smoothing=math.nan), "label_smoothing"),
    "negative coefficient": (lambda a: scalars(ce_weight=-1.0), "ce_weight"),
    "infinite coefficient": (lambda a: scalars(kd_weight=math.inf), "kd_weight"),
    "coefficient NaN": (lambda a: scalars(peer_weight=math.nan), "peer_weight"),
    "unknown uncertainty": (lambda a: modes(uncertainty=99), "uncertainty must be from 0 to 3, got 99"),
    "negative uncertainty": (lambda a: modes(uncertainty=-1), "uncertainty must be from"),
    "unknown reduction": (lambda a: modes(reduction=3), "reduction must be from 0 to 2, got 3"),
    "trust of 2": (lambda a: modes(trust_uncertain=2), "trust_uncertain must be from 0 to 1, got 2"),
    "normalization of -1": (lambda a: modes(normalize_weights=-1), "normalize_weights must be from 0 to 1, got -1"),
    "detachment of 2**40": (lambda a: modes(detach_peer=2**40), "detach_peer must be from 0 to 1"),
    "no scalars": (lambda a: {"scalars": []}, "scalars must have 7 elements, got 0"),
    "a scalar too few": (lambda a: {"scalars": [*Scalars()][:-1]}, "scalars must have 7 elements, got 6"),
    "a scalar too many": (lambda a: {"scalars": [*Scalars(), 0.0]}, "scalars must have 7 elements, got 8"),
    "no modes": (lambda a: {"modes": []}, "modes must have 6 elements, got 0"),
    "a mode too few": (lambda a: {"modes": [*Modes()][:-1]}, "modes must have 6 elements, got 5"),
    "a mode too many": (lambda a: {"modes": [*Modes(), 0]}, "modes must have 6 elements, got 7"),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("backend", EVERYWHERE)
def test_a_wrong_argument_is_named(backend: str, change: Callable[[Tensor], dict[str, Any]], words: str) -> None:
    good = Arguments.good(backend)
    wrong = replace(good, **change(good.student_a))
    with pytest.raises(RuntimeError, match=words):
        ops.OPERATORS[backend].namespace.dual_student_loss.default(*wrong.forward())
    with pytest.raises(RuntimeError, match=words):
        ops.OPERATORS[backend].namespace.dual_student_loss_fused.default(*wrong.forward(), [False, True, True])
    rows, one = saved(backend, good), torch.ones((), device=good.student_a.device)
    with pytest.raises(RuntimeError, match=words):
        run_backward(backend, wrong, one, rows)


@pytest.mark.parametrize("needs", [[], [True, True], [True] * 9], ids=str)
@pytest.mark.parametrize("backend", EVERYWHERE)
def test_a_wrong_number_of_needs_is_refused(backend: str, needs: list[bool]) -> None:
    good = Arguments.good(backend)
    one, rows = torch.ones((), device=good.student_a.device), saved(backend, good)
    with pytest.raises(RuntimeError, match=f"needs must have 3 elements, got {len(needs)}"):
        ops.OPERATORS[backend].namespace.dual_student_loss_fused.default(*good.forward(), needs)
    with pytest.raises(RuntimeError, match=f"needs must have 4 elements, got {len(needs)}"):
        ops.OPERATORS[backend].namespace.dual_student_loss_backward.default(*good.backward(one, rows, needs))


def saved(backend: str, arguments: Arguments) -> Tensor:
    rows: Tensor = ops.OPERATORS[backend].namespace.dual_student_loss.default(*arguments.forward())[4]
    return rows


def run_backward(backend: str, arguments: Arguments, grad_loss: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    operator = ops.OPERATORS[backend].namespace.dual_student_loss_backward.default
    out: tuple[Tensor, ...] = operator(*arguments.backward(grad_loss, rows))
    return out


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:2],
        lambda rows: rows[:, :1],
        lambda rows: rows.double(),
        lambda rows: rows[0],
        lambda rows: torch.cat([rows, rows], 1),
        hostile.shrunk,
    ],
    ids=["fewer rows", "fewer columns", "another dtype", "one dimension", "more columns", "storage too small"],
)
@pytest.mark.parametrize("backend", EVERYWHERE)
def test_what_was_saved_is_checked_before_the_backward_pass(backend: str, change: Callable[[Tensor], Tensor]) -> None:
    good = Arguments.good(backend)
    one = torch.ones((), device=good.student_a.device)
    with pytest.raises(RuntimeError, match="rows "):
        run_backward(backend, good, one, change(saved(backend, good)))


@pytest.mark.parametrize("backend", EVERYWHERE)
def test_saved_rows_may_lie_anywhere_in_memory(backend: str) -> None:
    good = Arguments.good(backend)
    one, rows = torch.ones((), device=good.student_a.device), saved(backend, good)
    expected = run_backward(backend, good, one, rows)
    within = torch.cat([rows.new_zeros(1), rows.flatten()])[1:].view(rows.shape)
    for other in (hostile.wide(rows), rows.t().contiguous().t(), within):
        assert all(torch.equal(x, y) for x, y in zip(run_backward(backend, good, one, other), expected, strict=True))


@pytest.mark.parametrize("label", [CLASSES, -1, 2**62, -(2**63)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_that_is_no_class_is_named_in_the_backward_pass_too(label: int, smoothing: float) -> None:
    good = replace(Arguments.good("cpu"), **scalars(label_smoothing=smoothing))
    rows, other = saved("cpu", good), torch.arange(ROWS)
    other[3] = label
    with pytest.raises(IndexError, match=rf"^target: row 3 has label {label}, expected 0 to {CLASSES - 1}$"):
        run_backward("cpu", replace(good, target=other), torch.ones(()), rows)


@pytest.mark.parametrize("label", [CLASSES, -1, 2**62, -(2**63)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("backend", backends("emulated", "cuda"))
def test_on_a_gpu_a_label_that_is_no_class_stays_within_its_row(backend: str, label: int, smoothing: float) -> None:
    good = replace(Arguments.good(backend), **scalars(label_smoothing=smoothing))
    rows, one = saved(backend, good), torch.ones((), device=good.student_a.device)
    expected = run_backward(backend, good, one, rows)[1]
    other = torch.arange(ROWS, device=one.device)
    other[3] = label
    found = run_backward(backend, replace(good, target=other), one, rows)[1]
    kept = [0, 1, 2, 4]
    assert torch.equal(found[kept], expected[kept])


@pytest.mark.parametrize("backend", backends("emulated", "cuda"))
def test_gradients_that_are_to_be_scaled_are_checked(backend: str) -> None:
    good = Arguments.good(backend)
    rows, one = saved(backend, good), torch.ones((), device=good.student_a.device)
    a, none = good.student_a, good.student_a.new_empty(0)
    scale = ops.OPERATORS[backend].namespace.dual_student_loss_scale.default
    for wrong in (a.long(), a.double(), a[:2].clone(), a.t(), a[:, ::2]):
        with pytest.raises(RuntimeError, match="the gradient of student_a"):
            scale(one, rows, none, wrong, none)
    with pytest.raises(RuntimeError, match="the gradient of student_b"):
        scale(one, rows, none, a.clone(), a[:, :4].clone())
    with pytest.raises(RuntimeError, match="grad_loss"):
        scale(one.double(), rows, none, a.clone(), none)
    with pytest.raises(RuntimeError, match="rows"):
        scale(one, rows[:, :3].clone(), none, a.clone(), none)


@pytest.mark.parametrize("which", ["teacher", "student_a", "student_b", "soft target", "labels", "kd_weights"])
@pytest.mark.parametrize("backend", NATIVE)
def test_an_odd_address_changes_nothing(backend: str, which: str) -> None:
    good = replace(Arguments.good(backend), kd_weights=torch.rand(ROWS))
    if which == "soft target":
        good = replace(good, target=torch.softmax(good.student_a, -1))
    name = {"soft target": "target", "labels": "target"}.get(which, which)
    odd = replace(good, **{name: hostile.unaligned(getattr(good, name))})
    assert getattr(odd, name).data_ptr() % 2 == 1
    operator = ops.OPERATORS[backend].namespace.dual_student_loss.default
    for x, y in zip(operator(*odd.forward()), operator(*good.forward()), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("place", [0, 2, 3])
@pytest.mark.parametrize("backend", NATIVE)
def test_a_tensor_on_another_device_does_not_make_fakes_of_the_others(backend: str, place: int) -> None:
    arguments = Arguments.good(backend).forward()
    arguments[place] = arguments[place].to("meta")
    with pytest.raises(RuntimeError, match="on one device, got meta"):
        ops.OPERATORS[backend].namespace.dual_student_loss.default(*arguments)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_tensors_of_two_devices_are_refused(place: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    arguments = Arguments.good("cuda").forward()
    arguments[place] = arguments[place].cpu()
    with pytest.raises(RuntimeError):
        torch.ops.udskd.dual_student_loss.default(*arguments)


@pytest.mark.parametrize(
    "wrong", [{"classes": 0}, {"classes": 2**40}, {"rows": -1}, {"sms": 0}, {"shared": -1}, {"l2": -1}], ids=str
)
def test_a_plan_of_nothing_is_refused(wrong: dict[str, int]) -> None:
    native = pytest.importorskip("udskd._C")
    with pytest.raises(ValueError, match="plan: "):
        native.plan(**({"rows": 4, "classes": 10} | wrong))
