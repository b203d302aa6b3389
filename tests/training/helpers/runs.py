"""Reading finished runs, and interrupting a run at a chosen call."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from udskd.files import PREDICTIONS
from udskd.models.checkpoints import load_weights
from udskd.results.run_files import LOG, read_events


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run / LOG)[0] if event["event"] == name]


def outcome(run: Path) -> dict[str, Any]:
    """What two runs of the same options must share to the last bit: weights, metrics, losses."""
    timing = {"time", "seconds", "images_per_second"}
    summary, log = json.loads((run / "summary.json").read_text()), (run / "log.jsonl").read_text().splitlines()
    files = sorted([*run.glob("*.safetensors"), *run.glob("*/*.safetensors")])
    weights = {f.name: load_weights(f)[0] for f in files if f.name != PREDICTIONS}
    return {
        "predictions": (run / PREDICTIONS).read_bytes(),
        "summary": {k: v for k, v in summary.items() if k not in timing},
        "log": [{k: v for k, v in json.loads(line).items() if k not in {*timing, "lines"}} for line in log],
        "weights": {
            f"{file}/{k}": t.numpy().tobytes() for file, tensors in weights.items() for k, t in tensors.items()
        },
    }


def on_call(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, action: Callable[[], None]) -> None:
    """Call `action` before the number-th call (from 1) of owner.name."""
    original, calls = getattr(owner, name), [0]

    def wrapper(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            action()
        return original(*args, **options)

    monkeypatch.setattr(owner, name, wrapper)
