"""Training and evaluation. Importing this imports torchvision."""

from udskd.training.again import evaluate_run
from udskd.training.run import train

__all__ = ["evaluate_run", "train"]
