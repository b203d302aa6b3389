"""A cache returns the logits of the teacher itself; a run refuses a cache with other dependencies."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import get_model

from tests.training.conftest import tiny_config, write_tree
from tests.training.test_train import on_call
from udskd.config import schema
from udskd.config.schema import Config
from udskd.data.pack import pack
from udskd.errors import CheckpointError, ConfigError, DataError, Interrupted
from udskd.models.checkpoints import load_weights
from udskd.training import train
from udskd.training.networks.inference import FrozenNetwork
from udskd.training.tasks.students import StudentsTask
from udskd.training.teacher_cache import folder as cache_folder
from udskd.training.teacher_cache.writer import cache_teacher

IMAGES, CLASSES, EPOCHS = 36, 3, 3


@pytest.fixture(scope="module")
def teacher(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a trained teacher."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    train(tiny_config(tree, run))
    return run / "teacher.safetensors"


@pytest.fixture
def config(tree: Path, tmp_path: Path, teacher: Path) -> Config:
    return schema.with_values(tiny_config(tree, tmp_path / "run"), {"teacher.checkpoint": str(teacher)})


def changed(config: Config, **values: Any) -> Config:
    """The config with other options; data__mixup stands for data.mixup."""
    return schema.with_values(config, {name.replace("__", "."): value for name, value in values.items()})


def cached(config: Config, folder: Path, **values: Any) -> Config:
    """Write a cache for the config; return the config with teacher.cache and further options."""
    cache_teacher(config, folder)
    return changed(config, teacher__cache=str(folder), **values)


def epochs(folder: Path) -> list[np.ndarray]:
    return [np.load(file) for file in sorted(folder.glob("*.npy"))]


@pytest.fixture
def logit_pairs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """For every training batch of the students: the logits from the cache and those of the teacher itself."""
    pairs: list[tuple[Tensor, Tensor]] = []
    losses = StudentsTask.losses

    def spy(self: StudentsTask, inputs: Any) -> dict[str, Tensor]:
        assert self._teacher is not None
        pairs.append((inputs.teacher, self._teacher.forward(inputs.images).logits))
        return losses(self, inputs)

    monkeypatch.setattr(StudentsTask, "losses", spy)
    return pairs


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_the_logits_are_the_teachers_own_rounded_to_fp16(
    config: Config, tmp_path: Path, logit_pairs: list[tuple[Tensor, Tensor]], mixup: float, precision: str
) -> None:
    train(cached(changed(config, data__mixup=mixup, training__precision=precision), tmp_path / "cache"))
    assert len(logit_pairs) == EPOCHS * IMAGES // 12
    for from_cache, own in logit_pairs:
        assert from_cache.dtype == own.dtype
        assert torch.equal(from_cache, own.half().to(own.dtype))
        assert own.std() > 0


@pytest.mark.parametrize(
    "values",
    [
        {"training__batch_size": 7},
        {"training__batch_size": 36},
        {"training__accumulate": 5},
        {"data__workers": 2, "data__loader": "threads"},
        {"data__workers": 1, "data__loader": "processes"},
        {"data__loader": "resident"},
        {"method": "kd", "training__epochs": 2},
    ],
)
def test_one_cache_serves_batches_of_any_size(
    config: Config, tmp_path: Path, logit_pairs: list[tuple[Tensor, Tensor]], values: dict[str, Any]
) -> None:
    config = changed(config, data__mixup=0.4, training__batch_size=10)
    train(cached(config, tmp_path / "cache", **values))
    assert sum(len(own) for _, own in logit_pairs) >= 2 * 30
    for from_cache, own in logit_pairs:  # batches of another size may be summed in another order
        torch.testing.assert_close(from_cache, own, rtol=2**-10, atol=1e-5)


def test_every_image_of_every_epoch_is_there_once(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for size in (36, 7, 100):
        cache_teacher(changed(config, training__batch_size=size, data__mixup=0.4), tmp_path / str(size))
    whole, sevens, hundreds = (epochs(tmp_path / str(size)) for size in (36, 7, 100))
    assert [rows.shape for rows in whole] == EPOCHS * [(IMAGES, CLASSES)]
    assert all(rows.dtype == np.float16 and np.isfinite(rows).all() for rows in whole)
    assert not np.array_equal(whole[0], whole[1])  # other views
    for a, b, c in zip(whole, sevens, hundreds, strict=True):
        np.testing.assert_allclose(b, a, rtol=2**-9, atol=1e-4)
        np.testing.assert_array_equal(c, a)
    assert "3 epochs" in capsys.readouterr().out


def students(run: Path) -> dict[str, Tensor]:
    files = {role: load_weights(run / f"{role}.safetensors")[0] for role in ("student_a", "student_b")}
    return {f"{role} {name}": values for role, tensors in files.items() for name, values in tensors.items()}


def test_cached_training_is_training_with_a_teacher_that_rounds(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = train(cached(config, tmp_path / "cache", output=str(tmp_path / "offline")))
    logits = FrozenNetwork.__call__
    monkeypatch.setattr(FrozenNetwork, "__call__", lambda self, images: logits(self, images).half().float())
    online = train(config)
    assert offline["teacher"] == online["teacher"]
    ours, theirs = students(tmp_path / "offline"), students(tmp_path / "run")
    assert all(torch.equal(ours[name], values) for name, values in theirs.items())


def test_cached_training_is_training_with_the_teacher_but_for_rounding(config: Config, tmp_path: Path) -> None:
    config = changed(config, training__epochs=1)
    train(config)
    train(cached(config, tmp_path / "cache", output=str(tmp_path / "offline")))
    ours, theirs = students(tmp_path / "offline"), students(tmp_path / "run")
    for name, values in theirs.items():
        torch.testing.assert_close(ours[name], values, rtol=1e-3, atol=1e-4)


def test_the_teacher_makes_no_pass_but_its_evaluation(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = cached(config, tmp_path / "cache")

    def fail(*_: Any) -> Tensor:
        raise AssertionError("the teacher was called")

    monkeypatch.setattr(FrozenNetwork, "__call__", fail)
    assert train(config)["teacher"]["top1"] > 0


@pytest.mark.parametrize("method", ["ce", "dml"])
def test_methods_without_a_teacher_ignore_the_cache(config: Config, tmp_path: Path, method: str) -> None:
    assert train(changed(config, method=method, teacher__cache=str(tmp_path / "nowhere")))["teacher"] is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": 1}, "made with seed = 0, not 1"),
        ({"data__image_size": 16}, r"made with data\.image_size = 8, not 16"),
        ({"data__crop_scale": (0.5, 1.0)}, r"made with data\.crop_scale = \[0\.08, 1\.0\], not \[0\.5, 1\.0\]"),
        ({"data__flip": 0.0}, r"made with data\.flip = 0\.5, not 0\.0"),
        ({"data__mixup": 0.2}, r"made with data\.mixup = 0\.0, not 0\.2"),
        ({"training__precision": "bf16"}, "made with teacher.precision = 'float32', not 'bfloat16'"),
        ({"training__epochs": 4}, r"holds 3 epochs .*training\.epochs is 4: .*--epochs 4"),
        ({"teacher__cache": "nowhere"}, "there is no teacher cache at nowhere"),
    ],
)
def test_a_cache_with_other_dependencies_is_refused(
    config: Config, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(changed(cached(config, tmp_path / "cache"), **values))
    assert not (tmp_path / "run").exists()  # refused before anything was done


def test_a_cache_of_another_teacher_is_refused(config: Config, tmp_path: Path) -> None:
    config = cached(config, tmp_path / "cache")
    train(changed(config, seed=5, output=str(tmp_path / "other"), teacher__checkpoint=None, teacher__cache=None))
    other = str(tmp_path / "other" / "teacher.safetensors")
    with pytest.raises(ConfigError, match=r"made with teacher\.sha256 = '[0-9a-f]{64}', not '[0-9a-f]{64}'"):
        train(changed(config, teacher__checkpoint=other))


def test_a_teacher_that_has_yet_to_be_trained_has_no_cache(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give the teacher of the cache as teacher\.checkpoint"):
        train(cached(config, tmp_path / "cache", teacher__checkpoint=None))
    with pytest.raises(ConfigError, match=r"as teacher\.checkpoint"):
        cache_teacher(changed(config, teacher__checkpoint=None), tmp_path / "another")
    assert not (tmp_path / "another").exists()


def add_an_image(root: Path) -> None:
    shutil.copy(root / "train" / "red" / "0.png", root / "train" / "red" / "new.png")


def rename_an_image(root: Path) -> None:
    (root / "train" / "red" / "0.png").rename(root / "train" / "red" / "00.png")


def enlarge_the_images(root: Path) -> None:
    for file in root.glob("train/*/*.png"):
        Image.open(file).resize((13, 12)).save(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_an_image, r"data\.images = 36, not 37"),
        (rename_an_image, r"data\.images_sha256 = "),
        (enlarge_the_images, r"data\.areas = \[144, 144, 144, 144, 144\], not \[156"),
    ],
)
def test_a_cache_of_other_images_is_refused(
    config: Config, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    root = write_tree(tmp_path / "tree")
    config = cached(changed(config, data__root=str(root)), tmp_path / "cache")
    change(root)
    with pytest.raises(ConfigError, match=message):
        train(config)


def test_an_image_with_another_content_is_refused(config: Config, tmp_path: Path) -> None:
    root = shutil.copytree(config.data.root, tmp_path / "images")
    image = sorted((root / "train").glob("*/*.png"))[3]
    config = cached(changed(config, data__root=str(root)), tmp_path / "cache")
    pixels = np.asarray(Image.open(image)).copy()
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(image)
    name = image.relative_to(root).as_posix()
    with pytest.raises(ConfigError, match=rf"was computed from other images than .*: 1 changed \({name}\): leave"):
        train(config)
    with pytest.raises(ConfigError, match=rf"1 changed \({name}\): choose another --output"):
        cache_teacher(changed(config, teacher__cache=None), tmp_path / "cache")


def test_a_cache_of_an_earlier_version_has_no_manifest_to_compare_with(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It gets no manifest either: the images may have changed since."""
    config = cached(config, tmp_path / "cache")
    (tmp_path / "cache/images.manifest").unlink()
    line = f"{tmp_path}/cache has no list of its images: that they are still the same is not checked\n"
    capsys.readouterr()
    cache_teacher(changed(config, teacher__cache=None), tmp_path / "cache", epochs=4)
    assert line in capsys.readouterr().out
    assert not (tmp_path / "cache/images.manifest").exists()
    train(config)
    assert line in capsys.readouterr().out


