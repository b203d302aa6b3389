"""manifest: which changes make another set of images, and which images are read to find them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.helpers.images import MemorySet, make_tree, photo
from udskd.config.schema import DataConfig
from udskd.data import dataset, open_sets, pack
from udskd.data import folder as folder_module
from udskd.data.folder import FolderSet
from udskd.data.manifest import MAGIC, Manifest, describe_changes, from_bytes, list_images, to_bytes
from udskd.data.packed import PackedSet
from udskd.data.synthetic import EmbeddedSet

EMPTY = {"checksum": "sha256", "names": [], "digests": [], "marks": []}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree")


def listed(root: Path, known: Manifest | None = None) -> Manifest:
    return list_images(dict(zip(("train", "val"), open_sets(DataConfig(root=str(root))), strict=True)), known)


def after(root: Path, change: Callable[[Path], object]) -> str:
    """The description of a change."""
    before = listed(root)
    change(root)
    return describe_changes(before, listed(root, before))


def add(root: Path) -> None:
    for name in ("train/cat/a.png", "train/dog/b.png", "val/cat/c.png"):
        photo(99).save(root / name)


def replace_in_place(root: Path) -> None:
    """Other bytes, the same size and modification time."""
    path = root / "train" / "dog" / "1.png"
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def swap(root: Path) -> None:
    one, other = (root / "train" / name / "0.png" for name in ("cat", "dog"))
    one.rename(root / "x")
    other.rename(one)
    (root / "x").rename(other)


def rename(root: Path) -> None:
    (root / "val" / "cat" / "0.png").rename(root / "val" / "cat" / "z.png")


CHANGES = {
    "nothing": (lambda root: None, ""),
    "added": (add, "3 added (train/cat/a.png, train/dog/b.png, val/cat/c.png)"),
    "removed": (lambda root: (root / "val" / "dog" / "1.png").unlink(), "1 removed (val/dog/1.png)"),
    "replaced": (lambda root: photo(99).save(root / "val" / "dog" / "1.png"), "1 changed (val/dog/1.png)"),
    "edited": (replace_in_place, "1 changed (train/dog/1.png)"),
    "swapped": (swap, "2 changed (train/cat/0.png, train/dog/0.png)"),
    "renamed": (rename, "1 added (val/cat/z.png), 1 removed (val/cat/0.png)"),
    "emptied": (lambda root: (root / "val/dog/1.png").write_bytes(b""), "1 not readable any more (val/dog/1.png)"),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_every_change_of_a_tree_is_named(root: Path, change: Callable[[Path], object], expected: str) -> None:
    assert after(root, change) == expected


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_every_change_is_named_if_marks_are_used(
    root: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], expected: str
) -> None:
    monkeypatch.setattr(dataset, "CLOCK_STEP", 0)
    assert after(root, change) == expected


def test_a_copy_with_other_times_is_the_same_set(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    before = listed(root)
    assert describe_changes(before, listed(tmp_path / "copy", before)) == ""


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reads: list[str] = []
    read = folder_module.read_bytes
    monkeypatch.setattr(folder_module, "read_bytes", lambda path, *limit: (reads.append(path), read(path, *limit))[1])
    return reads


def test_unchanged_files_are_not_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "CLOCK_STEP", 0)
    reads, before = count_reads(monkeypatch), listed(root)
    assert len(reads) == 10
    reads.clear()
    os.utime(root / "train" / "cat" / "1.png")
    again = listed(root, before)
    assert [os.path.relpath(path, root) for path in reads] == ["train/cat/1.png"]
    assert describe_changes(before, again) == ""
    reads.clear()
    listed(root, again)
    assert reads == []


def test_a_file_that_has_just_changed_is_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second change within the resolution of its times would not show."""
    before, reads = listed(root), count_reads(monkeypatch)
    listed(root, before)
    assert len(reads) == 10


def test_unreadable_files_belong_to_the_set(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "CLOCK_STEP", 0)
    path = root / "train" / "cat" / "x.jpg"
    path.symlink_to(root / "nowhere")
    (root / "train" / "cat" / "y.jpg").write_bytes(b"no image")
    before = listed(root)
    assert describe_changes(before, listed(root, before)) == ""
    photo().save(root / "nowhere", "JPEG")
    assert describe_changes(before, listed(root, before)) == "1 changed (train/cat/x.jpg)"


def test_names_that_are_not_utf8_are_kept(root: Path) -> None:
    with open(os.path.join(os.fsencode(root / "train" / "cat"), b"\xff.png"), "wb") as file:
        photo().save(file, "PNG")
    before = from_bytes(to_bytes(listed(root)))
    assert before["train"].names[3] == "cat/\udcff.png"
    assert describe_changes(before, listed(root, before)) == ""


