"""folder: the files and classes of an ImageFolder tree, and one clear error for each way in which it can be invalid."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from tests.data.helpers.images import make_tree, photo
from udskd.config.schema import DataConfig
from udskd.data import EmbeddedSet, FolderSet, open_folder, open_sets
from udskd.errors import DataError


def test_a_tree_is_read_as_torchvision_reads_it(tree: Path) -> None:
    theirs = ImageFolder(str(tree / "train"))
    ours = FolderSet(tree / "train")
    assert list(ours.classes) == theirs.classes
    assert [(ours.name(i), ours.label(i)) for i in range(len(ours))] == theirs.samples
    assert ours.labels.dtype == np.int64
    for index in range(len(ours)):
        np.testing.assert_array_equal(ours.pixels(index), np.asarray(theirs[index][0]))


def test_open_folder_gives_both_splits(tree: Path) -> None:
    train, val = open_folder(tree)
    assert (len(train), len(val)) == (6, 4)
    assert train.classes == val.classes == ("cat", "dog")


def test_first_classes_are_the_first_in_sorted_order(tmp_path: Path) -> None:
    make_tree(tmp_path, ["d", "b", "c", "a"])
    train, val = open_folder(tmp_path, classes=2)
    assert train.classes == val.classes == ("a", "b")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert all(Path(train.name(i)).parent.name == train.classes[train.label(i)] for i in range(len(train)))


def test_hidden_files_and_folders_are_ignored(tree: Path) -> None:
    (tree / "train" / "cat" / "._0.png").write_bytes(b"resource fork")
    (tree / "train" / ".ipynb_checkpoints").mkdir()
    (tree / "train" / "cat" / "notes.txt").write_text("not an image by name")
    train, _ = open_folder(tree)
    assert (len(train), train.classes) == (6, ("cat", "dog"))


def test_images_in_deeper_folders_belong_to_their_class(tree: Path) -> None:
    (tree / "train" / "dog" / "puppies").mkdir()
    photo().save(tree / "train" / "dog" / "puppies" / "x.JPEG")
    train, _ = open_folder(tree)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_a_single_image_is_a_class(tmp_path: Path) -> None:
    train, _ = open_folder(make_tree(tmp_path, train=1, val=1))
    assert len(train) == 2


def test_open_sets_takes_the_tree_of_the_config(tree: Path) -> None:
    train, val = open_sets(DataConfig(root=str(tree)))
    assert (len(train), len(val)) == (6, 4)


def test_open_sets_opens_the_embedded_set() -> None:
    train, val = open_sets(DataConfig(root="embedded", classes=10))
    assert isinstance(train, EmbeddedSet)
    assert isinstance(val, EmbeddedSet)
    assert (train.split, val.split) == ("train", "val")


def test_the_home_folder_is_expanded(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree.parent))
    assert len(open_folder(f"~/{tree.name}")[0]) == 6


def break_root(root: Path) -> None:
    shutil.rmtree(root)


def break_split(root: Path) -> None:
    shutil.rmtree(root / "val")


def break_class(root: Path) -> None:
    for path in (root / "train" / "dog").iterdir():
        path.rename(path.with_suffix(".txt"))


def break_classes(root: Path) -> None:
    shutil.rmtree(root / "val" / "cat")
    (root / "val" / "bird").mkdir()


def break_layout(root: Path) -> None:
    for name in ("cat", "dog"):
        shutil.rmtree(root / "train" / name)
    photo().save(root / "train" / "x.png")


def break_to_one_class(root: Path) -> None:
    shutil.rmtree(root / "train" / "dog")
    shutil.rmtree(root / "val" / "dog")


def break_to_file(root: Path) -> None:
    shutil.rmtree(root)
    root.write_text("a file")


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (break_root, ["{root}", "does not exist", "train/CLASS"]),
        (break_to_file, ["{root}", "is not a folder"]),
        (break_split, ["val split is missing", "{root}/val"]),
        (break_class, ["no images in class dog of {root}/train"]),
        (break_classes, ["different classes", "cat only in train", "bird only in val"]),
        (break_layout, ["no class folders in {root}/train"]),
        (break_to_one_class, ["single class, cat"]),
    ],
)
def test_a_broken_tree_is_one_clear_error(tree: Path, damage: object, parts: list[str]) -> None:
    damage(tree)  # type: ignore[operator]
    with pytest.raises(DataError) as caught:
        open_folder(tree)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part.format(root=tree) in message


def test_a_class_of_one_split_only_is_refused_in_either(tree: Path) -> None:
    (tree / "val" / "zebra").mkdir()
    with pytest.raises(DataError, match="zebra only in val"):
        open_folder(tree)


@pytest.mark.parametrize("count", [-1, 0, 1, 3])
def test_an_impossible_number_of_classes_is_refused(tree: Path, count: int) -> None:
    with pytest.raises(DataError, match=rf"data.classes is {count}, but .* has 2 classes"):
        open_folder(tree, classes=count)


def test_an_empty_class_beyond_the_wanted_ones_does_not_matter(tmp_path: Path) -> None:
    make_tree(tmp_path, ["a", "b", "c"])
    shutil.rmtree(tmp_path / "train" / "c")
    (tmp_path / "train" / "c").mkdir()
    assert open_folder(tmp_path, classes=2)[0].classes == ("a", "b")


def test_a_class_folder_that_cannot_be_listed_is_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def forbidden(path: str | Path) -> object:
        if str(path).endswith("train/dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(DataError, match=r"cannot list .*train/dog: Permission denied"):
        open_folder(tree)


def test_the_embedded_set_always_has_all_classes() -> None:
    with pytest.raises(DataError, match="always has 10 classes"):
        open_sets(DataConfig(root="embedded", classes=5))
