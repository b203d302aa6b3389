"""Files: regular ones are read, and none is overwritten through a link.

Everything that udskd reads is opened by open_regular(), and everything that it writes by create(), replacing() or
open_to_append().
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from udskd.errors import CheckpointError, DataError

PREDICTIONS = "predictions.safetensors"
"""The file of the students' predictions in a run folder; all other files of this suffix hold weights."""

# Flags that Windows lacks. Without O_NONBLOCK, open() of a FIFO waits for its other end.
_BINARY, _NOFOLLOW = getattr(os, "O_BINARY", 0), getattr(os, "O_NOFOLLOW", 0)
_CAREFUL = _BINARY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def expand_user(path: str | Path) -> Path:
    """The path with ~ and ~USER replaced. DataError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DataError(f"{path} begins with the home of a user that does not exist: give the whole path") from None


# --- reading ----------------------------------------------------------------------------------------------------------


def open_regular(path: str | Path, buffering: int = -1) -> BinaryIO:
    """Open a regular file, or a link to one, for reading.

    Raises OSError as open() does, and at once for a folder, a FIFO, a socket or a device; its `strerror` is a sentence.
    """
    try:
        status = os.stat(path)
    except ValueError as error:  # a NUL, or characters that the file system cannot have
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from error
    _check_regular(status, path)  # first: opening a device or a FIFO can have effects
    file: BinaryIO = _opened(os.open(path, os.O_RDONLY | _CAREFUL), path, "rb", buffering)
    return file


def read_regular(path: str | Path, limit: int | None = None) -> bytes:
    """The content of a regular file. OSError as from open_regular(), for a file of more than `limit` bytes, and for one
    that does not fit into memory."""
    with open_regular(path, buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise OSError(errno.EFBIG, f"it has {size} bytes, more than {limit}", str(path))
        try:
            return file.read()
        except MemoryError:
            raise OSError(errno.ENOMEM, f"its {size} bytes do not fit into memory", str(path)) from None


def read_text(path: str | Path, limit: int | None = None) -> str:
    """The content of a regular file in UTF-8. OSError as from read_regular(), UnicodeDecodeError (a ValueError) for
    other bytes."""
    return read_regular(path, limit).decode("utf-8")


def _check_regular(status: os.stat_result, path: str | Path) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        code = errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL
        raise OSError(code, f"it is {_KINDS.get(kind, 'something else')}, not a file", str(path))


def _opened(descriptor: int, path: str | Path, mode: str, buffering: int = -1) -> Any:
    """The file object of a descriptor. OSError, and the descriptor is closed, if it is not that of a regular file."""
    try:
        _check_regular(os.fstat(descriptor), path)
        return open(path, mode, buffering, opener=lambda *_: descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path) -> bytes:
    """A file's content. CheckpointError if it is missing or cannot be read."""
    try:
        return read_regular(path)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def read_pickle(path: Path, data: memoryview) -> dict[str, Any]:
    """The dict that torch.save wrote, on the CPU; no code in the file is run. CheckpointError if it is damaged, or
    holds something else."""
    import torch  # takes a second, and reading a recipe does not need it

    try:
        _check_zip(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, for files that are no pickles
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # PyTorch's reader raises almost any exception for a damaged file
        raise CheckpointError(f"{path} is truncated or not a checkpoint of tensors and plain values") from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} is not a checkpoint: it holds a {type(loaded).__name__} instead of a dict")
    return loaded


def _check_zip(data: memoryview) -> None:
    """ValueError for a zip archive whose entries are longer than the file: torch.save compresses none."""
    if bytes(data[:4]) == b"PK\3\4":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(data):
                raise ValueError("its entries are longer than the file")


# --- writing ----------------------------------------------------------------------------------------------------------


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless they exist. CheckpointError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make the folder {path}: {error.strerror or error}") from error


def create(path: Path) -> BinaryIO:
    """A new, empty file, open for writing. A file or a link of this name is removed, not written to. Raises OSError."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _CAREFUL
    return open(path, "wb", opener=lambda *_: os.open(path, flags, 0o666))  # 0o666: the umask decides


def open_to_append(path: Path) -> BinaryIO:
    """Open a regular file for reading and for writing at its end, or create it. OSError for anything else, also for a
    link, which another user of the folder may have made."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link, which is not written through", str(path))
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _NOFOLLOW | _CAREFUL, 0o666)
    file: BinaryIO = _opened(descriptor, path, "ab+")
    return file


@contextlib.contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write that replaces `path` when the block ends without an exception. Raises OSError.

    At any moment, either the old file or the whole new one exists. A link at `path` is replaced, not its target. With
    `keep`, the old file is first renamed to it, so that for a moment only `keep` exists. A process that is killed
    leaves NAME.tmp, which the next one removes.
    """
    temporary = path.with_name(path.name + ".tmp")
    with create(temporary) as file:
        own = os.fstat(file.fileno())
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not _is_file(temporary, own):
                raise OSError(errno.EBUSY, "another process writes it too", str(path))
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(temporary, path)
        finally:
            if _is_file(temporary, own):
                with contextlib.suppress(OSError):
                    temporary.unlink()
    _sync_folder(path.parent)


def _is_file(path: Path, status: os.stat_result) -> bool:
    """Whether a path, which may not exist, is the file of this status."""
    try:
        return os.path.samestat(path.lstat(), status)
    except OSError:
        return False


def write_atomic(path: Path, *parts: bytes | memoryview, keep: Path | None = None) -> None:
    """Write a file with replacing(). CheckpointError if that fails."""
    try:
        with replacing(path, keep) as file:
            for data in parts:
                file.write(data)
    except OSError as error:
        kept = "; the previous one is intact" if path.exists() or (keep and keep.exists()) else ""
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}{kept}") from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
