"""The standard streams of a process: they may be closed, full, or a pipe whose reader has ended."""

from __future__ import annotations

import os
import sys
from typing import Any

from udskd.errors import printable

_NAMES = ("stdin", "stdout", "stderr")  # by file descriptor


def open_missing() -> None:
    """Open /dev/null in place of each stream with which the process does not start (`udskd ... >&-`): the next file
    that is opened would get its number, and with it all that C libraries print. Characters that the encoding of a
    stream lacks become escapes."""
    for number, name in enumerate(_NAMES):
        stream = getattr(sys, name)
        if stream is None:
            _open_null(number)
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w"))  # noqa: SIM115
        elif number > 0 and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _open_null(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, number)
        if null != number:
            os.close(null)


def discard(stream: Any) -> None:
    """Redirect a stream to /dev/null. The interpreter flushes it again at exit, and would fail again."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):  # a stream without a descriptor, or no descriptor that is left
        return


def print_error(text: str) -> None:
    """Print one line to the standard error, with control characters as escapes. A line that cannot be written is lost:
    it must not end the work, or hide the error that it reports."""
    try:
        print(printable(text), file=sys.stderr or open(os.devnull, "w"), flush=True)  # noqa: SIM115
    except (OSError, ValueError):
        discard(sys.stderr)


class LossyOutput:
    """The standard output of work that is worth more than its messages: when it cannot be written (a full disk, a pipe
    whose reader has ended, a terminal that is closed), a warning says so once, and later lines are discarded."""

    def write(self, text: str) -> int:
        self._attempt(lambda: sys.stdout.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(lambda: sys.stdout.flush())

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)

    @staticmethod
    def _attempt(action: Any) -> None:
        try:
            action()
        except (OSError, ValueError) as error:
            discard(sys.stdout)
            reason = getattr(error, "strerror", None) or error
            print_error(f"udskd: warning: the output cannot be written ({reason}); the work goes on without it")
