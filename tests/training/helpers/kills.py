"""Runs that are killed, stopped by a signal or given a full disk at random calls, and continued until they end.

    python -m tests.training.helpers.kills --kind kill --times 200 --seed 1

Each run must end as an undisturbed run of the same options: the same files, weights, numbers and log, bit for bit. This
process imports everything once and forks; a child executes `udskd train`.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.training.conftest import tiny_config, write_tree
from tests.training.helpers.traps import Child, Trap
from udskd.config import schema, toml
from udskd.data.manifest import from_bytes
from udskd.files import PREDICTIONS
from udskd.models.checkpoints import load_weights
from udskd.training.storage.checkpoint import load_state
from udskd.training.storage.run_folder import MANIFEST

KINDS = ("kill", "stop", "full")
TIMING = {"time", "seconds", "images_per_second"}
COMMON = {  # with dropout, batch-norm, EMA, mixup and an unreadable image
    "student_b.model": "squeezenet1_1",
    "data.mixup": 0.2,
    "data.max_unreadable": 0.1,
    "teacher.epochs": 2,
    "training.epochs": 2,
}
EVERY_STEP = 1e-9  # minutes between saves
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"training.save_every": EVERY_STEP},
    "threads": {
        **{"training.save_every": EVERY_STEP, "data.loader": "threads", "data.workers": 2},
        **{"training.accumulate": 2, "training.clip_grad_norm": 1.0},
    },
    "processes": {"training.save_every": 0.0, "data.loader": "processes", "data.workers": 1},
}


@dataclass
class UndisturbedRun:
    """The result of an undisturbed run."""

    name: str
    recipe: str
    end: dict[str, Any]
    calls: int
    seconds: float


class Violation(Exception):
    """A run did not behave as documented."""


def run_undisturbed(name: str, here: Path, tree: Path, kind: str) -> UndisturbedRun:
    """Run a variant undisturbed in a new folder. Raises Violation."""
    config = schema.with_values(tiny_config(tree, Path("run")), {**COMMON, **VARIANTS[name]})
    here.mkdir()
    (here / "recipe.toml").write_text(toml.dump(config))
    begin = time.monotonic()
    child = Child.start("train recipe.toml", here, Trap(action=kind))
    if code := child.end():
        raise Violation(f"the undisturbed run ended with {code}: {child.errors()}")
    seconds = time.monotonic() - begin
    return UndisturbedRun(name, toml.dump(config), outcome(here / "run"), int((here / "count").read_text()), seconds)


@dataclass
class DisturbedRun:
    """A run that is disturbed several times."""

    undisturbed: UndisturbedRun
    folder: Path
    kind: str
    rng: random.Random
    happened: list[str] = field(default_factory=list)

    def run(self, most: int) -> None:
        """Disturb the run up to `most` times, then let it end. Raises Violation."""
        self.folder.mkdir()
        (self.folder / "recipe.toml").write_text(self.undisturbed.recipe)
        for _ in range(most):
            if not self._disturb():
                break
        child = Child.start(self._command(), self.folder, Trap())
        if code := child.end():
            raise Violation(f"continuing ended with {code}: {child.errors()}")
        different = compare(self.undisturbed.end, outcome(self.folder / "run"))
        if self.kind == "stop":  # a stop saves one state more
            different = [name for name in different if ".previous.pt" not in name]
        if different:
            raise Violation("it differs from the undisturbed run in " + ", ".join(different[:5]))

    def _command(self) -> str:
        """A command with which a user starts or continues the run."""
        begun = (self.folder / "run" / "config.toml").exists()
        return self.rng.choice(
            ["train --resume run" if begun else "train recipe.toml", "train recipe.toml --resume auto"]
        )

    def _disturb(self) -> bool:
        """Run until the disturbance. Returns False if the run ended before it."""
        command, timed = self._command(), self.kind != "full" and self.rng.random() < 0.4
        trap = self._trap(timed)
        (self.folder / "note").unlink(missing_ok=True)
        child = Child.start(command, self.folder, trap)
        if timed:
            self._wait_and_signal(child, trap.signal)
        code, note = child.end(), self.folder / "note"
        if not timed and not note.exists():  # the run ended before the trap was due
            return self._expect(code == 0, child, code)
        complete = (self.folder / "run" / "summary.json").exists()
        if complete and code == 0:
            return False
        what = "at a random time" if timed else note.read_text()
        self.happened.append(f"{command}: {signal.Signals(trap.signal).name if self.kind != 'full' else ''} {what}")
        self._expect(self._is_as_documented(code, child), child, code)
        return True

    def _trap(self, timed: bool) -> Trap:
        rng = self.rng
        number = signal.SIGKILL if self.kind == "kill" else rng.choice([signal.SIGINT, signal.SIGTERM])
        last = 12 if rng.random() < 0.2 else self.undisturbed.calls
        due = 0 if timed else rng.randint(1, last)
        error = rng.choice([errno.ENOSPC, errno.EROFS])
        where = rng.choice(["before", "half", "after"] if self.kind == "kill" else ["before", "after"])
        return Trap(self.kind, due, where, number, error)

    def _wait_and_signal(self, child: Child, number: int) -> None:
        if self.kind == "stop":
            os.read(child.ready, 1)
        time.sleep(self.rng.random() * self.undisturbed.seconds)
        with suppress(ProcessLookupError):
            os.kill(child.pid, number)

    def _is_as_documented(self, code: int, child: Child) -> bool:
        lines, begun = child.errors(), (self.folder / "run" / "config.toml").exists()
        if self.kind == "kill":
            return code == -signal.SIGKILL
        if self.kind == "stop":
            last = lines[-1] if lines else ""
            return (
                code == 130 and len(lines) <= 2 and last.startswith("udskd: stopped") and begun == ("--resume" in last)
            )
        return (
            code == 2
            and len(lines) == 1
            and lines[0].startswith("udskd: error: cannot ")
            and (begun == ("udskd train --resume run" in lines[0]))
        )

    def _expect(self, kept: bool, child: Child, code: int) -> bool:
        if not kept:
            raise Violation(f"exit code {code}, stderr: {child.errors()}")
        return False


def outcome(run: Path) -> dict[str, Any]:
    """The contents of all files of a run, except times, and the record of restarts."""
    found: dict[str, Any] = {}
    for file in sorted(f for f in run.rglob("*") if f.is_file()):
        name = str(file.relative_to(run))
        if name in ("restarts.jsonl", "environment.json"):
            continue
        if file.suffix == ".safetensors" and name != PREDICTIONS:
            found |= flat(name, list(load_weights(file)))
        elif name == MANIFEST:
            listed = from_bytes(file.read_bytes())
            found |= flat(name, {split: {"names": one.names, "digests": one.digests} for split, one in listed.items()})
        elif file.suffix == ".pt":
            found |= flat(name, load_state(file))
        elif file.suffix in (".json", ".jsonl"):
            text = file.read_text()
            found |= flat(name, [json.loads(t) for t in (text.splitlines() if file.suffix == ".jsonl" else [text])])
        else:
            found[name] = file.read_bytes()
    return found


def flat(name: str, value: Any) -> dict[str, Any]:
    """Nested values by path; tensors as bytes."""
    if isinstance(value, dict):
        return {
            k: v for key, part in value.items() if key not in TIMING for k, v in flat(f"{name}/{key}", part).items()
        }
    if isinstance(value, (list, tuple)):
        return {k: v for i, part in enumerate(value) for k, v in flat(f"{name}/{i}", part).items()}
    if isinstance(value, torch.Tensor):
        return {name: (str(value.dtype), value.shape, value.contiguous().numpy().tobytes())}
    return {name: repr(value)}


def compare(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of the values that differ."""
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Disturb runs at random calls, continue them, compare their ends.")
    parser.add_argument("--kind", choices=KINDS, default="kill")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng, done, runs = random.Random(options.seed), 0, 0
    undisturbed: dict[str, UndisturbedRun] = {}
    with tempfile.TemporaryDirectory(prefix="udskd-kills-") as folder:
        place, tree = Path(folder), write_tree(Path(folder) / "tree")
        (tree / "train" / "green" / "7.png").write_bytes(b"not an image")
        while done < options.times:
            runs += 1
            name = list(VARIANTS)[runs % len(VARIANTS)]
            if name not in undisturbed:
                undisturbed[name] = run_undisturbed(name, place / name, tree, options.kind)
            run = DisturbedRun(undisturbed[name], place / f"run{runs}", options.kind, rng)
            try:
                run.run(min(rng.randint(1, 4), options.times - done))
            except Violation as violation:
                print("\n".join([*run.happened, f"{run.undisturbed.name}: {violation}"]))
                return 1
            for line in run.happened:
                done += 1
                print(f"{done:4}  {run.undisturbed.name}, {line}", flush=True)
    print(f"{done} times in {runs} runs: every run ended as the undisturbed one")
    return 0


if __name__ == "__main__":
    sys.exit(main())
