"""Files: what is read must be a regular file, and what is written never goes through a link."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from udskd.errors import CheckpointError
from udskd.files import (
    create,
    open_regular,
    open_to_append,
    read_bytes,
    read_regular,
    read_text,
    replacing,
    write_atomic,
)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


SPECIAL: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
}


@pytest.fixture(params=SPECIAL)
def special(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """The path of something that is no regular file, and its kind."""
    monkeypatch.chdir(tmp_path)  # the path of a socket has at most 107 bytes
    SPECIAL[request.param](Path("special"))
    return Path("special"), request.param


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [open_regular, read_regular, read_text], ids=lambda read: read.__name__)
def test_only_a_regular_file_is_read(special: tuple[Path, str], read: Callable[[Path], object]) -> None:
    path, kind = special
    with pytest.raises(OSError, match=f"it is {kind}, not a file"):
        read(path)


def test_a_checkpoint_that_is_no_regular_file_is_one_sentence(special: tuple[Path, str]) -> None:
    path, kind = special
    with pytest.raises(CheckpointError, match=f"^special cannot be read: it is {kind}, not a file$"):
        read_bytes(path)


def test_a_fifo_in_place_of_a_file_after_the_check_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    look = os.stat

    def replace_by_fifo(name: Path) -> os.stat_result:
        status = look(name)
        path.unlink()
        os.mkfifo(path)
        return status

    monkeypatch.setattr(os, "stat", replace_by_fifo)
    with pytest.raises(OSError, match="it is a FIFO, not a file"):
        open_regular(path)


def test_a_name_that_no_file_can_have_is_an_error_of_the_file() -> None:
    for name in ("a\0b", "\ud800"):
        with pytest.raises(OSError, match="no file can have this name"):
            open_regular(name)


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text\n")
    (tmp_path / "link").symlink_to("file")
    assert read_text(tmp_path / "link") == "text\n"


def test_a_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, more than 4"):
        read_regular(tmp_path / "file", 4)


def test_a_file_that_does_not_fit_into_memory_is_an_error_of_the_file(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        file.truncate(2**42)  # without blocks on the disk
    with pytest.raises(OSError, match="do not fit into memory"):
        read_regular(tmp_path / "file")


def test_reading_needs_no_pytorch() -> None:
    script = "import sys, udskd.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


# --- writing ----------------------------------------------------------------------------------------------------------

WRITERS: dict[str, Callable[[Path], object]] = {
    "replacing": lambda path: write_atomic(path, b"new"),
    "create": lambda path: create(path).close(),
}


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
@pytest.mark.parametrize("name", ["file", "file.tmp"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_nothing_is_written_through_a_link(
    tmp_path: Path, write: Callable[[Path], object], name: str, link: Callable[[Path, Path], None]
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    link(victim, tmp_path / name)
    write(tmp_path / "file")
    assert victim.read_bytes() == b"precious"


def test_a_link_to_nothing_creates_no_file_at_its_target(tmp_path: Path) -> None:
    (tmp_path / "file.tmp").symlink_to(tmp_path / "target")
    write_atomic(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_in_place_of_the_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "file").symlink_to("victim")
    write_atomic(tmp_path / "file", b"new")
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_folder_that_is_a_link_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "folder").symlink_to("real")
    write_atomic(tmp_path / "folder" / "file", b"new")
    with open_to_append(tmp_path / "folder" / "log") as file:
        file.write(b"line")
    assert sorted(os.listdir(tmp_path / "real")) == ["file", "log"]


def test_the_temporary_file_of_a_killed_process_is_no_obstacle(tmp_path: Path) -> None:
    script = f"import os, udskd.files as f\nwith f.replacing(f.Path({str(tmp_path / 'file')!r})): os._exit(0)"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert os.listdir(tmp_path) == ["file.tmp"]
    write_atomic(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]


def test_a_fifo_in_place_of_the_temporary_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "file.tmp")
    write_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_folder_in_place_of_the_temporary_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file.tmp").mkdir()
    with pytest.raises(CheckpointError, match=r"^cannot write .*file: "):
        write_atomic(tmp_path / "file", b"new")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", b"new")
        open_to_append(tmp_path / "log").close()
    finally:
        os.umask(before)
    for name in ("file", "log"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


def test_a_writer_does_not_give_the_name_to_the_unfinished_file_of_another(tmp_path: Path) -> None:
    path, first, second = tmp_path / "file", ExitStack(), ExitStack()
    first.enter_context(replacing(path))
    second.enter_context(replacing(path)).write(b"second")
    with pytest.raises(OSError, match="another process writes it too"):
        first.close()
    assert not path.exists()
    second.close()
    assert path.read_bytes() == b"second"


def test_an_exception_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    def write() -> None:
        with replacing(tmp_path / "file") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    write_atomic(tmp_path / "file", b"old")
    with pytest.raises(KeyboardInterrupt):
        write()
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_what_is_appended_goes_to_the_end(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"one\n")
    with open_to_append(tmp_path / "log") as file:
        file.seek(0)
        file.write(b"two\n")
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_nothing_but_a_regular_file_is_appended_to(special: tuple[Path, str]) -> None:
    path, _ = special
    with pytest.raises(OSError, match=str(path)):
        open_to_append(path)


def test_nothing_is_appended_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("victim")
    with pytest.raises(OSError, match="it is a symbolic link"):
        open_to_append(tmp_path / "log")
    assert not (tmp_path / "victim").exists()
