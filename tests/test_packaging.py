"""What a user installs: an sdist that builds a wheel, a wheel that works on its own, a clear error without PyTorch.

The environments are empty except for a .pth file that names this environment's site-packages, or links to some of its
packages, so that PyTorch is not installed again. A .pth in a folder that a .pth names is not read: an editable udskd of
this environment stays unseen.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import udskd
from bench import cuda_toolkit
from udskd.errors import PACKAGES

pytestmark = pytest.mark.packaging
ROOT = Path(__file__).parents[1]
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "runs", "*.egg-info", "*.so", "__pycache__", ".*_cache", ".hypothesis"
)
# Where this environment's library has CUDA kernels, so has the wheel. One architecture is enough to test that the sdist
# holds the CUDA sources and that they compile. The fresh environments do not find pip's nvcc by themselves.
TOOLKIT = cuda_toolkit.home() if udskd.build_info()["cuda_compiled"] else None
CUDA = {"CUDA_HOME": TOOLKIT, "TORCH_CUDA_ARCH_LIST": "9.0"} if TOOLKIT else {"FORCE_CUDA": "0"}
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "FORCE_CUDA")} | CUDA


def call(*command: str | Path, cwd: Path) -> str:
    """The output of a command. AssertionError with the output if it fails."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def environment(folder: Path, is_included: Callable[[str], bool] | None = None) -> Path:
    """The Python of a fresh environment with this environment's packages: all of them, or those that are included."""
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    here, there = Path(sysconfig.get_path("purelib")), next(folder.glob("lib/python*/site-packages"))
    if is_included is None:
        (there / "shared.pth").write_text(f"{here}\n")
        return folder / "bin" / "python"
    for path in here.iterdir():
        package = re.split(r"[.-]", path.name)[0]  # of a module, a package, its libraries or its metadata
        if path.suffix != ".pth" and package != "udskd" and is_included(package):
            (there / path.name).symlink_to(path)
    return folder / "bin" / "python"


def install(wheel: Path, python: Path) -> Path:
    """Install the wheel into the environment of a Python, which is returned."""
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    call(*pip, "install", "--no-index", "--no-deps", "--ignore-installed", wheel, cwd=wheel.parent)
    return python


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # From a copy without egg-info: a stale SOURCES.txt would add files that MANIFEST.in misses.
    source = tmp_path_factory.mktemp("source") / "udskd"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)
    call(sys.executable, "-m", "build", "--sdist", "--no-isolation", cwd=source)
    (archive,) = (source / "dist").iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    python = environment(folder / "env")
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    call(*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", folder, sdist, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment into which the wheel is installed."""
    return install(wheel, environment(tmp_path_factory.mktemp("user") / "env"))


@pytest.fixture(scope="module")
def without_extras(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel, PyTorch and NumPy, and no package of an extra."""
    _, *extras = PACKAGES.values()
    hidden = {package for packages in extras for package in packages}
    return install(wheel, environment(tmp_path_factory.mktemp("user") / "env", lambda package: package not in hidden))


def test_sdist_holds_all_that_the_repository_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    repository = sdist.parents[1]
    sources = {path for top in ("csrc", "tests", "udskd", "recipes") for path in (repository / top).rglob("*.*")}
    wanted = {str(path.relative_to(repository)) for path in sources}
    assert {"csrc/ops.cpp", "csrc/loss/cuda/rows_float.cu", "tests/conftest.py", "udskd/demo/demo.toml"} <= wanted
    assert (wanted | {"LICENSE", "README.md", "Makefile", "setup.py", "CHANGELOG.md", ".ci/run"}) - held == set()


def test_wheel_holds_the_library_and_no_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert sum(name.startswith("udskd/_C.") and name.endswith(".so") for name in names) == 1
    assert {"udskd/demo/demo.toml", "udskd/recipes/caltech20.toml", "udskd/py.typed"} <= set(names)
    assert [name for name in names if name.startswith(("csrc", "tests", "bench"))] == []


def test_the_loss_works_away_from_the_sources_and_without_extras(without_extras: Path, tmp_path: Path) -> None:
    program = """if True:
        import torch, udskd
        logits = torch.randn(3, 8, 5).unbind()
        target = torch.arange(8) % 5
        loss, known = (udskd.dual_student_loss(*logits, target, backend=b).loss for b in ("cpu", "reference"))
        torch.testing.assert_close(loss, known)
        print(udskd.__file__, udskd.build_info()["version"] == udskd.__version__)
    """
    where, matches = call(without_extras, "-c", program, cwd=tmp_path).split()
    assert Path(where).is_relative_to(without_extras.parents[1])
    assert matches == "True"
    assert call(without_extras, "-m", "udskd", cwd=tmp_path).startswith("udskd ")


def test_without_extras_the_installed_command_names_the_one_that_it_needs(without_extras: Path, tmp_path: Path) -> None:
    command = [without_extras.with_name("udskd"), "train", "caltech20"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT)
    sentence = "the package click is not installed; install it with: pip install 'udskd[train]'"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"udskd: error: {sentence}\n")


def test_installed_command_trains_away_from_the_sources(installed: Path, tmp_path: Path) -> None:
    command = installed.with_name("udskd")
    assert call(command, "--version", cwd=tmp_path).startswith("udskd ")
    recipe = next(installed.parents[1].glob("lib/python*/site-packages/udskd/demo/demo.toml"))
    call(command, "train", recipe, "--method", "ce", "--training.epochs", "1", "--output", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "summary.json").exists()


def test_without_pytorch_the_error_names_the_two_commands_to_run(sdist: Path, tmp_path: Path) -> None:
    tools = ("setuptools", "pkg_resources", "_distutils_hack", "wheel", "packaging")
    python = environment(tmp_path / "env", lambda package: package in tools)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    done = subprocess.run(
        list(map(str, (*pip, "install", "--no-index", "--no-deps", "--no-build-isolation", sdist))),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
    assert done.returncode != 0
    start = next(number for number, line in enumerate(lines) if line.startswith("pip install"))
    assert "torch>=2.11" in lines[start]
    assert lines[start + 1].startswith("pip install --no-build-isolation")
