"""A case: what one kind runs, as JSON, so that a finding can be written down and run again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Protocol

Case = dict[str, Any]


class Kind(Protocol):
    """What a kind can do."""

    def draw(self, random: Random) -> Case:
        """A random case."""

    def findings(self, cases: list[Case]) -> list[str | None]:
        """What is wrong with each case, None for nothing."""

    def smaller(self, case: Case) -> Iterable[Case]:
        """Simpler cases, of which one may have the same finding."""


def shrink(kind: Kind, case: Case, finding: str, tries: int = 100) -> tuple[Case, str]:
    """A case with a finding, as simple as `tries` runs can make it, and its finding."""
    pending: Iterator[Case] = iter(kind.smaller(case))
    for _ in range(tries):
        other = next(pending, None)
        if other is None:
            break
        (found,) = kind.findings([other])
        if found is not None:
            case, finding, pending = other, found, iter(kind.smaller(other))
    return case, finding


def write(folder: Path, kind: str, seed: int, case: Case, finding: str) -> Path:
    """Write a case with its kind, seed and finding. Returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{kind}-{seed}.json"
    file.write_text(json.dumps({"kind": kind, "seed": seed, "case": case, "finding": finding}, indent=1) + "\n")
    return file


def read(file: Path) -> tuple[str, Case]:
    """The kind and the case in a file of write()."""
    content = json.loads(file.read_text())
    return content["kind"], content["case"]
