"""Writing files of results. Needs neither PyTorch nor the compiled library: `make gpu` runs it before the build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from udskd.files import make_folder, write_atomic


def write_text(path: Path, text: str) -> None:
    """Creates the folder if necessary and replaces the file atomically."""
    make_folder(path.parent)
    write_atomic(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")
