"""From a batch of views to what the networks take, on the CPU: the compiled library beside PyTorch's operators.

    python -m bench.normalize [--rounds N] [--images N] [--size N] [--threads N] [--keep-memory]

A result of more than 32 MiB is new memory for glibc every time, and the system's page faults cost more than the work
does; --keep-memory measures without them, and PyTorch's THP_MEM_ALLOC_ENABLE=1 makes them few.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from unittest import mock

import torch

from bench import machine, table
from bench.loss import count
from bench.timing import Times, Work, interleaved
from udskd.config.schema import DataConfig
from udskd.data import Batch, normalize, normalize_batch
from udskd.results import table as report

HEADER = ["", "an image", "p10-p90"]
CONFIG = DataConfig()
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def batch_of(images: int, size: int, mixed: bool) -> Batch:
    generator, rows = torch.Generator().manual_seed(0), images + mixed
    pixels = torch.randint(0, 256, (rows, size, size, 3), dtype=torch.uint8, generator=generator)
    flips, mix = torch.arange(rows) % 2 == 1, torch.rand(images, generator=generator)
    labels, indices = torch.arange(rows) % 10, torch.arange(images)
    return Batch(pixels.permute(0, 3, 1, 2), labels, indices, flips, mix if mixed else None)


def work_of(call: Callable[[], object], library: bool) -> Work:
    def work(times: int) -> None:
        with ExitStack() as stack:
            if not library:
                stack.enter_context(mock.patch.object(normalize, "_has_kernel", return_value=False))
            for _ in range(times):
                call()

    return work


def works_of(batch: Batch) -> dict[str, Work]:
    works = {}
    for name, memory_format in FORMATS.items():

        def call(memory_format: torch.memory_format = memory_format) -> object:
            return normalize_batch(batch, CONFIG, "cpu", 10, memory_format)

        works |= {f"PyTorch, {name}": work_of(call, False), f"udskd, {name}": work_of(call, True)}
    return works


def line(name: str, times: Times, images: int) -> list[str]:
    median, p10, p90 = (table.time(x / images) for x in (times.median, times.p10, times.p90))
    return [name, median, f"{p10} - {p90}"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.normalize", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=count, default=20, help="samples of each")
    parser.add_argument("--images", type=count, default=64, help="in a batch")
    parser.add_argument("--size", type=count, default=224)
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--keep-memory", action="store_true", help="no page faults")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.keep_memory and not machine.keep_memory():
        parser.error("--keep-memory needs glibc")
    sections = []
    for mixed in (False, True):
        times = interleaved(works_of(batch_of(options.images, options.size, mixed)), options.rounds, "cpu")
        title = f"{options.images} images of {options.size} pixels, half of them mirrored{', mixed' * mixed}"
        sections.append(report.Section(title, HEADER, [line(name, t, options.images) for name, t in times.items()]))
    report.show(sections)
    return 0


if __name__ == "__main__":
    sys.exit(main())
