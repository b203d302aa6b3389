"""pack, packed: a pack gives the bits of its tree, a damaged pack is refused, and both packs are written or none."""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.helpers.images import make_tree, photo
from tests.data.helpers.loaders import MIXED, assert_equal
from udskd.config.schema import DataConfig
from udskd.data import EvalLoader, PackedSet, TrainLoader, UnreadableImage, open_folder, open_sets, pack
from udskd.data.packed import PREFIX
from udskd.errors import ConfigError, DataError


@pytest.fixture
def packs(tmp_path: Path) -> Path:
    """Packs that keep the files of a tree of several formats."""
    tree = make_tree(tmp_path / "tree")
    photo(7, (60, 90)).save(tree / "train" / "cat" / "x.jpg")
    photo(8).save(tree / "train" / "dog" / "x.webp")
    pack(tree, tmp_path / "packs", short_side=None)
    return tmp_path / "packs"


def test_a_pack_of_unchanged_files_gives_the_bits_of_the_tree(packs: Path) -> None:
    trees, packed = open_folder(packs.parent / "tree"), open_sets(DataConfig(root=str(packs)))
    for tree, images in zip(trees, packed, strict=True):
        assert isinstance(images, PackedSet)
        assert images.classes == tree.classes
        np.testing.assert_array_equal(images.labels, tree.labels)
        assert [images.area(i) for i in range(len(tree))] == [tree.area(i) for i in range(len(tree))]
    assert_equal(*(TrainLoader(s[0], MIXED, seed=0, batch_size=3).epoch(2) for s in (trees, packed)))
    assert_equal(*(iter(EvalLoader(s[1], MIXED, batch_size=3)) for s in (trees, packed)))


@pytest.mark.parametrize("loader", ["processes", "threads"])
def test_threads_and_processes_can_read_a_pack(packs: Path, loader: Any) -> None:
    images = open_sets(DataConfig(root=str(packs)))[0]
    parallel = TrainLoader(images, replace(MIXED, loader=loader, workers=2), seed=0, batch_size=3)
    assert_equal(TrainLoader(images, MIXED, seed=0, batch_size=3).epoch(0), parallel.epoch(0))
    parallel.close()


def test_a_pickled_pack_is_opened_again(packs: Path) -> None:
    images = PackedSet(packs / "train.pack", classes=1)
    again = pickle.loads(pickle.dumps(images))
    assert again.classes == images.classes == ("cat",)
    np.testing.assert_array_equal(again.pixels(3), images.pixels(3))


def test_names_contain_the_pack_and_the_image(packs: Path) -> None:
    images = PackedSet(packs / "train.pack")
    assert images.name(0) == f"{packs}/train.pack: cat/0.png"
    assert images.name(len(images) - 1) == f"{packs}/train.pack: dog/x.webp"


def test_first_classes_are_the_first_in_sorted_order(tmp_path: Path) -> None:
    pack(make_tree(tmp_path / "tree", ["d", "b", "c", "a"]), tmp_path / "packs")
    train, val = open_sets(DataConfig(root=str(tmp_path / "packs"), classes=2))
    assert train.classes == val.classes == ("a", "b")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(DataError, match=r"data.classes is 5, but .* has 4 classes"):
        open_sets(DataConfig(root=str(tmp_path / "packs"), classes=5))


@pytest.mark.parametrize("source", ["tree", "packs"])
def test_images_above_max_pixels_are_unreadable(packs: Path, source: str) -> None:
    name = "cat/x.jpg"  # of 60 x 90 pixels, the others have fewer
    images = open_sets(DataConfig(root=str(packs.parent / source), max_pixels=60 * 90 - 1))[0]
    images = pickle.loads(pickle.dumps(images))
    for index in range(len(images)):
        if images.relative_name(index) != name:
            images.pixels(index)
            continue
        with pytest.raises(UnreadableImage, match=f"{name}: it has 60 x 90 pixels, more than the 5399"):
            images.pixels(index)


