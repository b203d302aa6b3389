"""udskd compare on run folders that the tests write: reading, grouping, refusing and showing them."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from rich.console import Console

from udskd.errors import DataError, UdskdError
from udskd.results import table as report
from udskd.results.runs import group_runs, read_runs


def write_run(
    folder: Path,
    method: str = "kd",
    seed: int = 0,
    top1: float = 60.0,
    toml: str = "",
    epochs: tuple[int, ...] = (1, 2, 3),
    **summary: Any,
) -> Path:
    """Write a small run folder with the files of `udskd train`."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f'method = "{method}"\nseed = {seed}\n{toml}\n')

    def metrics(value: float) -> dict[str, Any]:
        return {"top1": value, "top5": 90.0, "nll": 1.25, "ece": 0.05, "brier": 0.5}

    students = {
        "student_a": {"model": "resnet18", **metrics(top1)},
        "student_b": {"model": "mobilenet_v2", **metrics(top1 - 5)},
    }
    data = {"root": "photographs", "classes": 2, "class_hash": "ab12", "train_images": 100, "val_images": 50}
    whole = {"method": method, "seed": seed, "status": "complete", "dataset": data, "teacher": None, **students}
    (folder / "summary.json").write_text(json.dumps(whole | summary))
    events = [{"event": "start"}, *({"event": "epoch", "epoch": epoch, **students} for epoch in epochs)]
    (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def rows(runs: list[Path], section: int = 0) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in report.table(group_runs(read_runs(runs)))[section].rows}


def test_seeds_of_one_setting_become_one_row_of_mean_and_sample_deviation(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(seed), seed=seed, top1=top1) for seed, top1 in enumerate([60.0, 62.0, 67.0])]
    assert rows(runs) == {"kd": ["3", "63.00 ± 3.61", "1.250 ± 0.000", "0.050 ± 0.000", "0.500 ± 0.000"]}
    assert rows(runs, section=1)["kd"][1] == "58.00 ± 3.61"


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    assert rows([write_run(tmp_path / "a")])["kd"][:2] == ["1", "60.00"]


def test_sections_name_the_student_networks(tmp_path: Path) -> None:
    sections = report.table(group_runs(read_runs([write_run(tmp_path / "a")])))
    assert [section.title for section in sections] == ["student_a: resnet18", "student_b: mobilenet_v2"]


def test_groups_are_labelled_by_the_options_that_differ_from_the_majority(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "kd", "kd"),
        write_run(tmp_path / "udskd", "udskd"),
        write_run(tmp_path / "none", "udskd", toml='[loss]\nuncertainty = "none"'),
        write_run(tmp_path / "alone", "udskd", toml="[loss]\npeer_weight = 0.0"),
    ]
    assert list(rows(runs)) == ["kd", "udskd", "udskd uncertainty=none", "udskd peer_weight=0"]


def test_without_a_majority_both_values_are_shown(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(t), toml=f"[loss]\ntemperature = {t}.0") for t in (2, 4)]
    assert list(rows(runs)) == ["kd temperature=2", "kd temperature=4"]


def test_an_option_left_out_of_the_recipe_equals_its_default(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1, toml="[loss]\ntemperature = 4.0")]
    assert rows(runs)["kd"][0] == "2"


@pytest.mark.parametrize("toml", ['[data]\nroot = "/elsewhere"', '[teacher]\ncheckpoint = "t.safetensors"'])
def test_where_the_files_lie_does_not_split_a_group(tmp_path: Path, toml: str) -> None:
    assert rows([write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1, toml=toml)])["kd"][0] == "2"


def test_the_same_run_twice_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, again = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    assert rows([first, first, again])["kd"][0] == "1"
    assert capsys.readouterr().err == f"udskd: warning: left out {again}: it has the options and the seed of {first}\n"


def test_a_teacher_shared_by_the_runs_of_a_seed_counts_once(tmp_path: Path) -> None:
    def teacher(top1: float) -> dict[str, float]:
        return {"top1": top1, "nll": 1.0, "ece": 0.02, "brier": 0.4}

    runs = [
        write_run(tmp_path / f"{method}{seed}", method, seed, teacher=teacher(70.0 + seed))
        for method in ("kd", "udskd")
        for seed in (0, 2)
    ]
    assert rows([write_run(tmp_path / "ce", "ce"), *runs])["teacher resnet50"][:2] == ["2", "71.00 ± 1.41"]


