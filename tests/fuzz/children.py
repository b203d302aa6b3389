"""Work in forked children: a crash, a hang or a large allocation ends the child, and the parent reports it."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

import torch

from tests.fuzz.case import Case

Run = Callable[[Case], "str | None"]
MEMORY = 2**30  # bytes that a case may take beyond what this process has
LONGEST = 2_000  # characters of a finding


def findings(cases: Sequence[Case], run: Run, seconds: float) -> list[str | None]:
    """The finding of each case, each within `seconds`. The cases share a child until one of them ends it."""
    found: list[str | None] = []
    while len(found) < len(cases):
        found += _in_one_child(cases[len(found) :], run, seconds)
    return found


def _in_one_child(cases: Sequence[Case], run: Run, seconds: float) -> list[str | None]:
    """The findings up to the case that ends the child."""
    with tempfile.TemporaryFile("w+") as results:
        child = os.fork()
        if child == 0:
            _run_all(cases, run, seconds, results)
        _, status = os.waitpid(child, 0)
        _kill_group(child)
        results.seek(0)
        found: list[str | None] = [json.loads(line) for line in results]
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        found.append(f"no end after {seconds:g} seconds" if number == signal.SIGALRM else signal.Signals(number).name)
    elif os.WEXITSTATUS(status):
        found.append(f"the process exits with {os.WEXITSTATUS(status)}")
    return found


def _run_all(cases: Sequence[Case], run: Run, seconds: float, results: TextIO) -> NoReturn:
    """In the child: run the cases, with a line of JSON for each, and exit."""
    begin_child(MEMORY)
    _to_file(2, Path(os.devnull))  # of warnings
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for case in cases:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            finding = run(case)
        except BaseException:
            finding = traceback.format_exc()[-LONGEST:]
        print(json.dumps(finding and finding[:LONGEST]), file=results, flush=True)
    os._exit(0)


def begin_child(memory: int) -> None:
    """A process group of its own, no core file, and a limit on the memory that is taken from here on."""
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)  # the threads of the parent are not in the child, which would wait for them
    with suppress(OSError):  # where there is no /proc, there is no limit
        status = Path("/proc/self/status").read_text()
        data = 1024 * int(status.partition("VmData:")[2].split()[0])
        resource.setrlimit(resource.RLIMIT_DATA, (data + memory, data + memory))


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    status: int
    """The exit code, or the negative number of the signal."""
    output: str
    errors: str
    interrupted: bool
    """Whether it was sent SIGINT after its time."""


def program(main: Callable[[], int], folder: Path, streams: Path, seconds: float, memory: int) -> Ended | None:
    """Run `main` in a child in a folder, with its streams in files of another folder.

    It receives SIGINT after `seconds`. Returns None if it does not end within 30 seconds from then on.
    """
    out, err = streams / "stdout", streams / "stderr"
    child = os.fork()
    if child == 0:
        _run_program(main, folder, out, err, memory)
    status = _wait(child, seconds)
    if interrupted := status is None:
        os.kill(child, signal.SIGINT)
        status = _wait(child, 30)
    _kill_group(child)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None
    output, errors = (file.read_text(errors="backslashreplace") for file in (out, err))
    return Ended(os.waitstatus_to_exitcode(status), output, errors, interrupted)


def _run_program(main: Callable[[], int], folder: Path, out: Path, err: Path, memory: int) -> NoReturn:
    code = 1
    try:
        begin_child(memory)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        for number, file in ((0, Path(os.devnull)), (1, out), (2, err)):
            _to_file(number, file)
        for name, number in (("stdout", 1), ("stderr", 2)):  # pytest has replaced these
            setattr(sys, name, open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115
        code = main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)


def _to_file(stream: int, file: Path) -> None:
    os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC), stream)


def _wait(child: int, seconds: float) -> int | None:
    """The wait status, None if the child has not ended after `seconds`."""
    end, pause = time.monotonic() + seconds, 0.001
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return None


def _kill_group(child: int) -> None:
    """End what a child has started, such as worker processes."""
    with suppress(OSError):
        os.killpg(child, signal.SIGKILL)
