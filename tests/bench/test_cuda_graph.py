"""The provider that replays a CUDA graph; a stand-in for the graph runs on the CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import cuda_graph, loss_case, providers
from bench.cuda_graph import CapturedLoss, GraphedLoss
from bench.workload import LOSS_OPTIONS, Case, make_workload
from tests.loss.helpers import eager

LOSS: dict[str, Any] = LOSS_OPTIONS | {"temperature": 4.0}
CASES = [Case(8, 10, "float64", kind) for kind in ("forward", "forward+backward")]


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[CapturedLoss]:
    """All captured losses. Their replay computes everything again into the same tensors."""
    made = []

    def capture(loss: Any, inputs: tuple[Tensor, ...]) -> CapturedLoss:
        with_gradients = torch.is_grad_enabled()
        outputs = [torch.zeros((), dtype=torch.float64)]
        outputs += [torch.zeros_like(x) for x in inputs[1:3]] if with_gradients else []

        def replay() -> None:
            with torch.set_grad_enabled(with_gradients):
                value = loss(*inputs)
            found = torch.autograd.grad(value, inputs[1:3]) if with_gradients else ()
            for x, y in zip(outputs, (value.detach(), *found), strict=True):
                x.copy_(y)

        made.append(CapturedLoss(SimpleNamespace(replay=replay), outputs[0], tuple(outputs[1:])))
        return made[-1]

    monkeypatch.setattr(cuda_graph, "capture", capture)
    return made


def right(*inputs: Tensor) -> Tensor:
    return eager.dual_student_loss(*inputs, **LOSS).loss


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_replay_computes_the_loss_and_its_gradients(captures: list[CapturedLoss], case: Case) -> None:
    provider = providers.Provider("udskd-graph", GraphedLoss(right))
    assert loss_case.check(case, [provider], make_workload(case, "cpu"), LOSS)["udskd-graph"] < 1e-12


def test_the_same_inputs_are_captured_once_and_others_again(captures: list[CapturedLoss]) -> None:
    loss, one, other = GraphedLoss(right), make_workload(CASES[1], "cpu"), make_workload(CASES[1], "cpu", seed=1)
    for workload in (one, one, one, other, other):
        assert torch.equal(loss(*workload).detach(), right(*workload).detach())
    assert len(captures) == 2
    with torch.no_grad():
        assert not loss(*other).requires_grad
    assert (len(captures), captures[2].gradients) == (3, ())


def test_new_values_in_the_same_tensors_are_seen(captures: list[CapturedLoss]) -> None:
    loss, workload = GraphedLoss(right), make_workload(CASES[1], "cpu")
    before = loss(*workload).detach().clone()
    with torch.no_grad():
        workload.student_a.mul_(0.5)
    value = loss(*workload)
    assert value.detach() != before
    found = torch.autograd.grad(value, (workload.student_a, workload.student_b))
    torch.testing.assert_close(found, torch.autograd.grad(right(*workload), (workload.student_a, workload.student_b)))
    assert len(captures) == 1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_only_the_replay_is_timed(captures: list[CapturedLoss], case: Case) -> None:
    loss = GraphedLoss(right)
    provider = providers.Provider("udskd-graph", loss, graphed=loss)
    call = provider.prepare(make_workload(case, "cpu"), case.gradients)
    assert call == captures[0].graph.replay
    assert len(captures) == 1


def test_a_released_graph_is_captured_again(captures: list[CapturedLoss]) -> None:
    loss, workload = GraphedLoss(right), make_workload(CASES[1], "cpu")
    loss(*workload)
    providers.reset([providers.Provider("udskd-graph", loss, graphed=loss)])
    assert (loss.key, loss.captured) == ((), None)
    loss(*workload)
    assert len(captures) == 2


def test_there_are_no_graphs_on_a_cpu() -> None:
    assert providers.available(["udskd-graph"], "cpu", LOSS) == ([], {"udskd-graph": "only for CUDA"})