def test_uncertainty_columns_appear_only_where_the_posterior_is_known(tmp_path: Path) -> None:
    known = {"model": "resnet18", "top1": 60.0, "nll": 1.0, "ece": 0.1, "brier": 0.5, "entropy_corr": 0.875}
    plain, known_posterior = write_run(tmp_path / "a"), write_run(tmp_path / "b", "udskd", student_a=known)
    assert "H corr." not in report.table(group_runs(read_runs([plain])))[0].header
    assert rows([plain, known_posterior])["udskd"][-1] == "0.875"
    assert rows([plain, known_posterior])["kd"][-1] == ""


def test_an_incomplete_run_is_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, running = write_run(tmp_path / "whole"), write_run(tmp_path / "running", status="running")
    unsummarised = write_run(tmp_path / "unsummarised", "udskd")
    (unsummarised / "summary.json").unlink()
    assert list(rows([whole, running, unsummarised])) == ["kd"]
    warnings = capsys.readouterr().err.splitlines()
    assert [line.split(":")[2].strip() for line in warnings] == [f"left out {running}", f"left out {unsummarised}"]
    assert f"udskd train --resume {running}" in warnings[0]


def test_nothing_complete_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the runs given is complete"):
        read_runs([write_run(tmp_path / "a", status="running")])


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_that_is_no_run_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"{name} is not a run folder"):
        read_runs([tmp_path / name])


@pytest.mark.parametrize("name", ["summary.json", "config.toml"])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "damaged")
    (run / name).write_text("{ 1")
    with pytest.raises(UdskdError, match="damaged"):
        read_runs([run])


def test_runs_of_different_datasets_are_refused(tmp_path: Path) -> None:
    drawings = {"root": "drawings", "classes": 3, "class_hash": "cd34", "train_images": 100, "val_images": 50}
    with pytest.raises(DataError, match=r"photographs: 2 classes.*drawings: 3 classes.*different datasets"):
        read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1, dataset=drawings)])


def test_a_line_of_the_log_that_a_crash_cut_short_is_skipped(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", epochs=(1, 2))
    lines = (folder / "log.jsonl").read_text().splitlines()
    (folder / "log.jsonl").write_text("\n".join([*lines[:2], '{"event": "epo', lines[2]]))
    assert [event["epoch"] for event in read_runs([folder])[0].epochs] == [1, 2]


def test_compare_prints_the_table_and_writes_it_beside_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / f"{m}{s}", m, s, top1=60.0 + s) for m in ("ce", "kd", "udskd") for s in range(2)]
    assert report.compare(runs) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "compare" / "table.md").read_text() in printed
    header = [title.strip() for title in printed.splitlines()[2].strip("|").split("|")]
    assert header == ["method", "seeds", "top-1 %", "NLL", "ECE", "Brier"]
    for name in ("accuracy", "calibration", "curves"):
        with Image.open(tmp_path / "compare" / f"{name}.png") as picture:
            low, high = picture.convert("L").getextrema()
            assert picture.width > 1000
            assert (low, high) != (255, 255)


def test_compare_writes_into_the_given_folder(tmp_path: Path) -> None:
    report.compare([write_run(tmp_path / "a")], tmp_path / "deep" / "figures")
    assert {path.name for path in (tmp_path / "deep" / "figures").iterdir()} == {
        "table.md",
        "accuracy.png",
        "calibration.png",
        "curves.png",
    }
    assert not (tmp_path / "compare").exists()


def test_a_further_trained_teacher_has_a_row_of_its_own(tmp_path: Path) -> None:
    known = {"top1": 60.0, "nll": 1.0, "ece": 0.1, "brier": 0.5}
    plain = write_run(tmp_path / "kd", teacher=known)
    shaped = write_run(tmp_path / "cud", "cud", teacher={**known, "top1": 62.0, "stage": "uncertainty_shaping"})
    rows_of = rows([plain, shaped])
    assert rows_of["teacher resnet50"][:2] == ["1", "60.00"]
    assert rows_of["teacher resnet50, uncertainty_shaping"][:2] == ["1", "62.00"]


def predict(run: Path, *rows: list[float]) -> Path:
    """Write both students' p(class | image) into a run."""
    p = np.array(rows, dtype=np.float16)
    (run / "predictions.safetensors").write_bytes(safetensors.numpy.save({"student_a": p, "student_b": p}))
    return run


