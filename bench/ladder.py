"""Every method on one recipe and several seeds: teacher, ce, kd, dml, udskd without and with each of its parts, and the
others.

    python -m bench.ladder recipes/caltech20.toml --data.root DIR --seeds 3 --jobs 2 --cache --output runs/ladder

One teacher for each seed, shared by all methods of that seed; with --cache its logits too, which saves its pass in all
that ask for logits alone (as fp16, on the CPU a rounding that the live teacher does not have). Complete runs are kept,
and others saved, so that a ladder that was interrupted, or ran into its --limit, continues where it stopped.
Ends with the table of `udskd compare` and OUTPUT/ladder.json: machine, versions, command, and every run's summary.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.machine import machine, versions
from udskd.results import table

RUNGS: dict[str, list[str]] = {
    "ce": ["--method", "ce"],
    "kd": ["--method", "kd"],
    "dml": ["--method", "dml"],
    "udskd-no-uncertainty": ["--method", "udskd", "--uncertainty", "none"],
    "udskd-no-peers": ["--method", "udskd", "--peer_weight", "0"],
    "udskd": ["--method", "udskd"],
    **{name: ["--method", name] for name in ("cud", "variance", "sdkd", "akd", "dkd", "er_kd", "wsl")},
}
FIRST = "kd"  # trains the seed's teacher; the other methods that use one wait for it
LIVE = ("ce", "dml", "cud", "sdkd")  # have no teacher, another one, or ask it for more than logits
GRACE = 60.0  # seconds for a run to save itself
STOPPED = (0, 130, -signal.SIGTERM, -signal.SIGKILL)  # what a run that is asked to stop may end with
HIDDEN = ("--data.root", "--teacher.checkpoint", "--teacher.cache")  # options with paths of this machine


class OutOfTime(Exception):
    """What is not complete waits for the same command."""


@dataclass
class Deadline:
    """A moment of time.monotonic()."""

    end: float = float("inf")

    @property
    def reached(self) -> bool:
        return time.monotonic() >= self.end

    def now(self, *_: object) -> None:
        """As a handler of signals: the runs are then stopped as at the end of the time."""
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
        """One training run, unless it is complete already."""
        folder = self.output / f"{name}-seed{seed}"
        if (folder / "summary.json").is_file():
            return folder
        command = ["train", self.recipe, *RUNGS[name], "--seed", str(seed), "--output", str(folder), *self.options]
        if name != FIRST:
            command += self._teacher(seed)
            if self.cached and name not in LIVE:
                command += ["--teacher.cache", str(self._cache(seed))]
        if (folder / "config.toml").is_file():
            command = ["train", "--resume", str(folder)]
        self._udskd(command, folder)
        return folder

    def cache(self, seed: int) -> None:
        """The logits of a seed's teacher, those that are there already left alone."""
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
        with open(f"{folder}.log", "a", encoding="utf-8") as log:
            environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
            # in a session of its own: a signal to all of us would be its first, ours its second, which ends it at once
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            code = wait(process, self.deadline)
        if code:
            raise SystemExit(f"{shlex.join(command)} ended with {code}; see {log.name}")
        print(f"{folder.name}: done", flush=True)


def wait(process: subprocess.Popen[bytes], deadline: Deadline) -> int:
    """The exit code of a command that ends in time by itself, or wrongly; any other is asked to save and stop.

    Raises:
        OutOfTime: it was asked, and did so.
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
        process.kill()  # what it saved last is whole all the same
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
    """What a reader needs to judge the numbers and to repeat them; no path of this machine."""
    summaries = []
    for run in runs:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        summary["dataset"].pop("root", None)
        summaries.append({"run": run.name, **summary})
    return {
        "command": command,
        "machine": machine("cuda" if torch.cuda.is_available() else "cpu"),
        "versions": versions(),
        "runs": summaries,
    }


def again(options: argparse.Namespace, rest: Sequence[str]) -> str:
    """The command that measures this again, without this machine's paths."""
    names = "|".join(map(re.escape, HIDDEN))
    hidden = [re.sub(rf"^({names})=.*", r"\1=DIR", word) for word in rest]
    hidden = ["DIR" if before in HIDDEN else word for before, word in zip(["", *hidden], hidden, strict=False)]
    recipe = options.recipe if not Path(options.recipe).is_absolute() else Path(options.recipe).name
    parts = ["python", "-m", "bench.ladder", recipe, *hidden]
    parts += [] if options.rungs == list(RUNGS) else ["--rungs", ",".join(options.rungs)]
    parts += ["--seeds", str(options.seeds), "--jobs", str(options.jobs), *["--cache"] * options.cache]
    return shlex.join([*parts, "--output", "DIR"])


def some_rungs(text: str) -> list[str]:
    """Comma-separated, in the ladder's order; FIRST is always among them."""
    chosen = {FIRST, *(part.strip() for part in text.split(","))}
    if unknown := sorted(chosen - set(RUNGS)):
        raise argparse.ArgumentTypeError(f"unknown rung {unknown[0]!r}; known are {', '.join(RUNGS)}")
    return [name for name in RUNGS if name in chosen]


def main(argv: Sequence[str] | None = None) -> int:
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m bench.ladder", description=about, allow_abbrev=False)
    parser.add_argument("recipe")
    parser.add_argument("--rungs", type=some_rungs, default=list(RUNGS), help=f"all if not given; {FIRST} in any case")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, each with its share of the cores")
    parser.add_argument("--cache", action="store_true", help="compute the teacher's logits once for each seed")
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS", help="after which runs stop")
    parser.add_argument("--output", type=Path, required=True)
    options, rest = parser.parse_known_args(argv)
    threads, deadline = max(1, (os.cpu_count() or 1) // options.jobs), Deadline(time.monotonic() + options.limit)
    ladder = Ladder(options.recipe, options.output, rest, threads, options.cache, deadline)
    before = {number: signal.signal(number, deadline.now) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        runs = run_all(ladder, options.rungs, options.seeds, options.jobs)
    except OutOfTime:
        wanted = [options.output / f"{name}-seed{s}" for name in options.rungs for s in range(options.seeds)]
        done = sum((folder / "summary.json").is_file() for folder in wanted)
        print(f"stopped: {done} of {len(wanted)} runs are complete; the same command goes on with the others")
        return 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    kept = json.dumps(record(runs, again(options, rest)), indent=1) + "\n"
    (options.output / "ladder.json").write_text(kept, encoding="utf-8")
    return table.compare(runs, options.output / "compare")


if __name__ == "__main__":
    sys.exit(main())
