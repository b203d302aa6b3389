"""Plain supervised training: the bottom of the ladder."""

from __future__ import annotations

from typing import Any, ClassVar

from udskd.methods.operator import OperatorMethod


class CrossEntropy(OperatorMethod):
    """Each student learns from the labels alone: ce_weight·CE. No teacher is needed, no peer is listened to."""

    name = "ce"
    uses_teacher = False
    fixed: ClassVar[dict[str, Any]] = {"kd_weight": 0.0, "peer_weight": 0.0}
