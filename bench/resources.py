"""Registers, stack, spills and static shared memory of every kernel on each architecture, as the compiler reports them.

    python -m bench.resources --write               compiles everything and writes bench/results/resources.{json,md}
    python -m bench.resources --check --archs 90    compiles again and compares with the written table

The check fails on more registers, stack or spills than the table has, and on a kernel that is missing on one side.
Smaller numbers pass; write the table again to record them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from bench import cuda_toolkit
from bench.arguments import comma_separated, make_parser
from bench.commands import ROOT
from bench.files import write_text
from bench.formatting import markdown_table
from udskd.files import read_text

TABLE = ROOT / "bench/results/resources.json"
# What must not grow, with the words for messages.
WATCHED = {
    "registers": "registers",
    "stack": "bytes of stack",
    "spill_stores": "bytes of spill stores",
    "spill_loads": "bytes of spill loads",
}


@dataclass(frozen=True, order=True)
class KernelResources:
    """One kernel on one architecture. A function that was not inlined is listed as a kernel without registers."""

    kernel: str
    arch: int
    registers: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    shared: int = 0

    @property
    def key(self) -> tuple[str, int]:
        return self.kernel, self.arch

    def __str__(self) -> str:
        return f"{self.kernel}, sm_{self.arch}"


def parse(text: str, arch: int) -> list[KernelResources]:
    """The kernels in the output of `ptxas -v`, by their mangled names."""
    found: dict[str, dict[str, int]] = {}
    used: dict[str, int] = {}  # by the kernel or function that was named last
    for line in text.splitlines():
        if name := re.search(r"Compiling entry function '(\S+)'|Function properties for (\S+)", line):
            used = found.setdefault(name[1] or name[2], {})
        for key, pattern in (
            ("registers", r"Used (\d+) registers"),
            ("stack", r"(\d+) bytes stack frame"),
            ("spill_stores", r"(\d+) bytes spill stores"),
            ("spill_loads", r"(\d+) bytes spill loads"),
            ("shared", r"(\d+) bytes smem"),
        ):
            if number := re.search(pattern, line):
                used[key] = int(number[1])
    return [KernelResources(name, arch, **numbers) for name, numbers in found.items()]


def merged(kernels: Iterable[KernelResources]) -> list[KernelResources]:
    """Sorted and without duplicates: of kernels of the same name in several sources, the maximum of each number."""
    out: dict[tuple[str, int], KernelResources] = {}
    for kernel in kernels:
        other = out.get(kernel.key, kernel)
        largest = {f.name: max(getattr(kernel, f.name), getattr(other, f.name)) for f in fields(KernelResources)[2:]}
        out[kernel.key] = replace(kernel, **largest)
    return sorted(out.values())


def measure(home: str, archs: Sequence[int], jobs: int) -> list[KernelResources]:
    """Compiles every source for every architecture."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:

        def compile_one(number: int, source: str, arch: int) -> list[KernelResources]:
            return parse(cuda_toolkit.compile_device(home, source, arch, Path(folder, f"{number}.cubin")), arch)

        pairs = [(source, arch) for source in cuda_toolkit.sources() for arch in archs]
        kernels = [
            kernel for found in pool.map(compile_one, range(len(pairs)), *zip(*pairs, strict=True)) for kernel in found
        ]
    names = cuda_toolkit.readable(sorted({kernel.kernel for kernel in kernels}))
    return merged(replace(kernel, kernel=names[kernel.kernel]) for kernel in kernels)


def compare(before: Sequence[KernelResources], now: Sequence[KernelResources]) -> list[str]:
    """A line for each kernel that has grown, is missing or is new."""
    old, new = {kernel.key: kernel for kernel in before}, {kernel.key: kernel for kernel in now}
    lines = []
    for key in sorted(old | new):
        if key not in new:
            lines.append(f"{old[key]}: in the table, but not compiled")
        elif key not in old:
            lines.append(f"{new[key]}: compiled, but not in the table")
        else:
            pairs = {words: (getattr(old[key], name), getattr(new[key], name)) for name, words in WATCHED.items()}
            grown = [f"{words} {before} -> {after}" for words, (before, after) in pairs.items() if after > before]
            lines += [f"{new[key]}: {', '.join(grown)}"] if grown else []
    return lines


