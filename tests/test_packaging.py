"""What a user installs: an sdist that builds a wheel, a wheel that works on its own, a clear error without PyTorch.

The environments are empty except for a .pth file that names this environment's site-packages, or links to some of its
packages, so that PyTorch is not installed again. A .pth in a folder that a .pth names is not read: an editable udskd of
this environment stays unseen.
"""

from __future__ import annotations

import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import udskd
from bench import cuda_toolkit
from udskd.errors import PACKAGES

pytestmark = [pytest.mark.packaging, pytest.mark.slow]
ROOT = Path(__file__).parents[1]
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "runs", "*.egg-info", "*.so", "__pycache__", ".*_cache", ".hypothesis"
)
FROM_OUTSIDE = ("PYTHONPATH", "MAKEFLAGS", "FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "UDSKD_OBJECTS")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in FROM_OUTSIDE}


def call(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The output of a command. AssertionError with the output if it fails."""
    env = ENVIRONMENT | environment
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=env)
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


def kernels() -> dict[str, str]:
    """Environment variables with which setup.py links the objects of this environment's own build.

    Without objects that are up to date it compiles the CPU kernels, which takes a minute.
    """
    info, toolkit = udskd.build_info(), cuda_toolkit.home()
    cuda = info["cuda_compiled"] and toolkit
    folder = next(ROOT.glob(f"build/temp.*-{sys.implementation.cache_tag}{'-cuda' if cuda else ''}"), None)
    ninja = Path(sysconfig.get_path("scripts"), "ninja")
    if not folder or "no work to do" not in call(ninja, "-n", cwd=folder):
        return {"FORCE_CUDA": "0"}
    if not cuda:
        return {"FORCE_CUDA": "0", "UDSKD_OBJECTS": str(folder)}
    archs = ";".join(info["cuda_archs"]) + ("+PTX" if info["cuda_ptx"] else "")
    return {"TORCH_CUDA_ARCH_LIST": archs, "CUDA_HOME": str(toolkit), "UDSKD_OBJECTS": str(folder)}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheels: that of `make wheel`, or one that is built here."""
    if given := os.getenv("UDSKD_DIST"):
        return Path(given)
    source = tmp_path_factory.mktemp("source") / "udskd"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)
    call("make", "wheel-here", f"VENV={sys.prefix}", cwd=source, **kernels())
    return source / "dist"


@pytest.fixture(scope="module")
def sdist(dist: Path) -> Path:
    (archive,) = dist.glob("udskd-*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    (built,) = dist.glob(f"udskd-*-{python}-{python}-*.whl")
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


def files(folder: Path) -> set[str]:
    """The sources of a folder of the repository, relative to it."""
    generated = re.compile(r"__pycache__|\.so$")
    paths = (path for path in (ROOT / folder).rglob("*") if path.is_file() and not generated.search(str(path)))
    return {str(path.relative_to(ROOT / folder)) for path in paths}


def test_sdist_holds_all_that_the_repository_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {f"{top}/{name}" for top in ("csrc", "tests", "udskd", "recipes", "bench") for name in files(Path(top))}
    assert {"csrc/ops.cpp", "csrc/loss/cuda/rows_float.cu", "tests/conftest.py", "udskd/demo/demo.toml"} <= wanted
    assert (wanted | {"LICENSE", "README.md", "Makefile", "setup.py", "CHANGELOG.md", ".ci/run"}) - held == set()


def test_sdist_holds_nothing_that_was_compiled(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        assert [name for name in archive.getnames() if re.search(r"\.(so|o|pyc)$", name)] == []


def test_wheel_of_the_sdist_holds_the_library_and_the_packages_files_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith("/")}
    (library,) = (name for name in held if re.fullmatch(r"udskd/_C\.cpython-\d+-\S+\.so", name))
    package, recipes = files(Path("udskd")), files(Path("recipes"))
    assert {"py.typed", "demo/demo.toml"} <= package
    assert held - {library} == {f"udskd/{name}" for name in package} | {f"udskd/recipes/{name}" for name in recipes}


def test_the_wheels_manylinux_tag_is_not_older_than_the_librarys_symbols(wheel: Path) -> None:
    found = re.search(rf"-manylinux_2_(\d+)_{platform.machine()}\.whl$", wheel.name)
    assert found, wheel.name
    with zipfile.ZipFile(wheel) as archive:
        (library,) = (name for name in archive.namelist() if name.startswith("udskd/_C."))
        symbols = re.findall(rb"\0GLIBC_2\.(\d+)", archive.read(library))
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        assert f"Tag: {wheel.stem.partition('dev0-')[2]}" in archive.read(metadata).decode().splitlines()
    assert symbols
    assert max(map(int, symbols)) <= int(found[1])


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


def test_installed_command_trains_a_recipe_by_name_away_from_the_sources(installed: Path, tmp_path: Path) -> None:
    command, random = installed.with_name("udskd"), np.random.default_rng(0)
    for split, label in itertools.product(("train", "val"), ("bird", "fish")):
        folder = tmp_path / "images" / split / label
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    size = ("--data.image_size", "32", "--training.batch_size", "4")
    epochs = ("--teacher.epochs", "1", "--training.epochs", "1")
    assert call(command, "--version", cwd=tmp_path).startswith("udskd ")
    call(command, "train", "caltech20", "--data.root", "images", *size, *epochs, "--output", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "summary.json").exists()


def test_installed_demo_draws_its_figure(installed: Path, tmp_path: Path) -> None:
    program = """if True:
        from pathlib import Path
        from udskd.config import schema, toml
        from udskd.data import synthetic
        from udskd.demo import demo

        names = {"teacher.epochs": 1, "training.epochs": 1, "student_a.model": "tiny_plain_2"}
        Path("short.toml").write_text(toml.dump(schema.with_values(toml.load(demo.RECIPE), names)))
        demo.RECIPE = Path("short.toml")
        synthetic.SIZES.update(train=100, val=100)
        demo.main()
    """
    assert "| udskd" in call(installed, "-c", program, cwd=tmp_path)
    assert (tmp_path / "runs" / "demo" / "demo.png").exists()


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
