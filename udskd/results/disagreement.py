"""How much students that were trained independently of each other differ: the inter-student uncertainty of "How Is
Uncertainty Propagated in Knowledge Distillation?" (arXiv:2601.18909), from the predictions that their runs left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from udskd.errors import DataError
from udskd.files import PREDICTIONS

Floats = npt.NDArray[np.float64]


def disagreement(predictions: Sequence[Floats]) -> float:
    """Mean over images and classes of the variance over students of p(class | image), from [N, C] of each of two or
    more students.

    The unbiased variance (n - 1) [reconstructed: the published code divides by n, which with few students makes them
    look more alike than they are].
    """
    if len(predictions) < 2:
        raise ValueError(f"predictions must be of at least 2 students, got {len(predictions)}")
    return float(np.var(np.stack(predictions), axis=0, ddof=1).mean())


def read(run: Path, role: str) -> Floats | None:
    """A student's p(class | image) [N, C] of a finished run; None where the run left none. DataError if damaged."""
    file = run / PREDICTIONS
    if not file.is_file():
        return None
    try:
        p: Floats = safetensors.numpy.load(file.read_bytes())[role].astype(np.float64)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{file} is damaged ({error}): remove it, or train the run anew") from None
    p /= p.sum(-1, keepdims=True)  # fp16 rounds each class by itself
    return p
