"""Machine instructions of every kernel, counted: what a class position costs, and whether loads are as wide as meant.

    python -m bench.sass [--arch 90] [--write]      to bench/results/sass.md, or only to the screen

Instructions are counted where they stand, not as often as they run, and without those of functions that are called. For
a kernel whose loop over the classes is unrolled whole, POSITIONS says how many classes a thread holds, and the counts
are divided by it; that contains what a row costs however long it is. Of other kernels the innermost loops say more:
listed are the lengths of those that take exponentials or move whole vectors.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from bench import toolkit

FILE = toolkit.ROOT / "bench/results/sass.md"
# Classes that a thread holds in registers, by the pattern of the kernel's short name: packets of 16 bytes of float, and
# of as many bytes as eight classes of the others take.
POSITIONS = {
    f"rows<{dtype}, *, InRegisters<{packets}>, *>": packets * classes
    for dtype, classes in (("float", 4), ("bfloat16", 8), ("half", 8))
    for packets in (1, 2, 3, 4, 8)
}
COUNTED = {  # a column's title and the opcodes that it counts
    "EX2": r"MUFU\.EX2\b.*",
    "LDG.128": r"LDG\b.*\.128\b.*",
    "STG.128": r"STG\b.*\.128\b.*",
    "LDG": r"LDG\b.*",
    "STG": r"STG\b.*",
    "LDL/STL": r"(LDL|STL)\b.*",
    "SHFL": r"SHFL\b.*",
    "BAR": r"BAR\b.*",
}
HEADER = ["kernel", "instructions", *COUNTED, "loops over classes", "called functions", "per position"]


@dataclass
class Kernel:
    """The instructions of one kernel in their order, without the padding at its end."""

    name: str
    addresses: list[int] = field(default_factory=list)
    opcodes: list[str] = field(default_factory=list)
    targets: list[int | None] = field(default_factory=list)  # of branches and calls

    @property
    def size(self) -> int:
        """Its own instructions: functions that were not inlined follow them."""
        called = [target for opcode, target in zip(self.opcodes, self.targets, strict=True) if opcode[:4] == "CALL"]
        begin = min((target for target in called if target is not None), default=None)
        return len(self.opcodes) if begin is None else sum(1 for address in self.addresses if address < begin)

    def count(self, title: str, begin: int = 0, end: int | None = None) -> int:
        """Instructions of a column, of all its own or from one index up to before another."""
        end = self.size if end is None else end
        return sum(1 for opcode in self.opcodes[begin:end] if re.fullmatch(COUNTED[title], opcode))

    def loops(self) -> list[tuple[int, int]]:
        """Innermost loops, as the indices of their first instruction and of the one after their last: what a branch
        backwards jumps over, unless that contains another such branch."""
        places = {address: index for index, address in enumerate(self.addresses)}
        jumps = [(places.get(target, -1), k + 1) for k, target in enumerate(self.targets[: self.size]) if target]
        found = sorted({(begin, end) for begin, end in jumps if 0 <= begin < end})
        return [
            (begin, end)
            for begin, end in found
            if not any((a, b) != (begin, end) and begin <= a and b <= end for a, b in found)
        ]


def parse(text: str) -> list[Kernel]:
    """The kernels of a listing of `cuobjdump -sass`, by their mangled names."""
    kernels: list[Kernel] = []
    for line in text.splitlines():
        if name := re.match(r"\s*Function : (\S+)", line):
            kernels.append(Kernel(name[1]))
        elif kernels and (code := re.match(r"\s*/\*([0-9a-f]+)\*/\s+(?:@!?U?P[T\d]+ )?\s*([A-Z][\w.]*)([^;]*);", line)):
            address, opcode, operands = int(code[1], 16), code[2], code[3]
            target = (
                re.search(r"\b0x([0-9a-f]+)\s*$", operands) if opcode[:3] == "BRA" or opcode[:4] == "CALL" else None
            )
            jump = int(target[1], 16) if target else None
            if opcode == "NOP" or jump == address:  # both only fill up what follows the last instruction
                continue
            kernels[-1].addresses.append(address)
            kernels[-1].opcodes.append(opcode)
            kernels[-1].targets.append(jump)
    return kernels


def positions(name: str, table: dict[str, int]) -> int | None:
    """Classes that a thread of the kernel holds, where the table knows."""
    return next((count for pattern, count in table.items() if fnmatchcase(name, pattern)), None)


def line(kernel: Kernel, table: dict[str, int]) -> list[str]:
    """A kernel's row; zeros are left out, to be seen less than what is there."""
    held = positions(kernel.name, table)
    each = f"{kernel.size / held:.1f}, {kernel.count('EX2') / held:.2g} EX2" if held else ""
    counts = [str(kernel.count(title) or "") for title in COUNTED]
    called = str(len(kernel.opcodes) - kernel.size or "")
    return [f"`{kernel.name}`", str(kernel.size), *counts, ", ".join(over_classes(kernel)), called, each]


def over_classes(kernel: Kernel) -> list[str]:
    """The innermost loops that do a class's work, not a reduction's: how long they are, and with how many EX2."""
    out = []
    for begin, end in kernel.loops():
        exponentials = kernel.count("EX2", begin, end)
        if exponentials or kernel.count("LDG.128", begin, end) or kernel.count("STG.128", begin, end):
            out.append(f"{end - begin} ({exponentials} EX2)")
    return out


def markdown(kernels: Sequence[Kernel], arch: int, nvcc: str, table: dict[str, int]) -> str:
    rows = [HEADER, ["---", *("--:" for _ in HEADER[1:])], *(line(kernel, table) for kernel in kernels)]
    head = f"Instructions for sm_{arch}, by nvcc {nvcc}, counted where they stand (`python -m bench.sass`).\n\n"
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def measure(home: str, arch: int, jobs: int) -> list[Kernel]:
    """Compiles every source and disassembles it; sorted by name."""
    cuobjdump = toolkit.program("cuobjdump", home)
    if cuobjdump is None:
        raise toolkit.ToolError("no cuobjdump: not on PATH, in the toolkit, among pip's packages or Triton's")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:

        def one(job: tuple[int, str]) -> list[Kernel]:
            cubin = Path(folder, f"{job[0]}.cubin")
            toolkit.compile_device(home, job[1], arch, cubin)
            return parse(toolkit.output([cuobjdump, "-sass", str(cubin)]))

        kernels = [kernel for part in pool.map(one, enumerate(toolkit.sources())) for kernel in part]
    names = toolkit.readable([kernel.name for kernel in kernels])
    for kernel in kernels:
        kernel.name = names[kernel.name]
    return sorted(kernels, key=lambda kernel: kernel.name)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sass", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", type=int, choices=toolkit.ARCHS, default=90)
    parser.add_argument("--write", action="store_true", help="writes the table to a file, too")
    parser.add_argument("--output", type=Path, default=FILE, metavar="FILE")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    options = parser.parse_args(argv)
    home = toolkit.home()
    if home is None:
        parser.error("no nvcc: set CUDA_HOME")
    try:
        kernels = measure(home, options.arch, options.jobs)
    except toolkit.ToolError as error:
        print(error, file=sys.stderr)
        return 1
    text = markdown(kernels, options.arch, toolkit.release(home), POSITIONS)
    print(text, end="")
    if options.write:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
