"""Progress of long work: a bar on a terminal, plain lines in a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from udskd.errors import printable
from udskd.process.streams import LossyOutput

LINE_EVERY = 60.0  # seconds between the plain lines within an epoch


class Display:
    """Prints permanent lines, and the progress of loops. Where the output cannot be written, the work goes on."""

    def __init__(self, silent: bool = False) -> None:
        """silent: print nothing, because another process of the run does."""
        self._silent = silent
        self._output = cast("IO[str]", LossyOutput())
        self._terminal = self._output.isatty() and not silent
        self._console = Console(file=self._output, highlight=False, markup=False)

    def line(self, text: str) -> None:
        """Print one permanent line; control characters, which names of files can hold, become escapes."""
        text = printable(text)
        if self._terminal:
            self._console.print(text, soft_wrap=True)
        elif not self._silent:
            print(text, file=self._output, flush=True)

    @contextmanager
    def steps(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
        """Yields the function to call after each of `total` steps, of which `done` are done already."""
        if self._terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self._console, transient=True) as bar:
                task = bar.add_task(title, total=total, completed=done)
                yield lambda: bar.advance(task)
            return
        last = time.monotonic()

        def advance() -> None:
            nonlocal done, last
            done += 1
            if not self._silent and time.monotonic() - last > LINE_EVERY and done < total:
                last = time.monotonic()
                print(f"{title}: step {done}/{total}", file=self._output, flush=True)

        yield advance
