"""udskd study uncertainty with smaller networks, fewer images, fewer runs and one epoch."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image, ImageColor

from udskd import methods, study
from udskd.config import schema, toml
from udskd.data import EmbeddedSet, synthetic
from udskd.demo import demo
from udskd.demo.demo import logits_of
from udskd.errors import CheckpointError, ConfigError
from udskd.results.statistics import spearman
from udskd.study import figure, measurements, training_runs
from udskd.study.predictions import read_run_predictions, student_predictions
from udskd.study.tables import chapters

SHORT = ("kd", "ce", "udskd-entropy-confident", "udskd-margin-uncertain", "cud", "variance")

ALL = dict(training_runs.RUNS)


@dataclass(frozen=True)
class Study:
    """A finished study of one seed, and its printed output."""

    folder: Path
    printed: str

    def numbers(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "uncertainty.json").read_text())
        return found

    def tables(self) -> list[dict[str, list[str]]]:
        """The cells of each table of the document, by the row's first cell."""
        found: list[dict[str, list[str]]] = []
        for line in (self.folder / "uncertainty.md").read_text().splitlines():
            if line.startswith("**"):
                found.append({})
            elif line.startswith("| "):
                first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
                found[-1][first] = cells
        return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make the study small for all tests of this file; yield a folder."""
    folder = tmp_path_factory.mktemp("study")
    values = {"teacher.model": "tiny_plain_4", "student_a.model": "tiny_plain_2", "student_b.model": "tiny_separable_2"}
    small = schema.with_values(toml.load(demo.RECIPE), {**values, "data.workers": 0, "cud.stage_epochs": 1})
    (folder / "small.toml").write_text(toml.dump(small))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "RECIPE", folder / "small.toml")
        patch.setattr(training_runs, "RUNS", {name: training_runs.RUNS[name] for name in SHORT})
        for split in ("train", "val"):
            patch.setitem(synthetic.SIZES, split, 100)
        yield folder


@pytest.fixture(scope="module")
def done(small: Path) -> Study:
    with redirect_stdout(io.StringIO()) as printed:
        assert study.uncertainty(small / "out", seeds=1, epochs=1) == 0
    return Study(small / "out", printed.getvalue())


def test_all_runs_learn_from_the_teacher_of_kd(done: Study) -> None:
    assert {path.name for path in done.folder.iterdir() if path.is_dir()} == {f"{name}-seed0" for name in SHORT}
    assert [path.parent.name for path in done.folder.rglob("teacher.safetensors")] == ["kd-seed0"]
    summaries = [json.loads((done.folder / f"{name}-seed0" / "summary.json").read_text()) for name in SHORT]
    teacher_nll = {summary["method"]: summary["teacher"] and summary["teacher"]["nll"] for summary in summaries}
    assert teacher_nll["ce"] is None
    assert teacher_nll["kd"] == teacher_nll["udskd"] == teacher_nll["variance"] != teacher_nll["cud"]


def test_every_seed_has_a_teacher_of_its_own(tmp_path: Path) -> None:
    for seed in (0, 3):
        configs = training_runs.configs_of(training_runs.settings(None), tmp_path, seed)
        assert configs.pop("kd").teacher.checkpoint is None
        assert {config.teacher.checkpoint for config in configs.values()} == {
            str(tmp_path / f"kd-seed{seed}" / "teacher.safetensors")
        }
        assert {config.seed for config in configs.values()} == {seed}


def test_epochs_are_those_of_teacher_and_students(done: Study) -> None:
    options = toml.load(done.folder / "kd-seed0" / "config.toml")
    assert (options.training.epochs, options.teacher.epochs) == (1, 1)
    assert training_runs.settings(None) == toml.load(demo.RECIPE)


def test_a_second_study_trains_nothing_again_and_has_the_same_results(
    done: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = {path: path.stat().st_mtime_ns for path in done.folder.rglob("*.safetensors")}
    before = {name: (done.folder / name).read_bytes() for name in ("uncertainty.json", "uncertainty.md")}
    assert study.uncertainty(done.folder, seeds=1, epochs=1) == 0
    assert {path: path.stat().st_mtime_ns for path in done.folder.rglob("*.safetensors")} == trained
    assert {name: (done.folder / name).read_bytes() for name in before} == before
    assert capsys.readouterr().out.count("there is nothing to continue") == len(SHORT)


def test_an_interrupted_run_is_continued(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_runs, "RUNS", {"kd": ALL["kd"]})
    shared, run = training_runs.settings(1), tmp_path / "kd-seed0"
    training_runs.train_all(shared, tmp_path, 1)
    log, summary = (run / "log.jsonl").read_text(), json.loads((run / "summary.json").read_text())
    (run / "summary.json").unlink()  # as after a crash just before the end
    training_runs.train_all(shared, tmp_path, 1)
    assert json.loads((run / "summary.json").read_text()) == summary
    assert (run / "log.jsonl").read_text() == log  # with the times of the epochs: none was trained again
    assert len((run / "restarts.jsonl").read_text().splitlines()) == 1


def test_what_is_printed_is_what_is_written(done: Study) -> None:
    document = (done.folder / "uncertainty.md").read_text()
    printed = [line for line in done.printed.splitlines() if line.startswith("| ")]
    assert printed == [line for line in document.splitlines() if line.startswith("| ")]
    assert f"udskd study uncertainty --seeds 1 --epochs 1 --output {done.folder}" in document
    assert document.count("\n## ") == 5


def test_the_cells_are_the_numbers(done: Study) -> None:
    numbers, tables = done.numbers(), done.tables()
    measured, truth = numbers["measured"], numbers["truth"]
    for name, row in measured["weights"].items():
        best = truth["weights"][name]
        values = [row["rank_correlation"], best["rank_correlation"], row["mean"], best["mean"]]
        assert tables[0][name] == [f"{value:.3f}" for (value,) in values]
    plan = [("calibration", 3, 2), ("expected top-1", 1, 4), ("top-1", 1, 6)]
    for what, digits, first in plan:
        for place, role in enumerate(("student_a", "student_b")):
            for name, row in (measured[f"{what} of teacher"] | measured[f"{what} of {role}"]).items():
                assert tables[first + place][name] == [f"{value:.{digits}f}" for (value,) in row.values()]


def test_cells_of_several_seeds_are_mean_and_deviation(done: Study) -> None:
    numbers = done.numbers()
    seed = {
        t: {r: {n: v for n, (v,) in row.items()} for r, row in rows.items()} for t, rows in numbers["measured"].items()
    }
    other = {t: {r: {n: v + 2 for n, v in row.items()} for r, row in rows.items()} for t, rows in seed.items()}
    measured = measurements.merge_seeds([seed, other])
    kl = seed["calibration of student_b"]["cud"]["kl"]
    assert measured["calibration of student_b"]["cud"]["kl"] == [kl, kl + 2]
    models = {"student_a": "a", "student_b": "b"}
    found = chapters(measured, numbers["truth"], models, EmbeddedSet("val"))[2].sections[1]
    assert found.title == "student_b: b"
    assert next(row for row in found.rows if row[0] == "cud")[1] == f"{kl + 1:.3f} ± 1.414"


def test_every_network_has_its_row(done: Study) -> None:
    weights, targets, *students = done.tables()
    assert list(weights) == ["weight", "entropy, confident", "margin, uncertain"]
    assert list(targets) == ["target", "teacher", "teacher of cud", "cud", "variance, student_a", "variance, student_b"]
    assert len(students) == 6
    for table in students[:2]:
        assert list(table) == ["run", "teacher", "teacher of cud", *SHORT]
    for table in students[2:]:
        assert list(table) == ["run", "Bayes-optimal", "teacher", "teacher of cud", *SHORT]


def test_a_run_has_the_divergence_from_the_truth_of_its_own_evaluation(done: Study) -> None:
    measured = done.numbers()["measured"]
    for name in SHORT:
        summary = json.loads((done.folder / f"{name}-seed0" / "summary.json").read_text())
        for role in ("student_a", "student_b"):
            (kl,), (top1,) = measured[f"calibration of {role}"][name]["kl"], measured[f"top-1 of {role}"][name]["all"]
            assert kl == pytest.approx(summary[role]["posterior_kl"], rel=1e-3)
            assert top1 == pytest.approx(summary[role]["top1"], abs=1.0)  # float16 may make two classes equal


def test_the_teachers_numbers_are_those_of_its_own_evaluation(done: Study) -> None:
    measured = done.numbers()["measured"]
    for name, row in (("kd", "teacher"), ("cud", "teacher of cud")):
        summary = json.loads((done.folder / f"{name}-seed0" / "summary.json").read_text())["teacher"]
        assert measured["calibration of teacher"][row]["kl"] == [pytest.approx(summary["posterior_kl"], rel=1e-4)]
        assert measured["targets"][row]["rank_correlation"] == [pytest.approx(summary["entropy_corr"], abs=1e-3)]


def test_the_weights_are_those_of_the_formulas(done: Study) -> None:
    config, images = training_runs.settings(1), EmbeddedSet("val")
    logits = logits_of(done.folder / "kd-seed0" / "teacher.safetensors", config, images)
    p = logits.softmax(-1).numpy()
    top = np.sort(p, axis=-1)[:, ::-1]
    expected = {
        "entropy, confident": 1 + (p * np.log(p)).sum(-1) / np.log(p.shape[-1]),
        "margin, uncertain": 1 - (top[:, 0] - top[:, 1]),
    }
    measured = done.numbers()["measured"]["weights"]
    assert measured.keys() == expected.keys()
    for name, weight in expected.items():
        assert measured[name]["mean"][0] == pytest.approx(weight.mean(), abs=1e-9)
        assert measured[name]["rank_correlation"][0] == pytest.approx(spearman(weight, images.entropy), abs=1e-9)


def test_normalized_weights_have_the_ranks_of_the_others_and_the_mean_one(small: Path) -> None:
    images = EmbeddedSet("val")
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 2, images.posterior.shape))
    shared, names = training_runs.settings(1), ("udskd-entropy-confident", "udskd-entropy-confident-normalized")
    plain, normalized = (
        measurements.weights_of([schema.with_values(shared, ALL[name])], logits, images)["entropy, confident"]
        for name in names
    )
    assert normalized.mean() == pytest.approx(1)
    assert plain.mean() < 0.9
    assert spearman(plain, images.entropy) == pytest.approx(spearman(normalized, images.entropy), abs=1e-12)


def test_a_teacher_that_knows_the_truth_weighs_by_it(done: Study) -> None:
    weights = done.numbers()["truth"]["weights"]
    assert weights["entropy, confident"]["rank_correlation"] == [pytest.approx(-1)]
    assert 0.9 < weights["margin, uncertain"]["rank_correlation"][0] < 1


def test_the_best_accuracy_is_the_posteriors(done: Study) -> None:
    images, truth = EmbeddedSet("val"), done.numbers()["truth"]
    best = truth["expected top-1 of Bayes-optimal"]["Bayes-optimal"]
    assert best["all"][0] == pytest.approx(100 * images.bayes_accuracy)
    clearest = np.argsort(images.entropy)[:10]
    assert best["1"][0] == pytest.approx(100 * images.posterior[clearest].max(axis=1).mean())
    for row in done.numbers()["measured"]["expected top-1 of student_a"].values():
        assert max(row["all"]) < best["all"][0]


def test_a_method_receives_the_predictions_of_each_network(done: Study) -> None:
    images, folder, teacher = EmbeddedSet("val"), done.folder / "ce-seed0", torch.zeros(100, 10, dtype=torch.float64)
    answers = read_run_predictions(folder, training_runs.settings(1), teacher, images).answers(images)
    stored = safetensors.numpy.load_file(folder / "predictions.safetensors")
    for role, p in stored.items():
        np.testing.assert_allclose(answers.student(role).softmax(-1), p, rtol=2e-3, atol=1e-6)
    assert not np.allclose(stored["student_a"], stored["student_b"], atol=0.01)
    assert answers.teacher is teacher
    np.testing.assert_array_equal(answers.target, images.labels)


def test_cuds_target_is_nearer_to_the_label_than_its_teacher(done: Study) -> None:
    """Wrong-mass clipping changes the target of the misclassified images only."""
    images, config = EmbeddedSet("val"), training_runs.settings(1)
    name, folder = "cud", done.folder / "cud-seed0"
    found = read_run_predictions(folder, training_runs.config_of(config, done.folder, name, 0), torch.empty(0), images)
    own = logits_of(folder / "teacher_shaped.safetensors", config, images)
    assert found.has_own_teacher
    torch.testing.assert_close(found.teacher, own, rtol=0, atol=0)
    p = own.softmax(-1).numpy()
    run = training_runs.config_of(config, done.folder, name, 0)
    rows = measurements.measure_targets(name, run, found, images)["targets"]
    wrong = p.argmax(-1) != images.labels
    gap = p[wrong].max(-1) - p[wrong, images.labels[wrong]]
    moved = np.minimum(0.5 * p[wrong].max(-1), 0.7 * gap)
    q = p.copy()
    q[wrong, p[wrong].argmax(-1)] -= moved
    q[wrong, images.labels[wrong]] += moved
    assert wrong.any()
    assert rows["cud"]["mean_entropy"] == pytest.approx(-(q * np.log(q)).sum(-1).mean(), abs=1e-9)
    assert rows["cud"]["total_variation"] == pytest.approx(np.abs(q - images.posterior).sum(-1).mean() / 2, abs=1e-9)


def test_the_figure_is_drawn(done: Study) -> None:
    with Image.open(done.folder / "uncertainty.png") as picture:
        assert picture.width > 1500
        shown = {colour for _, colour in picture.convert("RGB").getcolors(2**24) or []}
    assert {ImageColor.getrgb(colour) for colour in figure.CURVES.values()} <= shown


@pytest.mark.parametrize(("arguments", "option"), [({"seeds": 0}, "--seeds"), ({"epochs": 0}, "--epochs")])
def test_less_than_one_is_refused_by_the_options_name(arguments: dict[str, int], option: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{option} must be at least 1, got 0$"):
        study.uncertainty(tmp_path / "out", **{"seeds": 1, "epochs": None, **arguments})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_runs_of_other_epochs_in_the_folder_are_refused(done: Study) -> None:
    with pytest.raises(ConfigError, match=r"kd-seed0 was started with teacher\.epochs = 1, not 2"):
        study.uncertainty(done.folder, seeds=1, epochs=2)


def test_predictions_that_are_missing_or_of_other_images_are_named(tmp_path: Path) -> None:
    images = EmbeddedSet("val", 5)
    with pytest.raises(CheckpointError, match=r"there is no .*predictions\.safetensors"):
        student_predictions(tmp_path, images)
    rows = {role: np.full((4, 10), 0.1, dtype=np.float16) for role in ("student_a", "student_b")}
    (tmp_path / "predictions.safetensors").write_bytes(safetensors.numpy.save(rows))
    with pytest.raises(CheckpointError, match=r"student_a for the validation images, \[5, 10\], got \[4, 10\]"):
        student_predictions(tmp_path, images)


def test_the_study_has_all_twelve_weightings_and_the_other_methods() -> None:
    weighted = {name: values for name, values in ALL.items() if values["method"] == "udskd"}
    assert [name for name in ALL if name not in weighted] == ["kd", "ce", "kd-longer", "cud", "variance"]
    assert next(iter(ALL)) == "kd"
    config = toml.load(demo.RECIPE)
    losses = {schema.with_values(config, values).loss for values in weighted.values()}
    assert len(losses) == 12
    for loss in losses:
        assert replace(loss, uncertainty="entropy", trust="confident", normalize_weights=False) == config.loss
    for values in ALL.values():
        methods.check(schema.with_values(config, values))
