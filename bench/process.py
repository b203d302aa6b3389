"""What the settings of a process (udskd/process/settings.py) change: how OpenMP's threads wait, and what malloc keeps.

    python -m bench.process [--busy N] [--markdown FILE]

Every measurement is a process of its own, because both settings are made once in a process. All settings take turns.
With --busy, N other processes compute all the time.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from bench import images, providers
from bench.arguments import count, make_parser
from bench.files import write_text
from bench.records import digits
from bench.workload import LOSS_OPTIONS, Case, make_workload
from udskd.config import toml
from udskd.config.schema import Config, DataConfig, with_values
from udskd.data import EmbeddedSet, TrainLoader, normalize_batch, open_sets
from udskd.demo.demo import RECIPE
from udskd.doctor.step_benchmark import StepBenchmark
from udskd.process.settings import VARIABLE
from udskd.results import table

SETTINGS: dict[str, dict[str, str]] = {
    "none": {VARIABLE: "0"},
    "udskd": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},  # threads sleep at once; malloc as in udskd
    "one thread": {"OMP_NUM_THREADS": "1"},
}
OWN = ("GOMP_SPINCOUNT", *(name for values in SETTINGS.values() for name in values))
SECONDS = 5.0  # approximate length of a measurement
PHOTOS = 64

Work = Callable[[], int]
"""Does a part of the work, and returns the number of its images or rows."""


# --- what is measured -------------------------------------------------------------------------------------------------


def small_training() -> Work:
    """The demo's networks at 32 px."""
    return StepBenchmark(toml.load(RECIPE), EmbeddedSet("train")).train_epoch


def training(root: Path, size: int) -> Work:
    """ResNet-18 and MobileNetV2 from ResNet-50."""
    values = {"data.root": str(root), "data.image_size": size, "data.workers": 0, "training.batch_size": 32}
    config = with_values(Config(), values)
    return StepBenchmark(config, open_sets(config.data)[0]).train_epoch


def loading(root: Path) -> Work:
    """Views at 160 px from JPEG files by two threads, normalised."""
    config = DataConfig(root=str(root), image_size=160, workers=2, loader="threads")
    loader = TrainLoader(open_sets(config)[0], config, seed=0, batch_size=32)
    epochs = iter(range(10**9))

    def work() -> int:
        batches = list(loader.epoch(next(epochs)))
        return sum(len(normalize_batch(batch, config, "cpu", 2)[0]) for batch in batches)

    return work


def loss(name: str) -> Work:
    """Forward and backward at 1024 x 1000."""
    (provider,), _ = providers.available([name], "cpu", LOSS_OPTIONS | {"temperature": 4.0})
    workload = make_workload(Case(1024, 1000, "float32", "forward+backward"), "cpu")
    call = provider.prepare(workload, True)

    def work() -> int:
        call()
        return 1024

    return work


WORKS: dict[str, Callable[[Path], Work]] = {
    "training, tiny networks, 32 px": lambda root: small_training(),
    "training, 64 px": partial(training, size=64),
    "training, 160 px": partial(training, size=160),
    "loader, 160 px": loading,
    "loss, udskd": lambda root: loss("udskd"),
    "loss, eager": lambda root: loss("eager"),
}


def measure(work: Work) -> dict[str, float]:
    """Images or rows per second of wall time and of CPU time, and page faults for each, after one call to warm up."""
    work()
    before, begin, done = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), 0
    while (seconds := time.perf_counter() - begin) < SECONDS:
        done += work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"rate": done / seconds, "per_cpu": done / cpu, "faults": (after.ru_minflt - before.ru_minflt) / done}


# --- processes --------------------------------------------------------------------------------------------------------


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def in_process(work: str, root: Path, setting: str) -> dict[str, float]:
    """The measurement in a process with the setting, whatever the environment of this one has."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN} | SETTINGS[setting]
    command = [sys.executable, "-m", "bench.process", "--measure", work, "--root", str(root)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def medians(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in found) for key in found[0]}


def run(works: Sequence[str], busy: int, rounds: int) -> dict[tuple[str, str], dict[str, float]]:
    found: dict[tuple[str, str], list[dict[str, float]]] = {(work, name): [] for work in works for name in SETTINGS}
    with images.tree(None, PHOTOS, 1) as root, busy_processes(busy):
        for number in range(rounds):
            for work, setting in found:
                found[work, setting].append(in_process(work, root, setting))
            print(f"round {number + 1} of {rounds}", flush=True)
    return {key: medians(rows) for key, rows in found.items()}


def section(found: Mapping[tuple[str, str], Mapping[str, float]], busy: int) -> table.Section:
    title = f"{torch.get_num_threads()} threads, beside {busy} busy processes: images or rows a second"
    lines = [
        [work, setting, *(str(digits(row[key])) for key in ("rate", "per_cpu", "faults"))]
        for (work, setting), row in found.items()
    ]
    return table.Section(title, ["work", "settings", "a second", "a CPU second", "page faults each"], lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("process", __doc__)
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="processes that compute beside")
    parser.add_argument("--rounds", type=count, default=3, help="measurements of each setting")
    parser.add_argument("--work", action="append", choices=WORKS, help="default: all", dest="works")
    parser.add_argument("--measure", choices=WORKS, help="one measurement, in this process, as JSON")
    parser.add_argument("--root", type=Path, metavar="DIR", help="the images of --measure")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    if options.measure:
        print(json.dumps(measure(WORKS[options.measure](options.root))))
        return 0
    sections = [section(run(options.works or list(WORKS), options.busy, options.rounds), options.busy)]
    table.show(sections)
    if options.markdown:
        write_text(options.markdown, table.markdown(sections) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
