"""The means of the loss and its terms over an epoch, summed on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PER_IMAGE = ("weight", "entropy")


class Meter:
    """Sums over the images of an epoch. add() does not wait for the device."""

    def __init__(self) -> None:
        self.rows = 0
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self._images: dict[str, list[Tensor]] = {name: [] for name in _PER_IMAGE}

    def add(self, terms: dict[str, Tensor], rows: int) -> None:
        """Add the terms of a batch of `rows` images: scalars (means over the batch), and "weight" and "entropy" [B]."""
        self.rows += rows
        self._names = [name for name in terms if name not in _PER_IMAGE]
        values = torch.stack([terms[name].detach().double() for name in self._names])
        # copies: a CUDA graph overwrites the terms of this batch with those of the next
        self._sums = values * rows if self._sums is None else self._sums.add_(values, alpha=rows)
        for name in _PER_IMAGE:
            if name in terms:
                self._images[name].append(terms[name].detach().to(torch.float32, copy=True))

    def state(self) -> dict[str, Any]:
        """The sums, on the host: for --resume, and for means() over several processes."""
        return {
            "rows": self.rows,
            "names": self._names,
            "sums": None if self._sums is None else self._sums.cpu(),
            "images": {name: torch.cat(parts).cpu() for name, parts in self._images.items() if parts},
        }

    @staticmethod
    def from_state(state: dict[str, Any], device: torch.device) -> Meter:
        """The meter that state() described."""
        meter = Meter()
        meter.rows, meter._names = int(state["rows"]), list(state["names"])
        meter._sums = None if state["sums"] is None else state["sums"].to(device)
        for name, values in state["images"].items():
            meter._images[name] = [values.to(device)]
        return meter

    @staticmethod
    def merged(meters: Sequence[Meter]) -> Meter:
        """The sum of several meters; an empty meter for none."""
        whole = meters[0] if meters else Meter()
        for other in meters[1:]:
            whole.rows += other.rows
            if whole._sums is None:
                whole._names, whole._sums = other._names, other._sums
            elif other._sums is not None:
                whole._sums = whole._sums + other._sums
            for name in _PER_IMAGE:
                whole._images[name] += other._images[name]
        return whole


def means(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the images of one or several processes, given their meters' states: loss, components, and with a
    teacher weight {mean, p10, p90} and the mean entropy."""
    filled = [state for state in states if state["sums"] is not None]
    rows = sum(state["rows"] for state in filled)
    sums = torch.stack([state["sums"] for state in filled]).sum(0)
    values: dict[str, Any] = dict(zip(filled[0]["names"], (sums / max(rows, 1)).tolist(), strict=True))
    out: dict[str, Any] = {"loss": values.pop("loss"), "components": values}
    weights, entropies = (
        torch.cat([state["images"].get(name, torch.empty(0)) for state in filled]).numpy() for name in _PER_IMAGE
    )
    if weights.size:
        p10, p90 = np.percentile(weights, [10, 90])
        out["weight"] = {"mean": float(weights.mean()), "p10": float(p10), "p90": float(p90)}
        out["entropy"] = float(entropies.astype(np.float64).mean())
    return out
