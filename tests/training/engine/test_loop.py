"""The loop over epochs: it reads nothing back inside a step, and logs what it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.loss.helpers import forms
from udskd import progress
from udskd.config import schema
from udskd.config.schema import Config
from udskd.training import train
from udskd.training.engine import epoch
from udskd.training.networks.optim import Schedule
from udskd.training.storage.run_folder import RunFolder


class ReadBacks(TorchDispatchMode):
    """Counts the operations by which Python reads a number out of a tensor: item, bool, float, and nonzero."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_the_counter_of_read_backs_counts() -> None:
    with ReadBacks() as counter:
        _ = torch.ones(1).item(), bool(torch.ones(1) > 0), float(torch.ones(()))
    assert counter.count == 3


@pytest.mark.parametrize("method", ["ce", "udskd"])
def test_nothing_is_read_back_within_a_step(config: Config, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """From the batch on the device to the update: forward, loss, backward, clipping, optimiser, average, meter."""
    counts: list[int] = []
    normalize_batch = epoch.normalize_batch
    counter = ReadBacks()

    def after_the_batch_arrived(*args: Any) -> Any:
        batch = normalize_batch(*args)  # looks at the flips, which are on the host
        counter.__enter__()
        return batch

    @contextmanager
    def steps(self: progress.Display, title: str, total: int, done: int = 0) -> Iterator[Any]:
        def advance() -> None:
            if "/" in title:  # the steps of an epoch
                counter.__exit__(None, None, None)
                counts.append(counter.count)

        yield advance

    monkeypatch.setattr(epoch, "normalize_batch", after_the_batch_arrived)
    monkeypatch.setattr(progress.Display, "steps", steps)
    # On the CPU, where reading does not wait, the loss reads hard labels (hence mixup), and by the fused form
    # grad_output. Neither happens on a GPU.
    options = {"method": method, "training.clip_grad_norm": 1.0, "training.epochs": 2, "data.mixup": 0.2}
    with forms.only("recompute"):
        train(schema.with_values(config, options))
    assert len(counts) == 2 * 3 * (2 if method == "udskd" else 1)
    assert counts[-1] == 0


def test_a_plain_log_has_one_line_for_each_epoch(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    train(schema.with_values(config, {"method": "ce"}))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" |")[0] for line in lines if " | " in line] == [f"students {k}/3" for k in (1, 2, 3)]
    assert all("\r" not in line and "\x1b" not in line for line in lines)
    header = "\n".join(lines[:5])
    assert all(word in header for word in ("tiny_plain_2", "parameters", "stem small", "fp32", "loss backend", "cpu"))


def test_long_epochs_show_life_in_a_plain_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter(range(0, 1000, 40))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    with progress.Display().steps("students 1/2", 5) as advance:
        for _ in range(5):
            advance()
    assert capsys.readouterr().out == "students 1/2: step 2/5\nstudents 1/2: step 4/5\n"


def test_the_logged_rates_are_those_of_each_students_last_step(config: Config, tmp_path: Path) -> None:
    train(schema.with_values(config, {"method": "ce", "student_b.lr": 0.02, "training.warmup_epochs": 0.0}))
    logged = RunFolder(tmp_path / "run").events("epoch")
    for name, peak in (("lr_a", 0.05), ("lr_b", 0.02)):
        schedule = Schedule.from_epochs(peak, epochs=3, warmup_epochs=0, steps_per_epoch=3)
        assert [event[name] for event in logged] == [schedule.lr(step) for step in (2, 5, 8)]
