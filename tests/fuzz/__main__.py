"""python -m tests.fuzz --minutes N [--kind KIND] [--seed S], and python -m tests.fuzz --replay FILE."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch

from tests.fuzz import case, commands, files, operator, raw

KINDS: dict[str, case.Kind] = {
    "operator": operator.Operator(),
    "raw": raw.Raw(),
    "files": files.Files(),
    "commands": commands.Commands(),
}
BATCH = {"operator": 8, "raw": 4, "files": 64, "commands": 2}


def hunt(name: str, first_seed: int, seconds: float, folder: Path) -> tuple[int, list[Path]]:
    """Run cases of one kind from a seed on. Returns their number, and the files of the findings."""
    kind, found, end = KINDS[name], [], time.monotonic() + seconds
    done = 0
    for begin in itertools.count(first_seed, BATCH[name]):
        if done and time.monotonic() > end:
            break
        seeds = range(begin, begin + BATCH[name])
        cases = [kind.draw(Random(f"{name} {seed}")) for seed in seeds]
        for seed, one, finding in zip(seeds, cases, kind.findings(cases), strict=True):
            if finding is not None:
                found.append(case.write(folder, name, seed, *case.shrink(kind, one, finding)))
                print(f"{name}, seed {seed}: {finding.strip().splitlines()[-1][:300]} ({found[-1]})", flush=True)
        done += len(cases)
    print(
        f"{name}: {done} cases of the seeds {first_seed} to {first_seed + done - 1}, {len(found)} findings", flush=True
    )
    return done, found


def replay(file: Path) -> int:
    """Run the case in a file again. Returns the exit code: 1 if it still has a finding."""
    name, one = case.read(file)
    (finding,) = KINDS[name].findings([one])
    print(f"{name}: {(finding or 'nothing is wrong').rstrip()}")
    return int(finding is not None)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Look for findings with random cases.")
    parser.add_argument("--minutes", type=float, default=1.0, help="for all kinds together")
    parser.add_argument("--kind", choices=KINDS, help="one kind alone")
    parser.add_argument("--seed", type=int, help="of the first case; random by default")
    parser.add_argument("--output", type=Path, default=Path("build/fuzz"), help="folder of the cases with findings")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run the case in a file again")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.replay:
        return replay(options.replay)
    kinds = [options.kind] if options.kind else list(KINDS)
    seed = Random().randrange(10**9) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    results = [hunt(name, seed, 60 * options.minutes / len(kinds), options.output) for name in kinds]
    return int(any(found for _, found in results))


if __name__ == "__main__":
    sys.exit(main())
