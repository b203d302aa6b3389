"""Uncertainty-aware dual-student distillation: the loss is udskd.dual_student_loss, the trainer `udskd train`.

Public names are imported at their first use (PEP 562), so that a command that only reads a recipe does not import
PyTorch, and the loss needs no package but PyTorch and NumPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from udskd.errors import explain_missing_packages

__version__ = "0.1.0.dev0"

__all__ = [
    "DualStudentLoss",
    "DualStudentLossOutput",
    "LoadedModel",
    "__version__",
    "build_info",
    "dual_student_loss",
    "load",
]

if TYPE_CHECKING:  # else type checkers give every name the type that __getattr__ returns
    from udskd._native import build_info
    from udskd.loss.functional import DualStudentLoss, DualStudentLossOutput, dual_student_loss
    from udskd.models.loaded_model import LoadedModel, load
else:
    _MODULES = {
        "DualStudentLoss": "udskd.loss.functional",
        "DualStudentLossOutput": "udskd.loss.functional",
        "LoadedModel": "udskd.models.loaded_model",
        "build_info": "udskd._native",
        "dual_student_loss": "udskd.loss.functional",
        "load": "udskd.models.loaded_model",
    }

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with explain_missing_packages():
            value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
