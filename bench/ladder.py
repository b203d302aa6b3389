"""Every method on one recipe and several seeds: teacher, ce, kd, dml, udskd without and with each of its parts, and the
others.

    python -m bench.ladder recipes/caltech20.toml --data.root DIR --seeds 3 --jobs 2 --cache --output runs/ladder

One teacher for each seed, shared by all methods of that seed; with --cache its logits too, which saves its pass in all
that ask for logits alone (as fp16, on the CPU a rounding that the live teacher does not have). Complete runs are kept,
so that an interrupted ladder continues where it stopped.
Ends with the table of `udskd compare` and OUTPUT/ladder.json: machine, versions, command, and every run's summary.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import udskd
from bench.machine import processor
from udskd import report

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


@dataclass(frozen=True)
class Ladder:
    """The runs of one recipe."""

    recipe: str
    output: Path
    options: Sequence[str]
    threads: int
    cached: bool

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
        command = [sys.executable, "-m", "udskd", *arguments]
        self.output.mkdir(parents=True, exist_ok=True)
        with open(f"{folder}.log", "w", encoding="utf-8") as log:
            environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        if done.returncode:
            raise SystemExit(f"{shlex.join(command)} ended with {done.returncode}; see {log.name}")
        print(f"{folder.name}: done", flush=True)


def run_all(ladder: Ladder, seeds: int, jobs: int) -> list[Path]:
    with ThreadPoolExecutor(jobs) as pool:
        firsts = list(pool.map(partial(ladder.run, FIRST), range(seeds)))
        if ladder.cached:
            list(pool.map(ladder.cache, range(seeds)))
        others = [(name, seed) for seed in range(seeds) for name in RUNGS if name != FIRST]
        rest = list(pool.map(lambda job: ladder.run(*job), others))
    done = {folder.name: folder for folder in firsts + rest}
    return [done[f"{name}-seed{seed}"] for name in RUNGS for seed in range(seeds)]


def record(runs: Sequence[Path], command: str) -> dict[str, Any]:
    """What a reader needs to judge the numbers and to repeat them; no path of this machine."""
    summaries = []
    for run in runs:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        summary["dataset"].pop("root", None)
        summaries.append({"run": run.name, **summary})
    return {
        "command": command,
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"udskd": udskd.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "runs": summaries,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ladder", description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, each with its share of the cores")
    parser.add_argument("--cache", action="store_true", help="compute the teacher's logits once for each seed")
    parser.add_argument("--output", type=Path, required=True)
    options, rest = parser.parse_known_args(argv)
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    ladder = Ladder(options.recipe, options.output, rest, threads, options.cache)
    runs = run_all(ladder, options.seeds, options.jobs)
    command = (
        f"python -m bench.ladder {options.recipe} --data.root DIR "
        f"--seeds {options.seeds} --jobs {options.jobs}{' --cache' * options.cache} --output DIR"
    )
    (options.output / "ladder.json").write_text(json.dumps(record(runs, command), indent=1) + "\n", encoding="utf-8")
    return report.compare(runs, options.output / "compare")


if __name__ == "__main__":
    sys.exit(main())
