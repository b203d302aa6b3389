"""tree: which files of a split are images, which folders are read, and how ignored files are counted."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from tests.data.helpers.images import make_tree, photo
from udskd.data import FolderSet, PackedSet, describe_shared_images, open_folder, pack
from udskd.data.formats import FORMATS
from udskd.errors import DataError


def names(root: Path, split: str = "train") -> list[str]:
    """Paths of a split's images, relative to it."""
    return [os.path.relpath(path, root / split) for path in open_folder(root)[split == "val"].paths]


def ignored(root: Path) -> str:
    return open_folder(root)[0].describe_ignored()


def encoded(tmp_path: Path, format: str) -> bytes:
    file = tmp_path / "encoded"
    photo().save(file, format)
    return file.read_bytes()


def link(path: Path, target: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.symlink_to(target)


def same_class(root: Path) -> None:
    link(root / "val" / "cat", Path("../train/cat"))


def nested(root: Path) -> None:
    """train/cat -> ext/A, val/cat -> ext/A/v."""
    make_tree(root / "ext", ["A"], train=3)
    shutil.copytree(root / "val" / "cat", root / "ext" / "train" / "A" / "v")
    link(root / "train" / "cat", root / "ext" / "train" / "A")
    link(root / "val" / "cat", root / "ext" / "train" / "A" / "v")


def below_both(root: Path) -> None:
    shutil.copytree(root / "val" / "cat", root / "ext")
    for split in ("train", "val"):
        (root / split / "cat" / "more").symlink_to(root / "ext")


def whole(root: Path) -> None:
    link(root / "val", Path("train"))


SHARED = {
    "same class": (same_class, 3, "cat/0.png"),
    "nested": (nested, 2, "cat/0.png"),
    "below both": (below_both, 2, "cat/more/0.png"),
    "whole": (whole, 6, "cat/0.png"),
}


@pytest.mark.parametrize(("make", "count", "first"), SHARED.values(), ids=SHARED)
def test_images_in_both_splits_are_counted(tree: Path, make: Callable[[Path], None], count: int, first: str) -> None:
    assert describe_shared_images(*open_folder(tree)) == ""
    make(tree)
    assert describe_shared_images(*open_folder(tree)) == (
        f"train and val share {count} images (first: {tree}/val/{first}): accuracy on val is not that of unseen images"
    )


@pytest.mark.parametrize("suffix", [suffix for format in FORMATS for suffix in format.suffixes])
def test_a_file_with_the_suffix_of_any_known_format_is_an_image(tree: Path, suffix: str) -> None:
    (tree / "train" / "cat" / f"x{suffix.upper()}").write_bytes(b"any content")
    assert names(tree)[3] == f"cat/x{suffix.upper()}"


@pytest.mark.parametrize("format", [format.name for format in FORMATS])
def test_every_format_is_recognised_without_suffix_and_decoded(tree: Path, tmp_path: Path, format: str) -> None:
    (tree / "train" / "cat" / "n01440764_10026").write_bytes(encoded(tmp_path, format))
    images = FolderSet(tree / "train", ["cat", "dog"])
    assert images.name(3).endswith("cat/n01440764_10026")
    assert images.pixels(3).shape == (30, 40, 3)


def test_common_names_of_photographs_are_images(tree: Path, tmp_path: Path) -> None:
    for name in ("a.jfif", "b.jpe", "c.gif", "d.avif", "e.jp2", "f"):
        format = {"gif": "GIF", "avif": "AVIF", "jp2": "JPEG2000"}.get(name[2:], "JPEG")
        (tree / "train" / "cat" / name).write_bytes(encoded(tmp_path, format))
    images = open_folder(tree)[0]
    assert names(tree)[3:9] == ["cat/a.jfif", "cat/b.jpe", "cat/c.gif", "cat/d.avif", "cat/e.jp2", "cat/f"]
    for index in range(3, 9):
        assert np.abs(images.pixels(index) - np.asarray(photo()).astype(int)).mean() < 20
    assert images.describe_ignored() == ""


@pytest.mark.parametrize(
    "text",
    [b"P2 notes about plan 2", b"P5\tsee above", b"BMI of the patients\0\0\0", b"BM1234\0\0\0\0data" + bytes(20)],
)
def test_a_text_that_begins_like_a_magic_number_is_not_an_image(tree: Path, text: bytes) -> None:
    (tree / "train" / "cat" / "README").write_bytes(text)
    assert ignored(tree) == "1 file ignored: without suffix 1"


def test_a_comment_in_a_portable_graymap_is_allowed(tree: Path) -> None:
    (tree / "train" / "cat" / "x").write_bytes(b"P2\n# made by hand\n2 1\n255\n0 255\n")
    assert FolderSet(tree / "train", ["cat", "dog"]).pixels(3).shape == (1, 2, 3)


def test_files_with_a_known_suffix_are_not_opened(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udskd.data.tree.begins_as_image", lambda path: pytest.fail(f"{path} was opened"))
    assert len(open_folder(tree)[0]) == 6


@pytest.mark.parametrize("content", [b"", b"BMW is a car", b"Python", b"P9", b"RIFF1234WAVE", b"GIF", bytes(64)])
def test_a_file_without_suffix_that_does_not_begin_as_an_image_is_ignored(tree: Path, content: bytes) -> None:
    (tree / "train" / "cat" / "README").write_bytes(content)
    assert (len(names(tree)), ignored(tree)) == (6, "1 file ignored: without suffix 1")


def test_ignored_files_are_counted_by_kind(tree: Path) -> None:
    for name in ("a.bak", "b.txt", "c.TXT", "d.jpg.txt", "README", "e.a\nb", "f.what a strange name"):
        (tree / "train" / "cat" / name).write_text("not an image")
    (tree / "train" / "list.csv").write_text("beside the classes")
    (tree / "train" / "dog" / "gone").symlink_to(tree / "nowhere")
    assert len(names(tree)) == 6
    assert ignored(tree) == (
        "9 files ignored: .txt 3, other 2, .bak 1, broken link 1, outside the class folders 1, without suffix 1"
    )


def test_each_split_counts_its_own_ignored_files(tree: Path) -> None:
    (tree / "val" / "dog" / "x.bak").write_text("")
    train, val = open_folder(tree)
    assert (train.describe_ignored(), val.describe_ignored()) == ("", "1 file ignored: .bak 1")


def test_hidden_files_and_folders_are_ignored_at_any_depth_and_not_counted(tree: Path) -> None:
    for folder in (".ipynb_checkpoints", "cat/.ipynb_checkpoints", "cat/deep/.thumbs/x"):
        (tree / "train" / folder).mkdir(parents=True)
        photo().save(tree / "train" / folder / "0-checkpoint.png")
    (tree / "train" / "cat" / ".DS_Store").write_bytes(b"\0")
    assert (len(names(tree)), ignored(tree)) == (6, "")


def test_the_order_of_folders_is_torchvisions(tmp_path: Path) -> None:
    odd = ("a/x.jpg", "a/b/x.jpg", "a/b c/x.jpg", "a/b/c/y.jpg", "a.b/x.jpg", "A/Z.JPG", "a/b.jpg/z.png", "a/b!/x.tif")
    for name in odd:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    ours = FolderSet(tmp_path)
    assert [(ours.name(i), ours.label(i)) for i in range(len(ours))] == ImageFolder(str(tmp_path)).samples


def test_a_link_to_an_image_is_an_image(tree: Path, tmp_path: Path) -> None:
    photo().save(tmp_path / "elsewhere.png")
    (tree / "train" / "cat" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    (tree / "train" / "cat" / "named").symlink_to(tmp_path / "elsewhere.png")
    assert names(tree)[3:5] == ["cat/link.png", "cat/named"]


def test_a_broken_link_with_an_images_suffix_is_an_unreadable_image(tree: Path) -> None:
    (tree / "train" / "cat" / "x.jpg").symlink_to(tree / "nowhere")
    (tree / "train" / "cat" / "y.jpg").symlink_to(tree / "train" / "cat" / "y.jpg")
    assert names(tree)[3:5] == ["cat/x.jpg", "cat/y.jpg"]


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "/", "../dog", "inner", "../../val/cat"])
def test_a_link_to_a_folder_that_is_read_already_is_not_followed(tree: Path, target: str) -> None:
    (tree / "train" / "cat" / "inner").mkdir()
    (tree / "train" / "cat" / "link").symlink_to(target)
    assert len(names(tree)) == 6
    assert ignored(tree) == "1 file ignored: link to a folder that is read already 1"


@pytest.mark.parametrize("target", [".", "..", "/", "cat", "cat/inner"])
def test_a_link_to_the_split_or_to_a_class_is_not_a_class(tree: Path, target: str) -> None:
    (tree / "train" / "cat" / "inner").mkdir()
    (tree / "train" / "a").symlink_to(target)
    train = open_folder(tree)[0]
    assert (train.classes, len(train)) == (("cat", "dog"), 6)
    assert train.describe_ignored() == "1 file ignored: link to a folder that is read already 1"


def test_a_class_may_contain_a_link_to_a_folder_outside_of_the_tree(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "more" / "deep").mkdir(parents=True)
    photo().save(tmp_path / "more" / "deep" / "x.png")
    (tmp_path / "more" / "back").symlink_to(tree)
    (tmp_path / "more" / "loop").symlink_to("..")
    (tree / "train" / "cat" / "link").symlink_to(tmp_path / "more")
    assert names(tree)[:4] == ["cat/0.png", "cat/1.png", "cat/2.png", "cat/link/deep/x.png"]
    assert ignored(tree) == "2 files ignored: link to a folder that is read already 2"


def test_a_folder_outside_of_the_tree_is_read_once_for_several_links(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    photo().save(tmp_path / "more" / "x.png")
    for name in ("cat/a", "cat/b", "dog/c"):
        (tree / "train" / name).symlink_to(tmp_path / "more")
    assert [name for name in names(tree) if "x.png" in name] == ["cat/a/x.png"]


def test_class_folders_may_be_links(tmp_path: Path) -> None:
    """As in the README: each class of train is a link, and val is one link."""
    make_tree(tmp_path / "parts")
    root = tmp_path / "root"
    (root / "train").mkdir(parents=True)
    for name in ("cat", "dog"):
        (root / "train" / name).symlink_to(tmp_path / "parts" / "train" / name)
    (root / "val").symlink_to(tmp_path / "parts" / "val")
    (root / "train" / "all").symlink_to(".")
    train, val = open_folder(root)
    assert (train.classes, len(train), len(val)) == (("cat", "dog"), 6, 4)


def test_classes_may_be_links_into_a_hidden_folder_of_the_split(tmp_path: Path) -> None:
    make_tree(tmp_path)
    (tmp_path / "train" / ".store").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).rename(tmp_path / "train" / ".store" / name)
        (tmp_path / "train" / name).symlink_to(f".store/{name}")
    assert names(tmp_path) == [f"{name}/{k}.png" for name in ("cat", "dog") for k in range(3)]


def test_one_split_may_be_a_link_to_the_other(tree: Path) -> None:
    (tree / "val").rename(tree / "other")
    (tree / "val").symlink_to("train")
    assert [len(images) for images in open_folder(tree)] == [6, 6]


def test_a_class_folder_takes_precedence_over_a_link_to_it(tree: Path) -> None:
    for split in ("train", "val"):
        (tree / split / "aaa").symlink_to("dog")
    assert open_folder(tree)[0].classes == ("cat", "dog")


def test_pipes_and_sockets_without_suffix_are_ignored_without_opening_them(tree: Path) -> None:
    os.mkfifo(tree / "train" / "cat" / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tree / "train" / "cat")  # the path of a socket must be short
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
        assert (len(names(tree)), ignored(tree)) == (6, "2 files ignored: without suffix 2")


def test_a_folder_within_a_class_that_cannot_be_listed_is_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "train" / "dog" / "inner").mkdir()
    scandir = os.scandir

    def forbidden(path: str | Path) -> object:
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(DataError, match=r"cannot list .*train/dog/inner: Permission denied"):
        open_folder(tree)