# --- the table -------------------------------------------------------------------------------------------------------


def dumps(nvcc: str, kernels: Sequence[KernelResources]) -> str:
    """JSON with one line for each kernel and architecture, which keeps differences between versions readable."""
    lines = ",\n".join(json.dumps(asdict(kernel)) for kernel in kernels)
    return f'{{"nvcc": {json.dumps(nvcc)}, "kernels": [\n{lines}\n]}}\n'


def read(path: Path) -> tuple[str, list[KernelResources]]:
    """The release of nvcc by which the table was made, and the table."""
    content: dict[str, Any] = json.loads(read_text(path))
    return content["nvcc"], [KernelResources(**row) for row in content["kernels"]]


def markdown(nvcc: str, kernels: Sequence[KernelResources]) -> str:
    archs = sorted({kernel.arch for kernel in kernels})
    found = {kernel.key: kernel for kernel in kernels}
    rows = []
    for name in sorted({kernel.kernel for kernel in kernels}):
        shared = max(kernel.shared for kernel in kernels if kernel.kernel == name)
        rows.append([f"`{name}`", *(cell(found.get((name, arch))) for arch in archs), f"{shared:,} B"])
    title = f"Registers of a thread, by nvcc {nvcc}; largest static shared memory of a block."
    header = ["kernel", *(f"sm_{arch}" for arch in archs), "shared"]
    return f"{title}\n\n{markdown_table(header, rows)}"


def cell(kernel: KernelResources | None) -> str:
    if kernel is None:
        return ""
    stack = f", {kernel.stack} B stack" if kernel.stack else ""
    spilled = kernel.spill_stores or kernel.spill_loads
    spills = f", spills {kernel.spill_stores} / {kernel.spill_loads} B" if spilled else ""
    return f"{kernel.registers or 'not inlined'}{stack}{spills}"


def check(path: Path, nvcc: str, kernels: Sequence[KernelResources], archs: Sequence[int]) -> int:
    """Prints the differences from the table; returns the exit code."""
    made_with, table = read(path)
    if made_with != nvcc:
        print(f"The table was made by nvcc {made_with}; this is {nvcc}, whose register allocation may differ.")
        return 1
    lines = compare([kernel for kernel in table if kernel.arch in archs], kernels)
    print(*lines, sep="\n", end="\n" if lines else "")
    return 1 if lines else 0


def architecture(text: str) -> int:
    if not text.isdecimal() or int(text) not in cuda_toolkit.ARCHS:
        raise argparse.ArgumentTypeError(f"unknown architecture {text!r}; known are {cuda_toolkit.ARCHS}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("resources", __doc__)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--write", action="store_true", help="write the table, also as Markdown")
    task.add_argument("--check", action="store_true", help="compare with the table")
    parser.add_argument("--archs", type=comma_separated(architecture), default=cuda_toolkit.ARCHS)
    parser.add_argument("--table", type=Path, default=TABLE, metavar="FILE")
    parser.add_argument("--jobs", type=int, default=2, help="parallel compilations")
    options = parser.parse_args(argv)
    home = cuda_toolkit.home()
    if home is None:
        parser.error("no nvcc: set CUDA_HOME")
    nvcc = cuda_toolkit.release(home)
    try:
        kernels = measure(home, options.archs, options.jobs)
    except cuda_toolkit.ToolError as error:
        print(error, file=sys.stderr)
        return 1
    if options.check:
        return check(options.table, nvcc, kernels, options.archs)
    write_text(options.table, dumps(nvcc, kernels))
    write_text(options.table.with_suffix(".md"), markdown(nvcc, kernels))
    return 0


if __name__ == "__main__":
    sys.exit(main())
