"""Imports go downward only and have no cycle; functions import only what has a reason to be imported late."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1] / "udskd"
# From top to bottom. A module belongs to the layer with the longest name that is the module's own or its folder's.
LAYERS = (
    *("__main__", "cli", "study", "doctor", "demo"),
    *("training", "training.tasks", "training.teacher_cache", "training.engine", "training.networks"),
    *("training.evaluation", "training.storage", "training.runtime"),
    *("methods", "results", "loss", "models", "data", "config"),
    *("progress", "files", "process", "errors", "_native"),
)
# Imports inside functions: (importing module, imported module), and the reason.
LATE = {
    ("cli.entry_point", "cli.main"): "click may be missing, and the entry point reports it",
    ("cli.commands", "training"): "a mistake in the command line is reported before PyTorch is imported",
    ("cli.commands", "training.teacher_cache.writer"): "likewise",
    ("cli.commands", "results.table"): "a command imports what it needs, no more",
    ("cli.commands", "demo.demo"): "likewise",
    ("cli.commands", "cli.pack"): "likewise",
    ("cli.commands", "doctor"): "likewise",
    ("cli.commands", "study"): "likewise",
    ("results.table", "results.plots"): "matplotlib takes a second to import",
}


def modules() -> dict[str, ast.Module]:
    """The syntax tree of every module, by its name below udskd; udskd itself is "__init__"."""
    found = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name if name == "__init__" else name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


MODULES = modules()


def imported(node: ast.AST) -> Iterator[str]:
    """The modules of udskd that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name.removeprefix("udskd.") for alias in node.names if alias.name.startswith("udskd."))
    elif isinstance(node, ast.ImportFrom) and node.module and f"{node.module}.".startswith("udskd."):
        base = node.module.removeprefix("udskd").removeprefix(".")
        for alias in node.names:
            inner = f"{base}.{alias.name}".removeprefix(".")
            yield inner if inner in MODULES else base or "__init__"


def imports(name: str) -> set[str]:
    found = {target for node in ast.walk(MODULES[name]) for target in imported(node)}
    return found - {"__init__", "_C"}


def late_imports(name: str) -> set[tuple[str, str]]:
    functions = [node for node in ast.walk(MODULES[name]) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return {(name, target) for function in functions for node in ast.walk(function) for target in imported(node)}


def layer(name: str) -> int:
    found = [index for index, top in enumerate(LAYERS) if f"{name}.".startswith(f"{top}.")]
    assert found, f"{name} is in no layer: add it to LAYERS"
    return max(found, key=lambda index: len(LAYERS[index]))


def test_no_module_imports_from_above() -> None:
    upward = [
        f"{name} imports {target}"
        for name in MODULES
        if name != "__init__"
        for target in imports(name)
        if layer(target) < layer(name)
    ]
    assert not upward


def test_no_modules_import_each_other() -> None:
    TopologicalSorter({name: imports(name) - {name} for name in MODULES}).prepare()


def test_functions_import_only_what_has_a_reason() -> None:
    found = {pair for name in MODULES for pair in late_imports(name)}
    assert found == LATE.keys()


def test_the_package_has_few_entries() -> None:
    entries = {path.name for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert len(entries) <= 18, sorted(entries)
