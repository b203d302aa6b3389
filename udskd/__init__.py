"""Uncertainty-aware dual-student distillation: the loss is udskd.dual_student_loss, the trainer `udskd train`."""

from typing import TYPE_CHECKING, Any

from udskd._library import build_info
from udskd._version import __version__
from udskd.losses import DualStudentLoss, DualStudentLossOutput, dual_student_loss

__all__ = [
    "DualStudentLoss",
    "DualStudentLossOutput",
    "LoadedModel",
    "__version__",
    "build_info",
    "dual_student_loss",
    "load",
]

if TYPE_CHECKING:  # type checkers must not take __getattr__ for the type of every other name
    from udskd.loading import LoadedModel, load
else:

    def __getattr__(name: str) -> Any:
        """udskd.load and its class are imported when they are asked for, because they import torchvision."""
        if name not in ("LoadedModel", "load"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from udskd import loading

        return getattr(loading, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
