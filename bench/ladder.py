"""The ladder that the paper compares with, on one recipe and several seeds: teacher, ce, kd, dml, and udskd without and
with each of its parts.

    python -m bench.ladder recipes/caltech20.toml --data.root DIR --seeds 3 --jobs 2 --output runs/ladder

One teacher for each seed, shared by all methods of that seed. Complete runs are kept, so that an interrupted ladder
continues where it stopped.
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
}
FIRST = "kd"  # trains the seed's teacher; the other methods that use one wait for it


def run_one(recipe: str, output: Path, name: str, seed: int, options: Sequence[str], threads: int) -> Path:
    """One training run, unless it is complete already."""
    folder = output / f"{name}-seed{seed}"
    if (folder / "summary.json").is_file():
        return folder
    command = [
        sys.executable,
        "-m",
        "udskd.cli",
        "train",
        recipe,
        *RUNGS[name],
        "--seed",
        str(seed),
        "--output",
        str(folder),
        *options,
    ]
    if name != FIRST:
        command += ["--teacher.checkpoint", str(output / f"{FIRST}-seed{seed}" / "teacher.safetensors")]
    if (folder / "config.toml").is_file():
        command = [sys.executable, "-m", "udskd.cli", "train", "--resume", str(folder)]
    output.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.log", "w", encoding="utf-8") as log:
        done = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": str(threads)}
        )
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {done.returncode}; see {log.name}")
    print(f"{folder.name}: done", flush=True)
    return folder


def run_all(recipe: str, output: Path, seeds: int, options: Sequence[str], jobs: int) -> list[Path]:
    threads = max(1, (os.cpu_count() or 1) // jobs)

    def run(job: tuple[str, int]) -> Path:
        return run_one(recipe, output, *job, options, threads)

    with ThreadPoolExecutor(jobs) as pool:
        firsts = list(pool.map(run, [(FIRST, seed) for seed in range(seeds)]))
        rest = list(pool.map(run, [(name, seed) for seed in range(seeds) for name in RUNGS if name != FIRST]))
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
    parser.add_argument("--output", type=Path, required=True)
    options, rest = parser.parse_known_args(argv)
    runs = run_all(options.recipe, options.output, options.seeds, rest, options.jobs)
    command = (
        f"python -m bench.ladder {options.recipe} --data.root DIR "
        f"--seeds {options.seeds} --jobs {options.jobs} --output DIR"
    )
    (options.output / "ladder.json").write_text(json.dumps(record(runs, command), indent=1) + "\n", encoding="utf-8")
    return report.compare(runs, options.output / "compare")


if __name__ == "__main__":
    sys.exit(main())
