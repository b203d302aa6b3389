"""The calls for compute-sanitizer, on the CPU: all kinds of calls, and the comparison with the reference."""

from __future__ import annotations

import pytest
import torch

from bench import sanitized
from tests.loss.helpers.inputs import DTYPES


@pytest.mark.parametrize("plan", sanitized.CLASSES)
def test_the_sanitized_calls_are_near_the_reference(capsys: pytest.CaptureFixture[str], plan: str) -> None:
    assert sanitized.main(["--device", "cpu", "--plans", plan]) == 0
    count = 7 if plan == "warp" else 6
    assert capsys.readouterr().out == f"checked {count} calls: {count} of {plan}\n"


def test_the_sanitized_calls_are_of_every_kind() -> None:
    calls = list(sanitized.calls())
    for plan in sanitized.CLASSES:
        mine = [call for call in calls if call.plan == plan]
        assert {call.dtype for call in mine} == set(DTYPES) - {torch.float64}
        assert {call.options["reduction"] for call in mine} == {"mean", "sum", "none"}
    assert len(calls) < 60


def test_a_wrong_answer_ends_the_sanitized_calls(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sanitized, "TOLERANCE", dict.fromkeys(sanitized.TOLERANCE, -1.0))
    assert sanitized.main(["--device", "cpu"]) == 1
    output = capsys.readouterr().out
    assert output.startswith("lanes8, 9 x 7, torch.float32, ")
    assert "off by " in output
    assert "checked" not in output
