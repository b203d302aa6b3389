"""Uncertainty-aware dual-student distillation: the loss is udskd.dual_student_loss, the trainer `udskd train`."""

from udskd._library import build_info
from udskd._version import __version__
from udskd.losses import DualStudentLoss, DualStudentLossOutput, dual_student_loss

__all__ = ["DualStudentLoss", "DualStudentLossOutput", "__version__", "build_info", "dual_student_loss"]
