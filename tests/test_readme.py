"""Every example in README.md and docs/ runs as it stands, and README's commands, files and numbers exist."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import udskd
from udskd import methods
from udskd.cli import main
from udskd.config import toml
from udskd.config.schema import DataConfig
from udskd.models import zoo
from udskd.models.checkpoints import WeightsInfo, save_weights

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[Any]:
    """The code blocks of a language in all pages, as parameters of a test."""
    return [
        pytest.param(code, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, code in enumerate(
            re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        )
    ]


def write_a_run(folder: Path) -> None:
    """Write the files that the examples read: a student of runs/udskd, and a photograph."""
    (folder / "runs" / "udskd").mkdir(parents=True)
    module, data = zoo.build("mobilenet_v2", 3, 64).module, DataConfig()
    info = WeightsInfo("mobilenet_v2", "small", ("cat", "dog", "owl"), 64, data.mean, data.std, data.eval_crop)
    save_weights(folder / "runs" / "udskd" / "student_b.safetensors", module.state_dict(), info)
    Image.new("RGB", (90, 60)).save(folder / "photo.jpg")


def training_loop() -> dict[str, Any]:
    """The names that README's training loop expects in the reader's program."""
    teacher, student_a, student_b = (nn.Linear(8, 3) for _ in range(3))
    optimizer = torch.optim.SGD([*student_a.parameters(), *student_b.parameters()], lr=0.1)
    names = {"teacher": teacher, "student_a": student_a, "student_b": student_b, "optimizer": optimizer}
    return {**names, "loader": [(torch.randn(4, 8), torch.arange(4) % 3)] * 2, "torch": torch, "udskd": udskd}


@pytest.mark.parametrize("example", blocks("python"))
def test_example_runs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_a_run(tmp_path)
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("example.py", init_globals=training_loop(), run_name="__main__")


def test_the_training_loop_trains_both_students() -> None:
    (loop,) = [block.values[0] for block in blocks("python") if "in loader" in block.values[0]]
    names = training_loop()
    before = {role: names[role].weight.detach().clone() for role in ("teacher", "student_a", "student_b")}
    exec(loop, names)  # README.md is ours
    changed = {role for role, weight in before.items() if not torch.equal(weight, names[role].weight)}
    assert changed == {"student_a", "student_b"}


def test_there_is_an_example_of_the_loss_alone() -> None:
    assert "udskd.dual_student_loss" in README
    assert "udskd.DualStudentLoss(" in README


def test_there_is_an_example_of_a_trained_student() -> None:
    assert "udskd.load(" in README


@pytest.mark.parametrize("recipe", blocks("toml"))
def test_recipe_loads(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(recipe, encoding="utf-8")
    methods.check(toml.load(tmp_path / "mine.toml"))


def test_measured_numbers_are_those_of_the_results() -> None:
    """The cells of README's tables of speed and accuracy are cells of the tables in docs/results.md."""
    known = set(re.split(r"[|\n]", (ROOT / "docs" / "results.md").read_text(encoding="utf-8").replace(" ", "")))
    measured = re.search(r"^## Speed\n.*?^## Train", README, re.DOTALL | re.MULTILINE)
    assert measured
    cells = re.findall(r"(?<=\|) *([\d.,]+ (?:µs|ms|± [\d.]+)|[\d.]+×) *(?=\|)", measured[0])
    assert len(cells) == 3 * 5 + 4 * 4
    assert [cell for cell in cells if cell.replace(" ", "") not in known] == []


def test_every_file_that_it_links_to_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_make_target_that_the_pages_name_exists() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (*PAGES, ROOT / "CONTRIBUTING.md"))
    named = set(re.findall(r"`make ([a-z-]+)", pages)) | set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_every_command_that_it_names_exists() -> None:
    named = set(re.findall(r"\budskd (train|eval|compare|demo|[a-z]+(?= --))", README))
    assert {"train", "eval", "compare", "demo"} <= named <= set(main.root.commands)


def test_its_table_has_every_command() -> None:
    assert set(re.findall(r"^\| `udskd ([a-z-]+)", README, re.MULTILINE)) == set(main.root.commands)


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*.toml")), ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    methods.check(toml.load(path))
