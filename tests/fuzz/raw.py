"""Raw operators, torch.ops.udskd, with hostile arguments (tests/loss/helpers/hostile.py): a signal is a finding."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

import torch

from tests.fuzz.case import Case
from tests.loss.helpers import hostile
from udskd.loss import ops

COUNT = 200


class Raw:
    def draw(self, random: Random) -> Case:
        """Calls of the loss or of the image operators: those of a seed from `begin` to `end`."""
        return {"images": random.random() < 0.4, "seed": random.randrange(2**32), "begin": 0, "end": COUNT}

    def findings(self, cases: list[Case]) -> list[str | None]:
        return [hostile.survivors(_calls(case))[1] for case in cases]

    def smaller(self, case: Case) -> Iterable[Case]:
        """Each half of the calls."""
        begin, end = case["begin"], case["end"]
        middle = (begin + end) // 2
        return [{**case, "begin": middle}, {**case, "end": middle}] if end - begin > 1 else []


def _calls(case: Case) -> list[Any]:
    columns = 0 if case["images"] else ops.OPERATORS["cpu"].columns
    calls = hostile.calls(torch.ops.udskd, columns, case["seed"], case["end"], images=case["images"])
    return calls[case["begin"] :]
