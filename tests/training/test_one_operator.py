"""Every divergence goes through the one operator, and the loop that calls it knows no method."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.helpers.variants import VARIANTS, options
from udskd import methods
from udskd.config.schema import Config
from udskd.training import train
from udskd.training.engine.task import Inputs
from udskd.training.tasks.students import StudentsTask

SOFTMAX = ("_softmax", "_log_softmax", "logsumexp", "kl_div", "nll_loss_forward", "cross_entropy_loss")
# What needs the probabilities themselves, in calls of a step: the average of distributions and the students' own, of
# each student; the two sides of a mixture; the masses that are moved; the classes but the label as one.
OWN = {
    "cud": {"_softmax": 1, "logsumexp": 1},
    "variance": {"_softmax": 4},
    "variance from views": {"_softmax": 6},
    "variance from dropout": {"_softmax": 6},
    "variance from draws, peers": {"_softmax": 6},
    "akd, sample": {"_log_softmax": 4},
    "dkd": {"logsumexp": 3},
    "udskd of everything": {"_softmax": 2, "logsumexp": 1},
    "sdkd of clipped targets": {"_softmax": 1, "logsumexp": 1},
    "udskd within bounds": {"_log_softmax": 8},
}


class Counting(TorchDispatchMode):
    """Counts the calls of PyTorch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:
    """The operators of each step's losses."""
    found: list[Counter[str]] = []
    losses = StudentsTask.losses

    def counting(self: StudentsTask, inputs: Inputs) -> dict[str, Tensor]:
        with Counting() as mode:
            terms = losses(self, inputs)
        found.append(mode.calls)
        return terms

    monkeypatch.setattr(StudentsTask, "losses", counting)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_divergence_goes_through_the_operator(
    variant: str, config: Config, teacher_weights: str, counted: list[Counter[str]]
) -> None:
    values = {**VARIANTS[variant], "teacher.checkpoint": teacher_weights, "training.epochs": 1, "cud.stage_epochs": 1}
    train(options(config, values))
    calls = counted[-1]
    ours = sum(number for name, number in calls.items() if name.startswith("dual_student_loss"))
    assert ours >= 1
    found = {name: calls[name] for name in SOFTMAX if calls[name]}
    assert found == OWN.get(variant, {})


def test_the_loop_names_no_method() -> None:
    names = set(methods.names()) - {"udskd"} | {"wrong_mass_clip", "uncertainty_shaping", "context"}
    for file in (Path(__file__).parents[2] / "udskd" / "training").rglob("*.py"):
        words = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
        assert not words & names, file
