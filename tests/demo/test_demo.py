"""`udskd demo` with smaller networks, fewer images and one epoch, so that it takes seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udskd.config import schema, toml
from udskd.data import EmbeddedSet, synthetic
from udskd.demo import demo
from udskd.models import zoo


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes the demo small. Returns a folder for its runs."""
    config = schema.with_values(
        toml.load(demo.RECIPE),
        {
            "data.workers": 0,
            "teacher.model": "tiny_plain_4",
            "teacher.epochs": 1,
            "student_a.model": "tiny_plain_2",
            "student_b.model": "tiny_separable_2",
            "training.epochs": 1,
        },
    )
    (tmp_path / "small.toml").write_text(toml.dump(config))
    monkeypatch.setattr(demo, "RECIPE", tmp_path / "small.toml")
    for split in ("train", "val"):
        monkeypatch.setitem(synthetic.SIZES, split, 100)
    return tmp_path / "demo"


def summary(run: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((run / "summary.json").read_text())
    return found


def test_demo_trains_all_methods_with_one_teacher(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(small) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("[")] == ["[1/3]", "[2/3]", "[3/3]"]
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert rows == 2 * ["method", "teacher tiny_plain_4", "ce", "kd", "udskd"]
    assert summary(small / "ce")["teacher"] is None
    assert summary(small / "kd")["teacher"]["nll"] == summary(small / "udskd")["teacher"]["nll"]
    with Image.open(small / "demo.png") as picture:
        assert picture.width > 1000


def test_a_second_demo_trains_nothing_again(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.main(small)
    capsys.readouterr()
    trained = {path: path.stat().st_mtime_ns for path in small.rglob("*.safetensors")}
    assert {path.name for path in trained} >= {"teacher.safetensors", "student_a.safetensors"}
    assert demo.main(small) == 0
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*.safetensors")} == trained
    assert "| udskd" in capsys.readouterr().out


def test_the_best_possible_accuracy_is_what_the_true_posterior_scores_on_the_same_labels(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.main(small)
    val = EmbeddedSet("val")
    right = sum(int(row.argmax()) == val.label(i) for i, row in enumerate(val.posterior))
    assert f"Best possible top-1 on these labels: {right:.2f} %." in capsys.readouterr().out


def test_the_weights_in_the_figure_are_the_teachers_own(small: Path) -> None:
    config, val = toml.load(demo.RECIPE), EmbeddedSet("val")
    demo.run(config, small, "kd")
    found = demo.teacher_uncertainty(small / "kd" / "teacher.safetensors", config, val)
    np.testing.assert_array_equal(found.true_entropy, val.entropy)
    # The weight falls as the entropy rises: the rank correlation of its negative is the one that the run reports.
    ranks = [np.argsort(np.argsort(values)) for values in (val.entropy, -found.weight)]
    expected = summary(small / "kd")["teacher"]["entropy_corr"]
    assert np.corrcoef(*ranks)[0, 1] == pytest.approx(expected, abs=1e-3)


def test_the_recipe_has_generated_images_and_existing_networks() -> None:
    config = toml.load(demo.RECIPE)
    assert config.data.root == "embedded"
    for network in (config.teacher, config.student_a, config.student_b):
        zoo.build(network.model, 10, config.data.image_size, network.stem)