def test_an_image_above_max_pixels_is_not_packed(packs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cat/x\.jpg: it has 60 x 90 pixels, more than the 5399"):
        pack(tmp_path / "tree", tmp_path / "more", max_pixels=60 * 90 - 1)
    assert list((tmp_path / "more").iterdir()) == []
    pack(tmp_path / "tree", tmp_path / "more", max_pixels=60 * 90)


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_packs_are_not_written_through_a_link(tmp_path: Path, link: Any) -> None:
    tree, folder = make_tree(tmp_path / "tree"), tmp_path / "packs"
    folder.mkdir()
    (tmp_path / "victim").write_bytes(b"precious")
    for name in ("train.pack", "train.pack.tmp", "val.pack.tmp"):
        link(tmp_path / "victim", folder / name)
    pack(tree, folder)
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert sorted(os.listdir(folder)) == ["train.pack", "val.pack"]


def test_only_some_classes_can_be_packed(tmp_path: Path) -> None:
    pack(make_tree(tmp_path / "tree", ["d", "b", "c", "a"]), tmp_path / "packs", classes=3)
    assert open_sets(DataConfig(root=str(tmp_path / "packs")))[0].classes == ("a", "b", "c")


def oriented() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def packed_alone(tmp_path: Path, name: str, image: Image.Image, **options: Any) -> tuple[bytes, bytes, np.ndarray]:
    """A single image in a pack of short side 64: its file before and after, and its pixels."""
    tree = make_tree(tmp_path / "tree", train=1, val=1)
    (tree / "train" / "cat" / "0.png").unlink()
    image.save(tree / "train" / "cat" / name, **options)
    pack(tree, tmp_path / "packs", short_side=64, workers=0)
    images = PackedSet(tmp_path / "packs" / "train.pack")
    return (tree / "train" / "cat" / name).read_bytes(), images.file(0), images.pixels(0)


@pytest.mark.parametrize(
    ("image", "options"),
    [(photo(size=(64, 90)), {}), (photo(size=(40, 30)), {"quality": 30}), (photo().convert("L"), {"comment": b"x"})],
    ids=["exactly", "small", "grey"],
)
def test_small_jpegs_keep_their_bytes(tmp_path: Path, image: Image.Image, options: Any) -> None:
    before, after, _ = packed_alone(tmp_path, "x.jpg", image, **options)
    assert after == before


def test_large_images_are_scaled_to_the_shorter_side(tmp_path: Path) -> None:
    image = photo(size=(200, 150))
    _, after, pixels = packed_alone(tmp_path, "x.jpg", image, quality=95)
    assert pixels.shape == (64, 85, 3)
    assert Image.open(io.BytesIO(after)).format == "JPEG"
    expected = np.asarray(image.resize((85, 64), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(pixels - expected).mean() < 5


def test_small_images_of_other_formats_become_jpegs_of_their_size(tmp_path: Path) -> None:
    _, after, pixels = packed_alone(tmp_path, "x.png", photo())
    assert Image.open(io.BytesIO(after)).format == "JPEG"
    assert pixels.shape == (30, 40, 3)
    assert np.abs(pixels - np.asarray(photo()).astype(int)).mean() < 6


def test_oriented_and_cmyk_jpegs_become_upright_rgb(tmp_path: Path) -> None:
    _, after, pixels = packed_alone(tmp_path / "a", "x.jpg", photo(), exif=oriented(), quality=95)
    assert not Image.open(io.BytesIO(after)).getexif()
    assert np.abs(pixels - np.rot90(np.asarray(photo()), -1).astype(int)).mean() < 6
    _, after, _ = packed_alone(tmp_path / "b", "x.jpg", photo().convert("CMYK"))
    assert Image.open(io.BytesIO(after)).mode == "RGB"


def test_the_number_of_threads_does_not_matter(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", train=20)
    seen: list[tuple[str, int, int]] = []
    for workers in (0, 3):
        pack(tree, tmp_path / f"packs{workers}", workers=workers, progress=lambda *where: seen.append(where))
    for split in ("train", "val"):
        assert (tmp_path / f"packs0/{split}.pack").read_bytes() == (tmp_path / f"packs3/{split}.pack").read_bytes()
    assert seen[:40] == [("train", k + 1, 40) for k in range(40)]


def test_pack_returns_a_summary(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    photo().save(tree / "train" / "cat" / "x.jpg")
    packed = pack(tree, tmp_path / "packs")["train"]
    assert (packed.images, packed.kept) == (7, 1)
    assert packed.bytes == (tmp_path / "packs" / "train.pack").stat().st_size
    assert packed.source_bytes == sum(path.stat().st_size for path in (tree / "train").rglob("*.*"))


def test_unreadable_images_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    for k in (0, 2):
        (tree / "val" / "dog" / f"{k}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of the 5 val images .*dog/0.png: the file is empty, .*dog/2.png"):
        pack(tree, tmp_path / "packs")
    assert list((tmp_path / "packs").iterdir()) == []


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot write packs to .*: No space left on device"):
        pack(make_tree(tmp_path / "tree"), tmp_path / "packs")
    assert list((tmp_path / "packs").iterdir()) == []


def test_an_existing_pack_survives_a_failure(packs: Path) -> None:
    before = (packs / "train.pack").read_bytes()
    (packs.parent / "tree" / "val" / "cat" / "0.png").write_bytes(b"")
    with pytest.raises(DataError):
        pack(packs.parent / "tree", packs)
    assert (packs / "train.pack").read_bytes() == before


def test_a_folder_that_cannot_be_created_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write packs to .*/file/packs: Not a directory"):
        pack(make_tree(tmp_path / "tree"), tmp_path / "file" / "packs")


def test_packs_in_the_folder_of_their_tree_are_refused(tree: Path) -> None:
    with pytest.raises(DataError, match="name another folder"):
        pack(tree, tree)


@pytest.mark.parametrize("options", [{"quality": 0}, {"quality": 101}, {"short_side": 7}])
def test_values_out_of_range_are_refused(tree: Path, options: Any) -> None:
    with pytest.raises(ConfigError, match="quality must be 1 to 100 and short_side at least 8"):
        pack(tree, tree / "packs", **options)


def change(path: Path, position: int, value: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[position : position + len(value)] = value
    path.write_bytes(content)


def damages() -> Iterator[tuple[str, Any, str]]:
    yield "empty", lambda path: path.write_bytes(b""), "is not a pack"
    yield "another file", lambda path: path.write_bytes(b"PK" * 99), "is not a pack"
    yield "version", lambda path: change(path, 8, b"\7"), "of version 7, this udskd reads version 1"
    yield "shorter", lambda path: path.write_bytes(path.read_bytes()[:-1]), "was not copied completely"
    yield "cut in its index", lambda path: path.write_bytes(path.read_bytes()[:200]), "was not copied completely"
    yield "index", lambda path: change(path, PREFIX.size + 300, b"??"), "its index has another SHA-256"
    yield "hash", lambda path: change(path, 14, b"??"), "its index has another SHA-256"
    yield "gone", lambda path: path.unlink(), "cannot read .*: No such file"


@pytest.mark.parametrize(("damage", "message"), [d[1:] for d in damages()], ids=[d[0] for d in damages()])
def test_a_broken_pack_is_one_clear_error(packs: Path, damage: Any, message: str) -> None:
    damage(packs / "val.pack")
    with pytest.raises(DataError, match=message) as caught:
        open_sets(DataConfig(root=str(packs)))
    assert "\n" not in str(caught.value)
    assert f"{packs}/val.pack" in str(caught.value)


def test_packs_of_different_trees_are_refused(packs: Path, tmp_path: Path) -> None:
    pack(make_tree(tmp_path / "other", ["cat", "dog", "zebra"]), tmp_path / "others")
    shutil.copy(tmp_path / "others" / "val.pack", packs / "val.pack")
    with pytest.raises(DataError, match="different classes: zebra only in val"):
        open_sets(DataConfig(root=str(packs)))


def test_damage_to_an_image_makes_this_image_unreadable(packs: Path) -> None:
    before = PackedSet(packs / "train.pack")
    change(packs / "train.pack", (packs / "train.pack").stat().st_size - 20, b"??")
    images = PackedSet(packs / "train.pack")
    last = len(images) - 1
    with pytest.raises(UnreadableImage, match="damaged") as caught:
        images.pixels(last)
    assert caught.value.name == f"{packs}/train.pack: dog/x.webp"
    np.testing.assert_array_equal(images.pixels(last - 1), before.pixels(last - 1))
