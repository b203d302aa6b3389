"""Every Python example in README.md runs as it stands, and its commands and files exist."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

from udskd import methods
from udskd.cli import main
from udskd.config import toml
from udskd.config.schema import DataConfig
from udskd.models import zoo
from udskd.models.checkpoints import WeightsInfo, save_weights

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def write_a_run(folder: Path) -> None:
    """Write the files that the examples read: a student of runs/udskd, and a photograph."""
    (folder / "runs" / "udskd").mkdir(parents=True)
    module, data = zoo.build("mobilenet_v2", 3, 64).module, DataConfig()
    info = WeightsInfo("mobilenet_v2", "small", ("cat", "dog", "owl"), 64, data.mean, data.std, data.eval_crop)
    save_weights(folder / "runs" / "udskd" / "student_b.safetensors", module.state_dict(), info)
    Image.new("RGB", (90, 60)).save(folder / "photo.jpg")


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_a_run(tmp_path)
    (tmp_path / "example.py").write_text(EXAMPLES[number], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("example.py", run_name="__main__")


def test_there_is_an_example_of_the_loss_alone() -> None:
    assert any("udskd.dual_student_loss" in example or "udskd.DualStudentLoss" in example for example in EXAMPLES)


def test_there_is_an_example_of_a_trained_student() -> None:
    assert any("udskd.load(" in example for example in EXAMPLES)


def test_every_file_that_it_links_to_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_make_target_that_it_names_exists() -> None:
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_every_command_that_it_names_exists() -> None:
    named = set(re.findall(r"\budskd (train|eval|compare|demo|[a-z]+(?= --))", README))
    assert {"train", "eval", "compare", "demo"} <= named <= set(main.root.commands)


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*.toml")), ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    methods.check(toml.load(path))
