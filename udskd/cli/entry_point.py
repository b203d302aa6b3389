"""The entry point of `udskd`. Imports no other package, so that it can report one that is not installed."""

from __future__ import annotations

import sys

from udskd.errors import MissingPackage, explain_missing_packages
from udskd.process.settings import apply_settings


def main() -> int:
    """Run one command. Returns the exit code: that of udskd.cli.main, or 2 if a package is missing."""
    try:
        apply_settings()  # before PyTorch is imported
        with explain_missing_packages():
            from udskd.cli.main import main as run

            return run()
    except MissingPackage as error:
        print(f"udskd: error: {error}", file=sys.stderr)
        return 2
