"""Runs of several processes, started by torchrun; or forked from a process that has imported everything, keeps their
store and ends them as torchrun does, which is faster (`python -m tests.training.helpers.parallel` reads requests from
stdin).

Under torchrun this file replaces `python -m udskd`, with the patch that UDSKD_TEST_PATCH names.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed import TCPStore

from udskd import training
from udskd.cli import main as cli
from udskd.errors import CheckpointError
from udskd.training.engine.task import Inputs
from udskd.training.runtime.signals import StopRequest
from udskd.training.tasks import teacher
from udskd.training.tasks.students import StudentsTask

ROOT = Path(__file__).parents[3]
TIMEOUT = 120.0  # seconds, after which a run counts as hanging
HANGS = -1000


@dataclass
class Ended:
    """Exit code (HANGS if it had to be killed), stdout and stderr of each process."""

    codes: list[int]
    out: list[str]
    err: list[str]


# --- patches of a process ------------------------------------------------------------------------------------------


def at_step(number: int, action: Callable[[], None]) -> None:
    """Call `action` before the number-th loss (from 1) of the students in this process."""
    losses, calls = StudentsTask.losses, [0]

    def wrapper(self: StudentsTask, inputs: Inputs) -> dict[str, torch.Tensor]:
        calls[0] += 1
        if calls[0] == number:
            action()
        return losses(self, inputs)

    StudentsTask.losses = wrapper  # type: ignore[method-assign]


def no_teacher(rank: int) -> None:
    """Process 1 cannot read the teacher's file."""

    def broken(_: Any) -> Any:
        raise CheckpointError("teacher.pt cannot be read: Stale file handle")

    if rank == 1:
        teacher.load_or_build = broken


def crash(rank: int) -> None:
    def divide() -> None:
        raise ZeroDivisionError("a bug")

    if rank == 1:
        at_step(4, divide)


def die(rank: int) -> None:
    """Process 1 is killed, but not after a restart."""
    if rank == 1 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        at_step(5, lambda: os.kill(os.getpid(), signal.SIGKILL))


def full(rank: int) -> None:
    """From the fourth step on, the disk is full."""

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    at_step(4, lambda: setattr(os, "fsync", no_space))


def stop(rank: int) -> None:
    """Only process 1 receives SIGTERM."""
    if rank == 1:
        at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM))


def linger(rank: int) -> None:
    """In the fifth step, wait for a signal."""
    requests: list[StopRequest] = []
    enter = StopRequest.__enter__

    def wait() -> None:
        Path(f"waiting{rank}").touch()
        deadline = time.monotonic() + TIMEOUT
        while not requests[-1].requested and time.monotonic() < deadline:
            time.sleep(0.02)

    StopRequest.__enter__ = lambda self: (requests.append(self), enter(self))[1]  # type: ignore[func-returns-value, method-assign]
    at_step(5, wait)


def record(rank: int) -> None:
    """Save what the students see. Dropout, whose masks depend on the process, is removed."""
    losses, seen = StudentsTask.losses, []

    def wrapper(self: StudentsTask, inputs: Inputs) -> dict[str, torch.Tensor]:
        seen.append((inputs.images.numpy().copy(), inputs.target.numpy().copy()))
        np.savez(f"seen{rank}.npz", *[array for pair in seen for array in pair])
        return losses(self, inputs)

    StudentsTask.losses = wrapper  # type: ignore[method-assign]
    torch.nn.Dropout.forward = lambda self, input: input  # type: ignore[method-assign]


def machine(rank: int) -> None:
    """Each process is the only one of its machine, with its own data and runs."""
    os.environ["LOCAL_RANK"] = "0"
    os.chdir(f"machine{rank}")


PATCHES = {f.__name__: f for f in (machine, no_teacher, crash, die, full, stop, linger, record)}


def run_command(argv: list[str], patch: str) -> int:
    """A udskd command, or "bits RUN", which writes the result of evaluate_run to resultRANK.json."""
    rank = int(os.environ["RANK"])
    if patch:
        PATCHES[patch](rank)
    if argv[0] != "bits":
        return cli.main(argv)
    Path(f"result{rank}.json").write_text(json.dumps(training.evaluate_run(Path(argv[1])), sort_keys=True))
    return 0


# --- under torchrun ------------------------------------------------------------------------------------------------


def torchrun(ranks: int, command: str, folder: Path, patch: str = "", *options: str) -> subprocess.Popen[str]:
    """Start torchrun as the leader of a process group. All its descendants have UDSKD_TEST_WORLD=folder."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *options]
    paths = os.pathsep.join([str(ROOT), *sys.path])
    marks = {"UDSKD_TEST_PATCH": patch, "UDSKD_TEST_WORLD": str(folder)}
    return subprocess.Popen(
        [*launch, str(Path(__file__)), *command.split()],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **marks},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def survivors(folder: Path) -> list[str]:
    """Command lines of the processes started by torchrun() in a folder that have not ended after 20 seconds."""
    mark, deadline = f"UDSKD_TEST_WORLD={folder}".encode(), time.monotonic() + 20
    while left := [p for p in Path("/proc").glob("[0-9]*") if mark in _read(p / "environ")]:
        if time.monotonic() > deadline:
            return [_read(p / "cmdline").replace(b"\0", b" ").decode() for p in left]
        time.sleep(0.1)
    return []


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


# --- forked --------------------------------------------------------------------------------------------------------


class ForkServer:
    """Forks the processes of runs from one process that has imported everything."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.training.helpers.parallel"],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if not k.startswith("TORCHELASTIC")} | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, ranks: int, command: str, folder: Path, patch: str = "") -> Ended:
        """Run a command in a folder with several processes."""
        assert self._process.stdin
        assert self._process.stdout
        order = {"ranks": ranks, "command": command, "folder": str(folder), "patch": patch}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return Ended(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(TIMEOUT)


def serve() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(asdict(_run_forked(**json.loads(line)))), flush=True)


def _run_forked(ranks: int, command: str, folder: str, patch: str) -> Ended:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    addresses = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(ranks)}
    addresses |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none"}  # as torchrun does
    pids = [_fork(command, Path(folder), patch, rank, addresses) for rank in range(ranks)]
    codes: dict[int, int] = {}
    deadline = time.monotonic() + TIMEOUT
    while len(codes) < ranks:
        for rank in set(range(ranks)) - codes.keys():
            pid, status = os.waitpid(pids[rank], os.WNOHANG)
            if pid:
                codes[rank] = os.waitstatus_to_exitcode(status)
                if codes[rank]:  # as torchrun does
                    _signal([pids[r] for r in set(range(ranks)) - codes.keys()], signal.SIGTERM)
        if time.monotonic() > deadline:
            late = set(range(ranks)) - codes.keys()
            _signal([pids[r] for r in late], signal.SIGKILL)
            codes |= dict.fromkeys(late, HANGS)
        time.sleep(0.01)
    texts = [[Path(folder, f"{name}{rank}").read_text() for rank in range(ranks)] for name in ("out", "err")]
    return Ended([codes[rank] for rank in range(ranks)], *texts)


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def _fork(command: str, folder: Path, patch: str, rank: int, addresses: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.chdir(folder)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{name}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ |= {**addresses, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        code = run_command(command.split(), patch)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if "RANK" in os.environ:
        sys.exit(run_command(sys.argv[1:], os.environ["UDSKD_TEST_PATCH"]))
    serve()