def test_a_pack_is_listed_without_its_images(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(root, tmp_path / "packs")
    monkeypatch.setattr(dataset, "CLOCK_STEP", 0)
    monkeypatch.setattr(PackedSet, "file", lambda *_: pytest.fail("an image was read"))
    before = listed(tmp_path / "packs")
    (tmp_path / "packs").rename(tmp_path / "moved")
    assert describe_changes(before, listed(tmp_path / "moved", before)) == ""


def test_a_pack_that_was_damaged_or_copied_is_read_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(root, tmp_path / "packs")
    monkeypatch.setattr(dataset, "CLOCK_STEP", 0)
    before = listed(tmp_path / "packs")
    shutil.copytree(tmp_path / "packs", tmp_path / "copy")
    assert describe_changes(before, listed(tmp_path / "copy", before)) == ""
    with open(tmp_path / "packs" / "train.pack", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 255]))
    assert describe_changes(before, listed(tmp_path / "packs", before)) == "1 not readable any more (train/dog/2.png)"


@pytest.mark.parametrize("first", ["tree", "packs"])
def test_a_pack_of_unchanged_files_is_the_same_set_as_its_tree(root: Path, tmp_path: Path, first: str) -> None:
    pack(root, tmp_path / "packs", short_side=None)
    second = {"tree": "packs", "packs": "tree"}[first]
    before = listed(tmp_path / first)
    now = listed(tmp_path / second, before)
    assert describe_changes(before, now) == ""
    photo(99).save(root / "val" / "cat" / "0.png")
    pack(root, tmp_path / "packs", short_side=None)
    assert describe_changes(now, listed(tmp_path / first, now)) == "1 changed (val/cat/0.png)"


def test_a_pack_of_smaller_images_is_another_set(root: Path, tmp_path: Path) -> None:
    pack(root, tmp_path / "packs", short_side=8)
    before = listed(root)
    assert describe_changes(before, listed(tmp_path / "packs", before)).startswith("10 changed (train/cat/0.png, ")


def test_images_in_another_order_are_another_set() -> None:
    before = list_images({"train": MemorySet(4)})
    now = {
        "train": type(before["train"])("sha256", *(column[::-1] for column in list(vars(before["train"]).values())[1:]))
    }
    assert describe_changes(before, now) == "the same images in another order"


def test_sets_without_files_are_identified_by_their_pixels() -> None:
    before = list_images({"train": EmbeddedSet("train", 5)})
    assert describe_changes(before, list_images({"train": EmbeddedSet("train", 5)}, before)) == ""
    other = EmbeddedSet("train", 5)
    other._pixels = np.array(other._pixels)
    other._pixels[2, 0, 0, 0] ^= 1
    assert describe_changes(before, list_images({"train": other}, before)) == "1 changed (train/embedded/train/2)"


def test_poll_can_stop_the_listing_and_no_thread_remains(root: Path) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    before = set(threading.enumerate())
    with pytest.raises(Stop) as caught:
        list_images({"train": FolderSet(root / "train")}, poll=stop)
    assert caught.tb is not None  # its frames would keep the threads alive
    assert set(threading.enumerate()) <= before


def test_every_image_advances_the_display() -> None:
    seen: list[Any] = []
    list_images({"train": MemorySet(130), "val": MemorySet(3)}, advance=lambda: seen.append(None))
    assert len(seen) == 133


def test_a_manifest_survives_writing_and_reading(root: Path) -> None:
    manifest = listed(root)
    assert from_bytes(to_bytes(manifest)) == manifest


@pytest.mark.parametrize("position", [0, 14, 30, 80, 100, -1])
def test_one_altered_byte_is_found(root: Path, position: int) -> None:
    data = bytearray(to_bytes(listed(root)))
    data[position] ^= 1
    with pytest.raises(ValueError, match="SHA-256"):
        from_bytes(bytes(data))


@pytest.mark.parametrize("values", [[], {"train": 3}, {"train": {"names": []}}, {"train": {**EMPTY, "names": ["x"]}}])
def test_other_values_with_a_right_hash_are_refused(values: Any) -> None:
    content = zlib.compress(json.dumps(values).encode())
    with pytest.raises(ValueError, match="not written by udskd"):
        from_bytes(MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


@pytest.mark.parametrize("data", [b"", MAGIC, b"{}", b"\n\n"])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        from_bytes(data)
