"""A process that trains and that a trap interrupts at a chosen call: a signal kills or stops it, or its disk is full.

It is forked from a process that has imported everything.
"""

from __future__ import annotations

import builtins
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udskd.cli import main as cli
from udskd.data.batch import Views
from udskd.training.evaluation.metrics import Metrics
from udskd.training.runtime.signals import StopRequest
from udskd.training.storage import checkpoint, run_folder
from udskd.training.tasks.students import StudentsTask
from udskd.training.tasks.teacher import TeacherTask


@dataclass
class Trap:
    """Interrupts a child at the due-th counted call; 0 is never. Calls that write are counted, and for stops also calls
    that compute."""

    action: str = "none"
    """"kill", "stop", or "full": from then on, every write fails."""
    due: int = 0
    where: str = "before"
    """Of the call: "before", "half" or "after"."""
    signal: int = signal.SIGKILL
    error: int = errno.ENOSPC
    count: int = 0
    pid: int = 0

    def count_call(self, name: str, do: Callable[[], Any], half: Callable[[], Any] = lambda: None) -> Any:
        """Execute the call `do`, interrupted if it is the due one."""
        if os.getpid() != self.pid:  # a worker process
            return do()
        self.count += 1
        if self.action == "full" and self.due and self.count >= self.due:
            half()
            self._note(f"{os.strerror(self.error)} at {name}")
            raise OSError(self.error, os.strerror(self.error))
        if self.count != self.due:
            return do()
        self._note(f"{self.where} {name}")
        result = {"before": lambda: None, "half": half, "after": do}[self.where]()
        os.kill(os.getpid(), self.signal)
        return result if self.where == "after" else do()

    def _note(self, text: str) -> None:
        if self.count == self.due:
            Path("note").write_text(text)

    def install(self) -> None:
        """Replace the functions to count in this process, which ends afterwards."""
        self.pid = os.getpid()
        for module in (checkpoint, run_folder):
            module.open = self._open  # type: ignore[attr-defined]
        for name in ("fsync", "replace", "mkdir", "unlink"):
            setattr(os, name, self._counted(getattr(os, name), name, write=True))
        if self.action == "stop":
            for owner, name in (
                (Views, "fill"),
                (Metrics, "update"),
                (TeacherTask, "losses"),
                (StudentsTask, "losses"),
            ):
                setattr(owner, name, self._counted(getattr(owner, name), f"{owner.__name__}.{name}", write=False))

    def _counted(self, original: Callable[..., Any], name: str, write: bool) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            if write and not isinstance(args[0], int) and not os.fspath(args[0]).startswith("run"):
                return original(*args, **options)
            words = f"{name} {args[0]}" if write and not isinstance(args[0], int) else name
            return self.count_call(words, lambda: original(*args, **options))

        return wrapper

    def _open(self, path: Path, mode: str = "r", **options: Any) -> Any:
        return self.count_call(f"open {path}", lambda: _File(builtins.open(path, mode, **options), str(path), self))


class _File:
    """A file whose writes are counted."""

    def __init__(self, file: Any, name: str, trap: Trap) -> None:
        self._file, self._name, self._trap = file, name, trap

    def write(self, data: Any) -> None:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._trap.count_call(f"write {self._name}", lambda: self._file.write(data), half)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


@dataclass
class Child:
    """A forked process that executes a udskd command in a folder, with its output in the files out and err."""

    folder: Path
    pid: int
    ready: int
    """A pipe that is readable once the process handles signals."""

    @staticmethod
    def start(command: str, folder: Path, trap: Trap) -> Child:
        sys.stdout.flush()
        ready, handles = os.pipe()
        pid = os.fork()
        if pid == 0:
            _run_child(command, folder, trap, handles)
        os.close(handles)
        return Child(folder, pid, ready)

    def end(self) -> int:
        """Wait for the end. Returns the exit code, negative for a signal."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.ready)
        return os.waitstatus_to_exitcode(status)

    def errors(self) -> list[str]:
        return [line for line in (self.folder / "err").read_text().splitlines() if line]


def _run_child(command: str, folder: Path, trap: Trap, handles: int) -> None:
    code = 70
    try:
        os.chdir(folder)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        enter = StopRequest.__enter__
        StopRequest.__enter__ = lambda self: (enter(self), os.write(handles, b"!"))[0]  # type: ignore[method-assign]
        trap.install()
        code = cli.main(command.split())
        Path("count").write_text(str(trap.count))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
