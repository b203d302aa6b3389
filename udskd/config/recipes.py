"""The recipes of udskd by name: recipes/*.toml in a checkout, udskd/recipes/*.toml in a wheel."""

from __future__ import annotations

import os
from pathlib import Path

from udskd.config.suggest import did_you_mean
from udskd.errors import ConfigError
from udskd.files import read_text

_PACKAGE = Path(__file__).parents[1]


def recipes() -> dict[str, Path]:
    """The files of the recipes by name, sorted."""
    folder = next((path for path in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes") if path.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find(name: str) -> Path:
    """The file of a recipe: `name` itself if it is a file's, else that of the recipe of this name.

    Raises ConfigError if there is no such recipe.
    """
    path, known = Path(name), recipes()
    if path.suffix or len(path.parts) != 1 or os.path.exists(path):  # Path.exists raises OSError for long names
        return path
    if name not in known:
        near = did_you_mean(name, known)
        raise ConfigError(f'there is no recipe "{name}"{near}: give a TOML file, or one of {", ".join(known)}')
    return known[name]


def title(path: Path) -> str:
    """The title of a recipe: the first sentence of the comment at its beginning."""
    lines = read_text(path).splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines[: _comments(lines)])
    return comment.partition(". ")[0].rstrip(".:")


def _comments(lines: list[str]) -> int:
    """The number of comment lines at the beginning."""
    return next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
