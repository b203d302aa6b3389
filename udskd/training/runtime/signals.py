"""Ctrl-C, SIGTERM and SIGHUP (a terminal is closed) set a flag that training reads between two steps, so that no step
and no file is cut short."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from udskd.process.streams import print_error


class Stopped(Exception):
    """The user asked to stop, and the current step is complete."""


class StopRequest:
    """While entered, the first SIGINT, SIGTERM or SIGHUP sets `requested`; a second one has its usual effect at once.
    A SIGHUP that the process ignores, as under nohup, stays ignored.

    ignore_repeats: further signals have no effect. Under torchrun a process receives each signal twice, once from the
    terminal and once from torchrun, and the second one may arrive while the process already saves its state.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __init__(self, ignore_repeats: bool = False) -> None:
        self.requested = False
        self._ignore_repeats = ignore_repeats
        self._previous: dict[signal.Signals, Any] = {}

    def poll(self) -> None:
        """Raise Stopped if a signal has arrived. Training and evaluation call this after every step."""
        if self.requested:
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Sleep until a signal arrives, for at most this many seconds."""
        end = time.monotonic() + seconds
        while not self.requested and time.monotonic() < end:
            time.sleep(0.05)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows no handlers in other threads
            self._previous = {
                number: signal.signal(number, self._handle) for number in self.SIGNALS if not _is_ignored_hangup(number)
            }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ignore_repeats or error is None:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self._ignore_repeats:
            return
        self._restore()
        print_error("udskd: stopping after this step (again to stop at once)")


def _is_ignored_hangup(number: signal.Signals) -> bool:
    return number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN
