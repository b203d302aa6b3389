"""TensorBoard events of a run (training.tensorboard)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from udskd.errors import explain_missing_packages


class TensorBoardLogger:
    """Writes the numbers of each epoch under RUN/tensorboard/EVENT. MissingPackage if tensorboard is not installed."""

    def __init__(self, run: Path, event: str) -> None:
        with explain_missing_packages():
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(str(run / "tensorboard" / event))

    def write(self, epoch: int, values: dict[str, Any]) -> None:
        """Write one scalar for each number; nested names are joined by '/'."""
        for name, value in _scalars("", values):
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()


def _scalars(prefix: str, values: dict[str, Any]) -> list[tuple[str, float]]:
    flat: list[tuple[str, float]] = []
    for name, value in values.items():
        flat += _scalars(f"{prefix}{name}/", value) if isinstance(value, dict) else [(prefix + name, value)]
    return flat
