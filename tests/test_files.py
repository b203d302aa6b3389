"""Files: what is read must be a regular file, and what is written never goes through a link."""

from __future__ import annotations

import ast
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import bench.files
from udskd.config import toml
from udskd.config.schema import Config
from udskd.data import PackedSet, UnreadableImage
from udskd.data.decode import read_area, read_pixels
from udskd.data.manifest import read_manifest
from udskd.errors import CheckpointError, UdskdError
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
from udskd.models.checkpoints import load_state_dict, load_weights
from udskd.results import plots
from udskd.results.run_files import read_predictions
from udskd.results.runs import read_run
from udskd.training.storage.checkpoint import load_state
from udskd.training.storage.run_folder import RunFolder
from udskd.training.teacher_cache.folder import CacheFolder


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


def lock_and_append(path: Path) -> None:
    """Lock a run, whose lock is on environment.json, and write to its log."""
    folder = RunFolder(path.parent)
    folder.lock()
    folder.log("event")


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "recipe": ("recipe.toml", toml.load),
    "weights": ("x.safetensors", load_weights),
    "state dict": ("x.pt", load_state_dict),
    "train state": ("x.pt", load_state),
    "pack": ("train.pack", PackedSet),
    "image": ("x.jpg", lambda path: read_pixels(str(path))),
    "header of an image": ("x.jpg", lambda path: read_area(str(path))),
    "manifest": ("images.manifest", read_manifest),
    "log": ("log.jsonl", lambda path: read_run(path.parent)),
    "log to append to": ("log.jsonl", lock_and_append),
    "summary": ("summary.json", lambda path: read_run(path.parent)),
    "predictions": ("predictions.safetensors", lambda path: read_predictions(path.parent)),
    "config of a run": ("config.toml", lambda path: RunFolder.open(path.parent).config),
    "teacher cache": ("cache.json", lambda path: CacheFolder.open(path.parent)),
    "epoch of a teacher cache": ("epoch-0000.npy", lambda path: cache(path.parent).read_epoch(0)),
}


def cache(path: Path) -> CacheFolder:
    return CacheFolder(path, {"data.images": 2, "data.classes": 2}, {"epoch-0000.npy": ""})


@pytest.fixture
def _time_limit() -> Iterator[None]:
    """Ends a test that waits for a FIFO."""
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.mark.usefixtures("_time_limit")
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name, read = READERS[reader]
    Path("config.toml").write_bytes(b"")
    Path(name).unlink(missing_ok=True)
    SPECIAL[kind](Path(name))
    with pytest.raises((UdskdError, UnreadableImage), match=name.partition(".")[0]) as error:
        read(Path(name))
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("_time_limit")
@pytest.mark.parametrize("kind", SPECIAL)
def test_an_environment_that_is_no_regular_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    SPECIAL[kind](Path("environment.json"))
    folder = RunFolder(Path())
    with pytest.raises(CheckpointError, match=r"^cannot write environment\.json: "):
        folder.lock()
    assert not folder.started_by("torchrun")


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


@pytest.mark.parametrize("name", ["environment.json.tmp", "images.manifest.tmp", "config.toml.tmp", "environment.json"])
def test_a_new_run_does_not_write_through_a_link(tmp_path: Path, name: str) -> None:
    run, victim = tmp_path / "out", tmp_path / "victim"
    run.mkdir()
    victim.write_bytes(b"precious")
    (run / name).symlink_to(victim)
    folder = RunFolder(run)
    folder.check_free()
    folder.create(Config(), {})
    folder.log("begin")
    folder.unlock()
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["table.md", "accuracy.png", "table.md.tmp", "accuracy.png.tmp"])
def test_a_comparison_does_not_write_through_a_link(tmp_path: Path, name: str) -> None:
    from matplotlib.figure import Figure

    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / name).symlink_to(victim)
    bench.files.write_text(tmp_path / "table.md", "table")
    plots.save(Figure(), tmp_path / "accuracy.png")
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


# --- all files --------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
FUNCTIONS = {"open", "os.open", "np.load", "np.save", "np.fromfile"}
METHODS = {"read_text", "read_bytes", "write_text", "write_bytes", "tofile"}
DIRECT = {
    ("udskd/cli/main.py", "os.open"): "/dev/null",
    ("udskd/process/streams.py", "os.open"): "/dev/null",
    ("udskd/process/streams.py", "open"): "/dev/null",
    ("udskd/data/resident.py", ".read_text"): "/proc/meminfo",
    ("bench/caches.py", ".read_text"): "/sys",
    ("bench/machine.py", ".read_text"): "/proc/cpuinfo",
    ("bench/throughput.py", ".read_text"): "/proc",
    ("bench/memory.py", ".read_text"): "a file in a temporary folder of its own",
}
"""Calls that open a file without udskd/files.py, and what they open."""


def opening_calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) in FUNCTIONS:
                yield ast.unparse(node.func)
            elif isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                yield f".{node.func.attr}"


def test_no_other_module_opens_files() -> None:
    modules = [path for folder in ("udskd", "bench") for path in (ROOT / folder).rglob("*.py")]
    found = {(str(path.relative_to(ROOT)), call) for path in modules for call in opening_calls(path)}
    assert {entry for entry in found if entry[0] != "udskd/files.py"} <= set(DIRECT)
