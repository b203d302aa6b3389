"""Every method on one recipe with several seeds: the teacher, ce, kd, dml, udskd with and without each term, and the
other methods.

    python -m bench.ladder recipes/caltech20.toml --data.root DIR --seeds 3 --jobs 2 --cache --output runs/ladder

A ladder is the set of these runs; a rung is one method with its options. All methods of a seed share one teacher, and
with --cache its logits, which saves the teacher's pass in every method that needs logits alone. (The cache holds fp16,
a rounding that the live teacher on a CPU does not have.) Complete runs are kept and the others are saved, so that the
same command continues a ladder that was interrupted or has reached its --limit. It ends with the table of
`udskd compare` and OUTPUT/ladder.json: machine, versions, command, and the summary of every run.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.arguments import make_parser
from bench.files import write_json
from bench.records import environment
from udskd.files import open_to_append
from udskd.results import table
from udskd.results.run_files import read_summary

RUNGS: dict[str, list[str]] = {
    "ce": ["--method", "ce"],
    "kd": ["--method", "kd"],
    "dml": ["--method", "dml"],
    "udskd-no-uncertainty": ["--method", "udskd", "--uncertainty", "none"],
    "udskd-no-peers": ["--method", "udskd", "--peer_weight", "0"],
    "udskd": ["--method", "udskd"],
    **{name: ["--method", name] for name in ("cud", "variance", "sdkd", "akd", "dkd", "er_kd", "wsl")},
}
FIRST = "kd"  # trains the teacher of its seed, for which the other methods wait
WITHOUT_CACHE = ("ce", "dml", "cud", "sdkd")  # use no teacher, a teacher of their own, or more of it than its logits
GRACE = 60.0  # seconds in which a run that is stopped has to save its state
STOPPED = (0, 130, -signal.SIGTERM, -signal.SIGKILL)  # exit codes of a run that was stopped
PATH_OPTIONS = ("--data.root", "--teacher.checkpoint", "--teacher.cache")


class OutOfTime(Exception):
    """The ladder was stopped before all runs were complete."""


@dataclass
class Deadline:
    """A moment of time.monotonic()."""

    end: float = float("inf")

    @property
    def reached(self) -> bool:
        return time.monotonic() >= self.end

    def now(self, *_: object) -> None:
        """A signal handler that stops the runs as the end of the time does."""
        self.end = 0.0


@dataclass(frozen=True)
class Ladder:
    """The runs of one recipe."""

    recipe: str
    output: Path
    options: Sequence[str]
    threads: int
    cached: bool
    deadline: Deadline = field(default_factory=Deadline)

    def run(self, name: str, seed: int) -> Path:
        """Trains, or continues, one run that is not yet complete; returns its folder."""
        folder = self.output / f"{name}-seed{seed}"
        if (folder / "summary.json").is_file():
            return folder
        command = ["train", self.recipe, *RUNGS[name], "--seed", str(seed), "--output", str(folder), *self.options]
        if name != FIRST:
            command += self._teacher(seed)
            if self.cached and name not in WITHOUT_CACHE:
                command += ["--teacher.cache", str(self._cache(seed))]
        if (folder / "config.toml").is_file():
            command = ["train", "--resume", str(folder)]
        self._udskd(command, folder)
        return folder

    def cache(self, seed: int) -> None:
        """Writes those logits of a seed's teacher that are still missing."""
        command = ["cache-teacher", self.recipe, "--seed", str(seed), "--output", str(self._cache(seed))]
        self._udskd([*command, *self.options, *self._teacher(seed)], self._cache(seed))

    def _teacher(self, seed: int) -> list[str]:
        return ["--teacher.checkpoint", str(self.output / f"{FIRST}-seed{seed}" / "teacher.safetensors")]

    def _cache(self, seed: int) -> Path:
        return self.output / f"cache-seed{seed}"

    def _udskd(self, arguments: Sequence[str], folder: Path) -> None:
        if self.deadline.reached:
            raise OutOfTime
        command = [sys.executable, "-m", "udskd", *arguments]
        self.output.mkdir(parents=True, exist_ok=True)
        with open_to_append(Path(f"{folder}.log")) as log:
            environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
            # In the same session a run would receive two signals, the terminal's and the ladder's, and end at once at
            # the second.
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            code = wait(process, self.deadline)
        if code:
            raise SystemExit(f"{shlex.join(command)} ended with {code}; see {log.name}")
        print(f"{folder.name}: done", flush=True)


