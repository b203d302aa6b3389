"""Supervised training without a teacher: the baseline of the other methods."""

from __future__ import annotations

from typing import Any, ClassVar

from udskd.methods.operator import OperatorMethod


class CrossEntropy(OperatorMethod):
    """Each student learns from the labels alone: ce_weight·CE. Without a teacher and without a peer term."""

    name = "ce"
    uses_teacher = False
    fixed: ClassVar[dict[str, Any]] = {"kd_weight": 0.0, "peer_weight": 0.0}
