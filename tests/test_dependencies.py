"""The loss needs PyTorch and NumPy alone; whatever else is missing is named, with the command that installs it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_architecture import MODULES, imports
from udskd.config.toml import tomllib
from udskd.errors import PACKAGES

PROJECT: dict[str, Any] = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
CORE, TRAIN, TENSORBOARD, TIMM = PACKAGES
WITHOUT_EXTRAS = ("loss.functional", "_native", "cli.entry_point")
RUN_COMMAND = "import sys; from udskd.cli import entry_point; sys.exit(entry_point.main())"
SENTENCE = "the package {} is not installed; install it with: pip install '{}'"


def packages(requirements: list[str]) -> set[str]:
    """The top-level modules of the packages that are required."""
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}
    return {"PIL" if name == "pillow" else name.replace("-", "_") for name in names}


def third_party(name: str) -> set[str]:
    """The packages that a module of udskd imports."""
    found = {module.partition(".")[0] for node in ast.walk(MODULES[name]) for module in imported(node)}
    return found - sys.stdlib_module_names - {"udskd", "tomllib"}  # tomllib: Python 3.10 has none


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        # torch.utils.tensorboard imports the package tensorboard.
        yield "tensorboard" if node.module == "torch.utils.tensorboard" else node.module


def closure(*names: str) -> set[str]:
    """Modules, the modules that they import, and so on; without the entry point's late import of the commands."""
    found, remaining = {"__init__"}, set(names)
    while remaining:
        name = remaining.pop()
        found.add(name)
        remaining |= imports(name) - found - {"cli.main"}
    return found


def python(program: str, *arguments: str, hidden: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a program in a process that cannot import some packages."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({hidden!r})); "
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", hide + program, *arguments], capture_output=True, text=True, env=environment
    )


def test_the_loss_imports_only_pytorch_and_numpy() -> None:
    found = {package for name in closure(*WITHOUT_EXTRAS) for package in third_party(name)}
    assert found <= packages(PROJECT["dependencies"]) == set(PACKAGES[CORE])


def test_the_extras_declare_exactly_what_the_other_modules_import() -> None:
    found = {package for name in MODULES for package in third_party(name)}
    extras = PROJECT["optional-dependencies"]
    assert packages(extras["train"]) == set(PACKAGES[TRAIN])
    assert packages(extras["tensorboard"]) == set(PACKAGES[TENSORBOARD])
    assert packages(extras["timm"]) == set(PACKAGES[TIMM])
    assert found == {package for packages in PACKAGES.values() for package in packages}


def test_all_has_every_extra_but_dev() -> None:
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    assert everything == f"udskd[{','.join(name for name in extras if name not in ('all', 'dev'))}]"


def test_the_loss_works_without_the_packages_of_the_extras() -> None:
    program = """if True:
        import torch, udskd
        logits = torch.randn(3, 4, 5).unbind()
        target = torch.arange(4)
        loss = udskd.dual_student_loss(*logits, target).loss
        assert udskd.DualStudentLoss()(*logits, target).loss == loss
        udskd.build_info()
    """
    done = python(f"exec({program!r})", hidden=PACKAGES[TRAIN] + PACKAGES[TENSORBOARD] + PACKAGES[TIMM])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("package", "requirement", "command"),
    [
        ("click", TRAIN, "--help"),
        ("click", TRAIN, "train caltech20"),
        ("tomli_w", TRAIN, "recipes"),
        ("rich", TRAIN, "compare runs"),
        ("torch", CORE, "eval run"),
    ],
)
def test_a_command_without_a_package_that_it_needs_is_one_line(package: str, requirement: str, command: str) -> None:
    done = python(RUN_COMMAND, *command.split(), hidden=(package,))
    sentence = f"udskd: error: {SENTENCE.format(package, requirement)}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


def test_a_missing_package_that_is_none_of_the_dependencies_stays_a_traceback() -> None:
    done = python(RUN_COMMAND, "--help", hidden=("udskd.cli.options",))
    assert "ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize("package", ["safetensors", "PIL"])
def test_load_without_a_package_that_it_needs_raises_import_error(package: str) -> None:
    done = python("from udskd import load", hidden=(package,))
    last = done.stderr.splitlines()[-1]
    assert last.endswith(f"MissingPackage: {SENTENCE.format(package, TRAIN)}")


def test_load_of_a_torchvision_model_without_torchvision_raises_import_error() -> None:
    program = (
        "from udskd.models import zoo\ntry: zoo.build('resnet18', 5, 32)\nexcept ImportError as error: print(error)"
    )
    done = python(f"exec({program!r})", hidden=("torchvision",))
    assert (done.stdout, done.stderr) == (SENTENCE.format("torchvision", TRAIN) + "\n", "")


def test_a_network_of_timm_needs_timm() -> None:
    program = (
        "from udskd.models import zoo\n"
        "try: zoo.build('timm:resnet18', 5, 32)\nexcept ImportError as error: print(error)"
    )
    done = python(f"exec({program!r})", hidden=("timm",))
    assert (done.stdout, done.stderr) == (SENTENCE.format("timm", TIMM) + "\n", "")


def test_a_run_with_tensorboard_events_needs_tensorboard() -> None:
    program = (
        "from pathlib import Path; from udskd.training.storage.loggers import TensorBoardLogger as Logger\n"
        "try: Logger(Path(), 'epoch')\nexcept ImportError as error: print(error)"
    )
    done = python(f"exec({program!r})", hidden=("tensorboard",))
    assert (done.stdout, done.stderr) == (SENTENCE.format("tensorboard", TENSORBOARD) + "\n", "")