def wait(process: subprocess.Popen[bytes], deadline: Deadline) -> int:
    """The exit code of a process. At the deadline it is terminated; if it fails then, its exit code is returned.

    Raises:
        OutOfTime: the process has stopped at the deadline, as requested.
    """
    while not deadline.reached:
        try:
            return process.wait(min(0.5, max(0.0, deadline.end - time.monotonic())))
        except subprocess.TimeoutExpired:
            continue
    process.terminate()
    try:
        code = process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()  # its last saved state is intact
        code = process.wait()
    if code not in STOPPED:
        return code
    raise OutOfTime


def run_all(ladder: Ladder, rungs: Sequence[str], seeds: int, jobs: int) -> list[Path]:
    with ThreadPoolExecutor(jobs) as pool:
        firsts = list(pool.map(partial(ladder.run, FIRST), range(seeds)))
        if ladder.cached:
            list(pool.map(ladder.cache, range(seeds)))
        others = [(name, seed) for seed in range(seeds) for name in rungs if name != FIRST]
        rest = list(pool.map(lambda job: ladder.run(*job), others))
    done = {folder.name: folder for folder in firsts + rest}
    return [done[f"{name}-seed{seed}"] for name in rungs for seed in range(seeds)]


def record(runs: Sequence[Path], command: str) -> dict[str, Any]:
    """Machine, versions, command and the summaries of all runs, without paths of this machine."""
    summaries = []
    for run in runs:
        summary = read_summary(run)
        summary["dataset"].pop("root", None)
        summaries.append({"run": run.name, **summary})
    return {**environment("cuda" if torch.cuda.is_available() else "cpu", command), "runs": summaries}


def command_of(options: argparse.Namespace, rest: Sequence[str]) -> str:
    """The command that repeats the ladder, with DIR in place of paths."""
    names = "|".join(map(re.escape, PATH_OPTIONS))
    hidden = [re.sub(rf"^({names})=.*", r"\1=DIR", word) for word in rest]
    hidden = ["DIR" if before in PATH_OPTIONS else word for before, word in zip(["", *hidden], hidden, strict=False)]
    recipe = options.recipe if not Path(options.recipe).is_absolute() else Path(options.recipe).name
    parts = ["python", "-m", "bench.ladder", recipe, *hidden]
    parts += [] if options.rungs == list(RUNGS) else ["--rungs", ",".join(options.rungs)]
    parts += ["--seeds", str(options.seeds), "--jobs", str(options.jobs), *["--cache"] * options.cache]
    return shlex.join([*parts, "--output", "DIR"])


def some_rungs(text: str) -> list[str]:
    """Comma-separated names, in the order of RUNGS; FIRST is always added."""
    chosen = {FIRST, *(part.strip() for part in text.split(","))}
    if unknown := sorted(chosen - set(RUNGS)):
        raise argparse.ArgumentTypeError(f"unknown rung {unknown[0]!r}; known are {', '.join(RUNGS)}")
    return [name for name in RUNGS if name in chosen]


@contextmanager
def stopping_on_signals(deadline: Deadline) -> Iterator[None]:
    """Within it, Ctrl-C and SIGTERM end the deadline instead of the process."""
    before = {number: signal.signal(number, deadline.now) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_ladder_parser() -> argparse.ArgumentParser:
    parser = make_parser("ladder", __doc__)
    add = parser.add_argument
    add("recipe")
    add("--rungs", type=some_rungs, default=list(RUNGS), help=f"all if not given; {FIRST} in any case")
    add("--seeds", type=int, default=3)
    add("--jobs", type=int, default=1, help="runs at the same time, each with its share of the cores")
    add("--cache", action="store_true", help="compute the teacher's logits once for each seed")
    add("--limit", type=float, default=float("inf"), metavar="SECONDS", help="time after which runs stop")
    add("--output", type=Path, required=True)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options, rest = make_ladder_parser().parse_known_args(argv)
    threads, deadline = max(1, (os.cpu_count() or 1) // options.jobs), Deadline(time.monotonic() + options.limit)
    ladder = Ladder(options.recipe, options.output, rest, threads, options.cache, deadline)
    try:
        with stopping_on_signals(deadline):
            runs = run_all(ladder, options.rungs, options.seeds, options.jobs)
    except OutOfTime:
        wanted = [options.output / f"{name}-seed{s}" for name in options.rungs for s in range(options.seeds)]
        done = sum((folder / "summary.json").is_file() for folder in wanted)
        print(f"stopped: {done} of {len(wanted)} runs are complete; the same command continues with the others")
        return 1
    write_json(options.output / "ladder.json", record(runs, command_of(options, rest)))
    return table.compare(runs, options.output / "compare")


if __name__ == "__main__":
    sys.exit(main())
