"""Training and evaluation. Importing this imports torchvision."""

from udskd.training.evaluate_run import evaluate_run
from udskd.training.train import train

__all__ = ["evaluate_run", "train"]