def test_a_damaged_manifest_of_a_cache_is_named(config: Config, tmp_path: Path) -> None:
    config = cached(config, tmp_path / "cache")
    (tmp_path / "cache/images.manifest").write_bytes(b"udskd")
    with pytest.raises(CheckpointError, match=r"cache/images\.manifest lists the images and is damaged"):
        train(config)


def test_the_images_and_the_cache_may_move(config: Config, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree")
    cached(changed(config, data__root=str(root)), tmp_path / "cache")
    root.rename(tmp_path / "moved")
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    train(changed(config, data__root=str(tmp_path / "moved"), teacher__cache=str(tmp_path / "elsewhere")))


def test_a_pack_of_the_same_files_takes_the_same_cache(config: Config, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", size=24, classes=("crab", "cram", "crow"))
    run = changed(config, data__root=str(root), teacher__checkpoint=None, output=str(tmp_path / "first"))
    train(run)
    run = changed(run, teacher__checkpoint=str(tmp_path / "first" / "teacher.safetensors"), output=config.output)
    run = cached(run, tmp_path / "cache")
    pack(root, tmp_path / "packed", short_side=None)
    train(changed(run, data__root=str(tmp_path / "packed")))
    pack(root, tmp_path / "smaller", short_side=16)
    with pytest.raises(ConfigError, match=r"data\.(areas|images_sha256) = "):
        train(changed(run, data__root=str(tmp_path / "smaller"), output=str(tmp_path / "another")))


def test_an_interrupted_cache_continues(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_teacher(config, tmp_path / "undisturbed")
    folder = tmp_path / "cache"
    with monkeypatch.context() as patch:
        on_call(patch, FrozenNetwork, "__call__", 5, lambda: os.kill(os.getpid(), signal.SIGINT))  # in the second epoch
        with pytest.raises(Interrupted, match=f"1 of 3 epochs are in {folder}"):
            cache_teacher(config, folder)
    assert sorted(f.name for f in folder.iterdir()) == ["cache.json", "epoch-0000.npy", "images.manifest"]
    before = (folder / "epoch-0000.npy").stat()
    cache_teacher(config, folder)
    assert (folder / "epoch-0000.npy").stat() == before
    (folder / "images.manifest").unlink()  # it may hold the times of the images' last changes
    (tmp_path / "undisturbed" / "images.manifest").unlink()
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == {
        f.name: f.read_bytes() for f in (tmp_path / "undisturbed").iterdir()
    }


def test_nothing_is_written_twice_and_more_epochs_are_added(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[str] = []
    write = cache_folder.write_atomic
    monkeypatch.setattr(
        cache_folder, "write_atomic", lambda path, *data: (written.append(path.name), write(path, *data))
    )
    cache_teacher(config, tmp_path / "cache", epochs=2)
    assert written.pop(1) == "images.manifest"
    assert [name for name in written if name != "cache.json"] == ["epoch-0000.npy", "epoch-0001.npy"]
    written.clear()
    cache_teacher(config, tmp_path / "cache", epochs=4)
    assert [name for name in written if name != "cache.json"] == ["epoch-0002.npy", "epoch-0003.npy"]
    written.clear()
    cache_teacher(config, tmp_path / "cache")
    assert not written
    assert "which were there already" in capsys.readouterr().out


def test_truncated_and_altered_epochs_are_refused_and_can_be_made_again(config: Config, tmp_path: Path) -> None:
    config = cached(config, tmp_path / "cache")
    file = tmp_path / "cache" / "epoch-0002.npy"
    intact = file.read_bytes()
    file.write_bytes(intact[:-1])
    with pytest.raises(CheckpointError, match=f"{file} is truncated or altered"):
        train(config)
    assert not (tmp_path / "run").exists()
    file.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"{file} is truncated or altered"):
        train(config)
    file.unlink()
    with pytest.raises(ConfigError, match="holds 2 epochs"):
        train(changed(config, output=str(tmp_path / "another")))
    cache_teacher(config, tmp_path / "cache")
    assert file.read_bytes() == intact


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "udskd-teacher-cache-9"}'])
def test_a_damaged_description_is_refused(config: Config, tmp_path: Path, text: str) -> None:
    config = cached(config, tmp_path / "cache")
    (tmp_path / "cache" / "cache.json").write_text(text)
    for action in (lambda: train(config), lambda: cache_teacher(config, tmp_path / "cache")):
        with pytest.raises(CheckpointError, match=r"cache\.json does not describe a teacher cache, or is damaged"):
            action()


def test_a_full_disk_leaves_what_is_complete(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "cache"
    with monkeypatch.context() as patch:
        on_call(patch, os, "replace", 5, full)  # the second epoch: cache.json, manifest, epoch, cache.json, epoch
        with pytest.raises(CheckpointError, match=r"No space left on device; 1 of 3 epochs are in .* same command"):
            cache_teacher(config, folder)
    assert sorted(f.name for f in folder.iterdir()) == ["cache.json", "epoch-0000.npy", "images.manifest"]
    train(cached(config, folder))


@pytest.mark.parametrize("number", [3, 4])  # the first is one of those whose areas are compared
def test_an_image_that_was_unreadable_is_named(config: Config, tmp_path: Path, number: int) -> None:
    root = write_tree(tmp_path / "tree")
    file = root / "train" / "green" / f"{number}.png"
    intact = file.read_bytes()
    config = changed(config, data__root=str(root), data__max_unreadable=0.1)
    file.write_bytes(b"")
    config = cached(config, tmp_path / "cache")
    missing = np.isnan(epochs(tmp_path / "cache")[0]).all(1)
    assert missing.sum() == 1
    train(config)  # the image is still unreadable and skipped, as without a cache
    file.write_bytes(intact)
    with pytest.raises(ConfigError, match=rf"1 changed \(train/green/{number}\.png\): leave teacher\.cache out"):
        train(changed(config, output=str(tmp_path / "another")))
    (tmp_path / "cache" / "images.manifest").unlink()  # as in a cache of an earlier version
    with pytest.raises(DataError, match=f"{file} can be read now, but could not"):
        train(changed(config, output=str(tmp_path / "another")))


def test_a_teacher_that_diverged_is_refused(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrozenNetwork, "__call__", lambda self, images: torch.full((len(images), CLASSES), 1e5))
    with pytest.raises(CheckpointError, match=r"\.png are NaN or above fp16's 65504"):
        cache_teacher(config, tmp_path / "cache")


def test_other_folders_are_not_written_to(config: Config, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="neither an empty folder nor a teacher cache"):
        cache_teacher(config, tmp_path / "full")
    cache_teacher(config, tmp_path / "cache", epochs=1)
    with pytest.raises(ConfigError, match="made with seed = 0, not 1: choose another --output"):
        cache_teacher(replace(config, seed=1), tmp_path / "cache")


def test_only_one_process_may_write_a_cache(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        cache_teacher(config, tmp_path / "cache")


def test_the_description_is_readable_json(config: Config, tmp_path: Path) -> None:
    cache_teacher(config, tmp_path / "cache")
    content = json.loads((tmp_path / "cache" / "cache.json").read_text())
    assert content["format"] == cache_folder.FORMAT
    assert (
        content["made_of"] | {"seed": 0, "teacher.model": "tiny_plain_4", "data.images": IMAGES} == content["made_of"]
    )
    assert list(content["epochs"]) == ["epoch-0000.npy", "epoch-0001.npy", "epoch-0002.npy"]


def test_the_stem_of_a_teacher_of_torchvisions_is_shown(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(get_model("shufflenet_v2_x0_5", weights=None, num_classes=3).state_dict(), tmp_path / "t.pth")
    values = {"teacher__checkpoint": str(tmp_path / "t.pth"), "teacher__model": "shufflenet_v2_x0_5"}
    cached(changed(config, data__image_size=32, training__epochs=1, **values), tmp_path / "cache")
    assert "teacher: shufflenet_v2_x0_5, 0.345 M parameters, stem imagenet\n" in capsys.readouterr().out
    assert cache_folder.CacheFolder.open(tmp_path / "cache").dependencies["teacher.stem"] == "imagenet"  # type: ignore[union-attr]
