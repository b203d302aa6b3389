"""udskd.DualStudentLoss: its options, parameters, buffers and state."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

import udskd
from tests.loss.helpers.inputs import backends, make

NAMES = ("ce_weight", "kd_weight", "peer_weight")


def parameter(value: float = 0.5) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", backends("reference", "cpu"))
def test_a_coefficient_that_is_a_parameter_is_learned(name: str, backend: str) -> None:
    criterion = udskd.DualStudentLoss(**{name: parameter()}, backend=backend)
    optimizer = torch.optim.SGD(criterion.parameters(), lr=0.1)
    before = criterion.state_dict()[name].clone()
    made = make(6, 10, dtype=torch.float32)
    criterion(*made.inputs).loss.backward()
    optimizer.step()
    assert [n for n, _ in criterion.named_parameters()] == [name]
    assert not torch.equal(criterion.state_dict()[name], before)


def test_a_tensor_among_the_options_is_a_buffer() -> None:
    criterion = udskd.DualStudentLoss(kd_weight=torch.tensor(0.5), uncertainty=torch.rand(6))
    assert sorted(dict(criterion.named_buffers())) == ["kd_weight", "uncertainty"]
    assert not list(criterion.parameters())
    assert sorted(criterion.state_dict()) == ["kd_weight", "uncertainty"]


def test_numbers_among_the_options_are_no_state() -> None:
    assert not udskd.DualStudentLoss(kd_weight=0.5, temperature=2.0).state_dict()


def test_a_tensor_that_replaces_a_number_is_a_buffer() -> None:
    module = udskd.DualStudentLoss(kd_weight=2.0)
    module.kd_weight = torch.ones(3)
    assert dict(module.named_buffers()).keys() == {"kd_weight"}
    module.kd_weight = torch.zeros(3)
    assert module.state_dict()["kd_weight"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("weight", [torch.tensor(2.0), nn.Parameter(torch.tensor(2.0))])
def test_a_refused_assignment_leaves_the_options_as_they_are(weight: torch.Tensor) -> None:
    module = udskd.DualStudentLoss(ce_weight=weight)
    x, target = torch.randn(3, 4), torch.tensor([0, 1, 2])
    before = module(None, x, target=target).loss
    with pytest.raises(TypeError, match="cannot assign"):
        module.ce_weight = 3.0
    assert torch.equal(module(None, x, target=target).loss, before)


def test_the_module_computes_what_the_function_does() -> None:
    made, weight = make(6, 10, dtype=torch.float32), torch.rand(6)
    options = {"temperature": 2.0, "kd_weight": parameter(0.3), "uncertainty": weight, "reduction": "sum"}
    found = udskd.DualStudentLoss(**options)(*made.inputs)
    expected = udskd.dual_student_loss(*made.inputs, **options)  # type: ignore[arg-type]
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_tensors_move_with_the_module() -> None:
    criterion = udskd.DualStudentLoss(ce_weight=parameter(), kd_weight=torch.tensor(0.5)).to("meta").to(torch.float64)
    assert {(x.device.type, x.dtype) for x in (*criterion.parameters(), *criterion.buffers())} == {
        ("meta", torch.float64)
    }


def test_the_state_of_a_learned_coefficient_survives_a_checkpoint() -> None:
    file = io.BytesIO()
    torch.save(udskd.DualStudentLoss(peer_weight=parameter(0.75)).state_dict(), file)
    file.seek(0)
    other = udskd.DualStudentLoss(peer_weight=parameter(0.0))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.get_parameter("peer_weight").item() == 0.75


def test_a_copy_learns_alone() -> None:
    criterion = udskd.DualStudentLoss(kd_weight=parameter())
    twin = copy.deepcopy(criterion)
    with torch.no_grad():
        twin.get_parameter("kd_weight").fill_(9.0)
    assert criterion.get_parameter("kd_weight").item() == 0.5


def test_a_learned_coefficient_under_torch_compile() -> None:
    torch._dynamo.reset()
    made = make(6, 10, dtype=torch.float32)
    criterion = udskd.DualStudentLoss(kd_weight=parameter(-0.25))
    torch.compile(criterion, fullgraph=True, backend="aot_eager")(*made.inputs).loss.backward()
    compiled = criterion.get_parameter("kd_weight").grad
    criterion.zero_grad()
    criterion(*made.inputs).loss.backward()
    torch.testing.assert_close(compiled, criterion.get_parameter("kd_weight").grad)


def test_a_learned_coefficient_that_is_frozen_keeps_its_value() -> None:
    made = make(6, 10, dtype=torch.float32)
    criterion = udskd.DualStudentLoss(kd_weight=parameter(-0.5))
    expected = criterion(*made.inputs).loss
    assert torch.equal(criterion.requires_grad_(False)(*made.inputs).loss, expected)
    detached = {"kd_weight": torch.tensor(-0.5)}
    assert torch.equal(torch.func.functional_call(criterion, detached, made.inputs).loss, expected)


def test_options_can_be_set_later() -> None:
    made = make(6, 10, dtype=torch.float32)
    criterion = udskd.DualStudentLoss(kd_weight=0.9)
    criterion.kd_weight, criterion.temperature = parameter(0.1), 2.0
    assert [name for name, _ in criterion.named_parameters()] == ["kd_weight"]
    expected = udskd.dual_student_loss(*made.inputs, kd_weight=0.1, temperature=2.0)
    torch.testing.assert_close(criterion(*made.inputs).loss, expected.loss)


@pytest.mark.parametrize(
    ("options", "error"),
    [({"temperature": 0}, ValueError), ({"trust": "me"}, ValueError), ({"temperature": torch.ones(())}, TypeError)],
    ids=str,
)
def test_options_are_checked_when_the_module_is_made(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        udskd.DualStudentLoss(**options)


def test_the_options_are_shown() -> None:
    shown = repr(udskd.DualStudentLoss(temperature=2.0, kd_weight=parameter(), uncertainty=torch.rand(6)))
    for words in ("temperature=2.0", "kd_weight=Parameter []", "uncertainty=Tensor [6]"):
        assert words in shown


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="DualStudentLoss has no option 'temprature'"):
        udskd.DualStudentLoss(temprature=2.0)
