"""Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", 2015 (arXiv:1503.02531)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from udskd.config.schema import Config
from udskd.methods.base import TeacherStage
from udskd.methods.operator import OperatorMethod


class Distillation(OperatorMethod):
    """Two single-student distillations side by side: ce_weight·CE + kd_weight·T²·KL(teacher ‖ student), every image
    alike.

    The soft targets at temperature T and the factor T² are the paper's (§2) [paper]; the two weights and T come from
    the options, so that the comparison with "udskd" differs in the weighting and in the peer alone [reconstructed].
    """

    name = "kd"
    uses_teacher = True
    fixed: ClassVar[dict[str, Any]] = {"uncertainty": "none", "peer_weight": 0.0}


class LongerTraining(TeacherStage):
    """More of the teacher's own cross-entropy, as the control for other stages, which also train the teacher for
    cud.stage_epochs more epochs at cud.stage_lr."""

    name = "cross_entropy"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.epochs, self.lr = config.cud.stage_epochs, config.cud.stage_lr

    def loss(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The cross-entropy of logits [B, C], smoothed as in the teacher's first training."""
        return {"loss": F.cross_entropy(logits, target, label_smoothing=self.config.teacher.label_smoothing)}
