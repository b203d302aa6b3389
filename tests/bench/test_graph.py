"""The provider that replays a CUDA graph, with something that a CPU has in the graph's place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import graph, measure, providers
from bench.graph import Captured, Replayed
from bench.problem import OPTIONS, Case, make
from tests.loss.helpers import eager

LOSS: dict[str, Any] = OPTIONS | {"temperature": 4.0}
CASES = [Case(8, 10, "float64", kind) for kind in ("forward", "forward+backward")]


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Captured]:
    """Those that were made: a replay computes everything again into the same tensors."""
    made = []

    def capture(loss: Any, inputs: tuple[Tensor, ...]) -> Captured:
        with_gradients = torch.is_grad_enabled()
        into = [torch.zeros((), dtype=torch.float64)]
        into += [torch.zeros_like(x) for x in inputs[1:3]] if with_gradients else []

        def replay() -> None:
            with torch.set_grad_enabled(with_gradients):
                value = loss(*inputs)
            found = torch.autograd.grad(value, inputs[1:3]) if with_gradients else ()
            for x, y in zip(into, (value.detach(), *found), strict=True):
                x.copy_(y)

        made.append(Captured(SimpleNamespace(replay=replay), into[0], tuple(into[1:])))
        return made[-1]

    monkeypatch.setattr(graph, "capture", capture)
    return made


def right(*inputs: Tensor) -> Tensor:
    return eager.dual_student_loss(*inputs, **LOSS).loss


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_replay_computes_the_loss_and_its_gradients(captures: list[Captured], case: Case) -> None:
    provider = providers.Provider("udskd-graph", Replayed(right))
    assert measure.check(case, [provider], make(case, "cpu"), LOSS)["udskd-graph"] < 1e-12


def test_the_same_inputs_are_captured_once_and_others_anew(captures: list[Captured]) -> None:
    loss, one, other = Replayed(right), make(CASES[1], "cpu"), make(CASES[1], "cpu", seed=1)
    for problem in (one, one, one, other, other):
        assert torch.equal(loss(*problem).detach(), right(*problem).detach())
    assert len(captures) == 2
    with torch.no_grad():
        assert not loss(*other).requires_grad
    assert (len(captures), captures[2].gradients) == (3, ())


def test_new_values_in_the_same_tensors_are_seen(captures: list[Captured]) -> None:
    loss, problem = Replayed(right), make(CASES[1], "cpu")
    before = loss(*problem).detach().clone()
    with torch.no_grad():
        problem.student_a.mul_(0.5)
    value = loss(*problem)
    assert value.detach() != before
    seen = torch.autograd.grad(value, (problem.student_a, problem.student_b))
    torch.testing.assert_close(seen, torch.autograd.grad(right(*problem), (problem.student_a, problem.student_b)))
    assert len(captures) == 1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_timed_is_the_replay_alone(captures: list[Captured], case: Case) -> None:
    loss = Replayed(right)
    provider = providers.Provider("udskd-graph", loss, captured=loss)
    call = provider.ready(make(case, "cpu"), case.gradients)
    assert call == captures[0].graph.replay
    assert len(captures) == 1


def test_what_is_forgotten_is_captured_anew(captures: list[Captured]) -> None:
    loss, problem = Replayed(right), make(CASES[1], "cpu")
    loss(*problem)
    providers.forget([providers.Provider("udskd-graph", loss, captured=loss)])
    assert (loss.key, loss.captured) == ((), None)
    loss(*problem)
    assert len(captures) == 2


def test_there_are_no_graphs_on_a_cpu() -> None:
    assert providers.available(["udskd-graph"], "cpu", LOSS) == ([], {"udskd-graph": "only for CUDA"})
