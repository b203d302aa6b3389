"""A run continues on the images that it was begun with, wherever they are, and on no others."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.training.conftest import tiny_config, write_tree
from tests.training.helpers.runs import on_call, outcome
from udskd.config import schema
from udskd.config.schema import Config
from udskd.data import dataset, formats, pack
from udskd.data import folder as folder_module
from udskd.data import tree as data_tree
from udskd.errors import CheckpointError, DataError, Interrupted
from udskd.training import evaluate_run, train
from udskd.training.tasks.students import StudentsTask


@pytest.fixture
def own(tmp_path: Path) -> Config:
    """Options of a run on a tree of its own."""
    return replace(tiny_config(write_tree(tmp_path / "tree"), tmp_path / "run"), method="ce")


@pytest.fixture
def stopped(own: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The same, stopped in its second epoch."""
    with monkeypatch.context() as patch:
        on_call(patch, StudentsTask, "losses", 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            train(own)
    return own


def other_pixels(path: Path) -> None:
    Image.new("RGB", (12, 12), "red").save(path)


def remove_two(root: Path) -> None:
    for name in ("train/red/3.png", "val/blue/0.png"):
        (root / name).unlink()


CHANGES = {
    "removed": (remove_two, "2 removed (train/red/3.png, val/blue/0.png)"),
    "added": (lambda root: other_pixels(root / "train" / "blue" / "new.png"), "1 added (train/blue/new.png)"),
    "changed": (lambda root: other_pixels(root / "val" / "red" / "2.png"), "1 changed (val/red/2.png)"),
}


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES)
def test_a_run_on_other_images_is_refused_in_one_sentence(
    stopped: Config, tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    change(tmp_path / "tree")
    log = (tmp_path / "run" / "log.jsonl").read_bytes()
    with pytest.raises(DataError) as error:
        train(stopped, resume=tmp_path / "run")
    assert str(error.value) == (
        f"{tmp_path}/run was started with other images than {tmp_path}/tree has now: {words}; put those images back to "
        "continue it, or start another run"
    )
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log


def test_a_run_that_was_refused_continues_when_its_images_are_back(stopped: Config, tmp_path: Path) -> None:
    path = tmp_path / "tree" / "train" / "red" / "3.png"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(DataError, match="1 removed"):
        train(stopped, resume=tmp_path / "run")
    path.write_bytes(content)
    train(replace(stopped, output=str(tmp_path / "straight")))
    train(stopped, resume=tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")


@pytest.mark.parametrize("where", ["moved", "copied", "packed"])
def test_the_same_images_in_another_place_are_accepted(stopped: Config, tmp_path: Path, where: str) -> None:
    root, other = tmp_path / "tree", tmp_path / "other"
    train(replace(stopped, output=str(tmp_path / "straight")))
    if where == "moved":
        root.rename(other)
    elif where == "copied":
        shutil.copytree(root, other, copy_function=shutil.copyfile)
        shutil.rmtree(root)
    else:
        pack(root, other, short_side=None)
    train(schema.with_values(stopped, {"data.root": str(other)}), resume=tmp_path / "run")
    ours, straight = outcome(tmp_path / "run"), outcome(tmp_path / "straight")
    assert ours["weights"] == straight["weights"]


def test_other_images_in_another_place_are_refused(stopped: Config, tmp_path: Path) -> None:
    other = write_tree(tmp_path / "other", size=13)
    with pytest.raises(DataError, match=r"than .*/other has now: 54 changed \(train/blue/0\.png, "):
        train(schema.with_values(stopped, {"data.root": str(other)}), resume=tmp_path / "run")


def test_a_continued_run_knows_its_files_by_their_new_marks(
    stopped: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "CLOCK_STEP", 0)
    for path in (tmp_path / "tree").rglob("*.png"):
        os.utime(path)
    on_call(monkeypatch, StudentsTask, "losses", 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        train(stopped, resume=tmp_path / "run")
    monkeypatch.setattr(folder_module, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    assert train(stopped, resume=tmp_path / "run")["status"] == "complete"


def forget(run: Path) -> None:
    """As an earlier version left it."""
    (run / "images.manifest").unlink()


def test_a_run_of_an_earlier_version_continues_with_a_line_and_is_checked_from_then_on(
    stopped: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(tmp_path / "run")
    capsys.readouterr()
    train(stopped, resume=tmp_path / "run")
    assert "has no list of its images" in capsys.readouterr().out
    (tmp_path / "run" / "summary.json").unlink()
    train(stopped, resume=tmp_path / "run")
    assert "has no list of its images" not in capsys.readouterr().out
    (tmp_path / "run" / "summary.json").unlink()
    other_pixels(tmp_path / "tree" / "train" / "red" / "0.png")
    with pytest.raises(DataError, match="1 changed"):
        train(stopped, resume=tmp_path / "run")


def test_a_run_of_an_earlier_version_is_refused_another_number_of_images(stopped: Config, tmp_path: Path) -> None:
    forget(tmp_path / "run")
    other_pixels(tmp_path / "tree" / "train" / "red" / "new.jfif")
    with pytest.raises(
        DataError, match=r"with other images than .*tree has now: 36 in train before, 37 now \(an earlier"
    ):
        train(stopped, resume=tmp_path / "run")


@pytest.mark.parametrize("content", [b"", b"udskd-images-1 ", b"\0" * 100])
def test_a_damaged_list_is_one_sentence(stopped: Config, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run" / "images.manifest").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"images\.manifest lists the images and is damaged") as error:
        train(stopped, resume=tmp_path / "run")
    assert "\n" not in str(error.value)


def test_a_run_killed_before_its_config_was_there_can_be_started_again(own: Config, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("environment.json", "images.manifest", "config.toml.tmp"):
        (tmp_path / "run" / name).write_bytes(b"")
    assert train(own)["status"] == "complete"


@pytest.mark.parametrize("begun", [False, True])
def test_a_stop_while_images_are_identified_says_what_is_there(
    own: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool, request: pytest.FixtureRequest
) -> None:
    if begun:
        request.getfixturevalue("stopped")
    on_call(monkeypatch, folder_module.FolderSet, "digest", 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    resume = f"stopped before any further step; continue with: udskd train --resume {tmp_path}/run"
    with pytest.raises(Interrupted) as error:
        train(own, resume=tmp_path / "run" if begun else None)
    assert str(error.value) == (resume if begun else "stopped before anything was trained")
    assert (tmp_path / "run").exists() == begun


def test_unreadable_training_images_belong_to_the_set(own: Config, tmp_path: Path) -> None:
    own = schema.with_values(own, {"data.max_unreadable": 0.5})
    bad = tmp_path / "tree" / "train" / "red" / "bad.jpg"
    bad.write_bytes(b"no image")
    train(own)
    (tmp_path / "run" / "summary.json").unlink()
    assert train(own, resume=tmp_path / "run")["unreadable"] == 1
    (tmp_path / "run" / "summary.json").unlink()
    other_pixels(bad)
    with pytest.raises(DataError, match=r"1 changed \(train/red/bad\.jpg\)"):
        train(own, resume=tmp_path / "run")


def test_a_run_whose_splits_share_images_says_so(
    own: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tmp_path / "tree" / "val")
    (tmp_path / "tree" / "val").symlink_to("train")
    train(own)
    assert capsys.readouterr().out.count("train and val share 36 images (first: ") == 1
    assert "train and val share 36 images" in (tmp_path / "run" / "log.jsonl").read_text()


def test_an_evaluation_of_other_images_than_the_runs_says_so(
    own: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = train(own)
    assert summary["dataset"]["val_contents"].startswith("sha256:")
    evaluate_run(tmp_path / "run")
    assert "others than in the run" not in capsys.readouterr().out
    other_pixels(tmp_path / "tree" / "val" / "red" / "2.png")
    evaluate_run(tmp_path / "run")
    line = "the validation images are others than in the run: 1 changed (val/red/2.png)"
    assert line in capsys.readouterr().out
    evaluate_run(tmp_path / "run", str(tmp_path / "tree"))
    assert line not in capsys.readouterr().out


def test_images_that_this_pillow_cannot_decode_are_not_called_removed(
    own: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "tree" / "train" / "red" / "3.png"
    image.rename(image.with_suffix(".webp"))
    train(own)
    (tmp_path / "run" / "summary.json").unlink()
    without = tuple(format for format in formats.FORMATS if format.name != "WEBP")
    monkeypatch.setattr(formats, "FORMATS", without)
    monkeypatch.setattr(data_tree, "SUFFIXES", tuple(suffix for format in without for suffix in format.suffixes))
    with pytest.raises(DataError, match=r"it has no codec for WEBP \(train/red/3\.webp\); install one"):
        train(own, resume=tmp_path / "run")


def test_other_classes_are_about_the_images_and_not_about_the_teacher(own: Config, tmp_path: Path) -> None:
    own = replace(own, method="kd")
    train(own)
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(
        DataError, match=r"other images than embedded has now: its classes have other names \(3 before, "
    ):
        train(schema.with_values(own, {"data.root": "embedded"}), resume=tmp_path / "run")


def earlier_log(run: Path, dead: Path) -> None:
    """The log of an earlier version, which names an image that is not there any more as well."""
    log = run / "log.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    for event in events:
        event.pop("image", None)
    events.append({"event": "unreadable", "time": 0, "name": str(dead), "reason": "torn"})
    log.write_text("".join(json.dumps(event) + "\n" for event in events))


@pytest.mark.parametrize("log", ["moved", "earlier"])
def test_an_unreadable_image_is_the_same_one_in_another_place(
    own: Config, tmp_path: Path, log: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = schema.with_values(own, {"data.max_unreadable": 1.5 / 37})  # one of 37 images, not two
    root, other = tmp_path / "tree", tmp_path / "other"
    (root / "train" / "red" / "bad.jpg").write_bytes(b"no image")
    train(own)
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "checkpoints" / "students.pt").unlink()
    for weights in (tmp_path / "run").glob("*.safetensors"):
        weights.unlink()
    capsys.readouterr()
    if log == "moved":
        root.rename(other)
        own = schema.with_values(own, {"data.root": str(other)})
    else:
        earlier_log(tmp_path / "run", tmp_path / "elsewhere" / "train" / "red" / "bad.jpg")
    summary = train(own, resume=tmp_path / "run")
    assert summary["unreadable"] == 1
    assert "skipping" not in capsys.readouterr().out


def test_the_generated_set_continues(own: Config, tmp_path: Path) -> None:
    own = schema.with_values(own, {"data.root": "embedded", "training.epochs": 1, "training.batch_size": 500})
    train(own)
    (tmp_path / "run" / "summary.json").unlink()
    assert train(own, resume=tmp_path / "run")["status"] == "complete"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "complete"
