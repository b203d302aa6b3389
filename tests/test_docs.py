"""The names in the documentation exist: links, paths, modules, commands and their options."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from udskd.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/results/*.md")]
FOLDERS = ("udskd", "csrc", "bench", "tests", "recipes", "docs")


@pytest.fixture(params=sorted(PAGES), ids=lambda path: path.name)
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of the headings."""
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    try:
        import_module(name)
    except ImportError:
        module, _, attribute = name.rpartition(".")
        return bool(module) and resolves(module) and hasattr(import_module(module), attribute)
    return True


def command(words: list[str]) -> click.Command | None:
    """The command that the words after `udskd` name."""
    found: click.Command = main.root
    for word in words:
        if not isinstance(found, click.Group):
            return found
        if word not in found.commands:
            return None
        found = found.commands[word]
    return found


def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_paths_exist(page: Path) -> None:
    paths = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", page.read_text(encoding="utf-8"))
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_names_of_modules_and_functions_exist(page: Path) -> None:
    names = set(re.findall(r"`(?:help\()?(udskd(?:\.\w+)+)", page.read_text(encoding="utf-8")))
    names -= {"udskd.fish"}
    assert [name for name in sorted(names) if not resolves(name)] == []


def test_modules_that_are_run_exist(page: Path) -> None:
    names = set(re.findall(r"python -m ([\w.]+)|`(bench\.\w+)`", page.read_text(encoding="utf-8")))
    modules = {a or b for a, b in names}
    if page.name == "CHANGELOG.md":
        modules -= {"bench.chart", "bench.overview"}  # the old names of renamed benchmarks
    assert [name for name in sorted(modules) if find_spec(name) is None] == []


def test_options_of_commands_exist(page: Path) -> None:
    lines = re.findall(r"\budskd ([a-z-]+(?: [^`\n]*(?:\\\n[^`\n]*)*)?)", page.read_text(encoding="utf-8"))
    for line in lines:
        words = line.replace("\\\n", " ").split()
        found = command(words[:2]) if words[0] in ("study", "doctor") else command(words[:1])
        if found is not None:
            known = {option for parameter in found.get_params(click.Context(found)) for option in parameter.opts}
            options = [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]
            assert set(options) <= known, line
