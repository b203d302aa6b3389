"""Benchmarks. All providers run in a process with the settings of the command line (udskd/process/settings.py)."""

from udskd.process.settings import apply_settings

apply_settings()  # before a module of this package imports PyTorch
