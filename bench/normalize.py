"""Normalisation on the CPU, from a batch of uint8 images to the networks' input: the compiled library beside PyTorch.

    python -m bench.normalize [--rounds N] [--images N] [--size N] [--threads N] [--keep-memory]

glibc takes a result of more than 32 MiB from the system anew every time, and the page faults take longer than the
computation; --keep-memory measures without them, and PyTorch's THP_MEM_ALLOC_ENABLE=1 makes them few.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from unittest import mock

import torch

from bench.arguments import count, make_parser
from bench.formatting import time
from bench.timing import TimedLoop, Times, interleaved
from udskd.config.schema import DataConfig
from udskd.data import Batch, normalize, normalize_batch
from udskd.results import table

HEADER = ["", "an image", "p10-p90"]
CONFIG = DataConfig()
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def make_batch(images: int, size: int, mixed: bool) -> Batch:
    generator, rows = torch.Generator().manual_seed(0), images + mixed
    pixels = torch.randint(0, 256, (rows, size, size, 3), dtype=torch.uint8, generator=generator)
    flips, mix = torch.arange(rows) % 2 == 1, torch.rand(images, generator=generator)
    labels, indices = torch.arange(rows) % 10, torch.arange(images)
    return Batch(pixels.permute(0, 3, 1, 2), labels, indices, flips, mix if mixed else None)


def loop_of(call: Callable[[], object], library: bool) -> TimedLoop:
    def loop(times: int) -> None:
        with ExitStack() as stack:
            if not library:
                stack.enter_context(mock.patch.object(normalize, "_has_kernel", return_value=False))
            for _ in range(times):
                call()

    return loop


def loops_of(batch: Batch) -> dict[str, TimedLoop]:
    loops: dict[str, TimedLoop] = {}
    for name, memory_format in FORMATS.items():
        call = partial(normalize_batch, batch, CONFIG, "cpu", 10, memory_format)
        loops |= {f"PyTorch, {name}": loop_of(call, False), f"udskd, {name}": loop_of(call, True)}
    return loops


def line(name: str, times: Times, images: int) -> list[str]:
    median, p10, p90 = (time(x / images) for x in (times.median, times.p10, times.p90))
    return [name, median, f"{p10} - {p90}"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("normalize", __doc__)
    parser.add_argument("--rounds", type=count, default=20, help="samples of each candidate")
    parser.add_argument("--images", type=count, default=64, help="images in a batch")
    parser.add_argument("--size", type=count, default=224)
    parser.add_argument("--threads", type=count, default=1, help="PyTorch's threads")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    sections = []
    for mixed in (False, True):
        times = interleaved(loops_of(make_batch(options.images, options.size, mixed)), options.rounds, "cpu")
        title = f"{options.images} images of {options.size} pixels, half of them mirrored{', mixed' * mixed}"
        sections.append(table.Section(title, HEADER, [line(name, t, options.images) for name, t in times.items()]))
    table.show(sections)
    return 0


if __name__ == "__main__":
    sys.exit(main())
