"""Training and evaluation. Importing this imports torchvision."""

from udskd.training.run import evaluate_run, train

__all__ = ["evaluate_run", "train"]