def test_the_error_about_a_class_without_images_lists_the_ignored_files(tree: Path) -> None:
    for file in (tree / "train" / "dog").iterdir():
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(DataError, match=r"no images in class dog of .*train \(3 files ignored: \.heic 3\): add images"):
        open_folder(tree)


def test_names_that_are_not_utf8_are_accepted(tree: Path) -> None:
    for name in (b"\xff.png", b"\xfe"):
        with open(os.path.join(os.fsencode(tree / "train" / "cat"), name), "wb") as file:
            photo().save(file, "PNG")
    images = open_folder(tree)[0]
    assert len(images) == 8
    assert images.pixels(4).shape == (30, 40, 3)


def test_a_pack_has_the_images_of_its_tree(tree: Path, tmp_path: Path) -> None:
    photo().save(tree / "train" / "cat" / "x.gif")
    photo().save(tree / "train" / "cat" / "y", "JPEG")
    (tree / "train" / "cat" / "notes.txt").write_text("")
    (tree / "train" / "cat" / "loop").symlink_to("..")
    packed = pack(tree, tmp_path / "packs", short_side=None)
    images = PackedSet(tmp_path / "packs" / "train.pack")
    assert [images.name(i).split(": ")[1] for i in range(len(images))] == names(tree)
    assert packed["train"].ignored == "2 files ignored: .txt 1, link to a folder that is read already 1"
    assert packed["val"].ignored == ""