def test_the_disagreement_of_seeds_is_the_variance_of_their_predictions(tmp_path: Path) -> None:
    certain = [[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]]
    runs = [predict(write_run(tmp_path / str(s), seed=s), p, [0.25, 0.75]) for s, p in enumerate(certain)]
    (section, _) = report.table(group_runs(read_runs(runs)))
    assert dict(zip(section.header, section.rows[0], strict=True))["inter ‰"] == "125.00"  # half of the images: 0.25


def test_a_single_seed_has_no_disagreement(tmp_path: Path) -> None:
    (section, _) = report.table(group_runs(read_runs([predict(write_run(tmp_path / "a"), [0.5, 0.5])])))
    assert "inter ‰" not in section.header


def test_seeds_without_predictions_have_no_disagreement(tmp_path: Path) -> None:
    runs = [predict(write_run(tmp_path / "0"), [0.5, 0.5]), write_run(tmp_path / "1", seed=1)]
    assert "inter ‰" not in report.table(group_runs(read_runs(runs)))[0].header


@pytest.mark.parametrize(
    ("contents", "differ"),
    [
        (["sha256:a", "sha256:b"], True),
        (["sha256:a", "crc32:b", "sha256:c"], True),
        (["sha256:a", "sha256:a"], False),
        (["sha256:a", "crc32:b"], False),
        (["sha256:a", None], False),
    ],
)
def test_seeds_evaluated_on_different_images_are_named_and_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], contents: list[str | None], differ: bool
) -> None:
    data = {"root": "photographs", "classes": 2, "class_hash": "ab12", "train_images": 100, "val_images": 50}
    runs = [
        predict(write_run(tmp_path / str(s), seed=s, dataset={**data, "val_contents": one}), [0.5, 0.5])
        for s, one in enumerate(contents)
    ]
    (section, *_) = report.table(group_runs(read_runs(runs)))
    assert ("inter ‰" in section.header) != differ
    assert ("validation images of different contents" in capsys.readouterr().err) == differ


def test_a_run_with_damaged_predictions_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [predict(write_run(tmp_path / str(s), seed=s), [0.5, 0.5]) for s in range(2)]
    (tmp_path / "1" / "predictions.safetensors").write_bytes(b"damaged")
    assert [run.path for run in read_runs(runs)] == runs[:1]
    assert "1/predictions.safetensors is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", [b"\xff\xfe", b"[]", b"{}", b'{"event": 3}', b'{"event": "epoch", "epoch": "one"}', b"[" * 5_000]
)
def test_a_damaged_line_of_the_log_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: bytes
) -> None:
    log = write_run(tmp_path / "a") / "log.jsonl"
    intact = read_runs([tmp_path / "a"])[0].epochs
    log.write_bytes(line + b"\n" + log.read_bytes())
    assert read_runs([tmp_path / "a"])[0].epochs == intact
    assert "a/log.jsonl is damaged, left out: line 1 (" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["method", "student_a", "student_b", "dataset", "teacher"])
@pytest.mark.parametrize("value", [3, [], {"top1": "x"}])
def test_a_summary_with_a_value_of_another_type_is_named(tmp_path: Path, key: str, value: object) -> None:
    file = write_run(tmp_path / "a") / "summary.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(DataError, match=rf"a/summary\.json is damaged \({key}"):
        read_runs([tmp_path / "a"])


def test_labels_are_shown_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither rich's markup, nor matplotlib's mathematics, nor a terminal's escape sequences."""
    names = ("a[/red]", "$_{$", "\x1b[31mred", ":smile:")
    toml = '[student_a]\nmodel = "{}"'.format
    runs = [
        write_run(tmp_path / str(number), toml=toml(name.replace("\x1b", "\\u001b")), student_a=student(name))
        for number, name in enumerate(names)
    ]
    terminal = io.StringIO()
    monkeypatch.setattr(
        report, "Console", partial(Console, file=terminal, force_terminal=True, no_color=True, width=200)
    )
    assert report.compare(runs, tmp_path / "compared") == 0
    shown = terminal.getvalue()
    assert all(f"student_a: {name}" in shown for name in ("a[/red]", "$_{$", "\\x1b[31mred", ":smile:"))
    assert (tmp_path / "compared" / "curves.png").exists()


def student(model: str) -> dict[str, Any]:
    return {"model": model, "top1": 60.0, "top5": 90.0, "nll": 1.25, "ece": 0.05, "brier": 0.5}
