"""Ctrl-C and SIGTERM as a request that is honoured between two steps, so that nothing is left half-written."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any


class Stopped(Exception):
    """The user asked to stop, and the current step is complete."""


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets `requested`; a second one stops at once, as without this.

    patient: any number of them is one request. Under torchrun each comes twice: once for all, once passed on by it; the
    second perhaps when we are already on our way out.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, patient: bool = False) -> None:
        self.requested = False
        self._patient = patient
        self._previous: dict[signal.Signals, Any] = {}

    def poll(self) -> None:
        """Raise Stopped if somebody asked. Call it after every step, of training and of evaluation."""
        if self.requested:
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Sleep until somebody asks, at most so long."""
        end = time.monotonic() + seconds
        while not self.requested and time.monotonic() < end:
            time.sleep(0.05)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._previous = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._patient or error is None:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self._patient:
            return
        self._restore()
        print("\nudskd: stopping after this step (again to stop at once)", file=sys.stderr, flush=True)
