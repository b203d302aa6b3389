"""Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", 2015 (arXiv:1503.02531)."""

from __future__ import annotations

from typing import Any, ClassVar

from udskd.methods.base import OperatorMethod


class Distillation(OperatorMethod):
    """Two single-student distillations side by side: ce_weight·CE + kd_weight·T²·KL(teacher ‖ student), every image
    alike.

    The soft targets at temperature T and the factor T² are the paper's (§2) [paper]; the two weights and T come from
    the options, so that the comparison with "udskd" differs in the weighting and in the peer alone [reconstructed].
    """

    name = "kd"
    uses_teacher = True
    fixed: ClassVar[dict[str, Any]] = {"uncertainty": "none", "peer_weight": 0.0}
