"""Machine instructions of every kernel: how many a class costs, and whether loads and stores have full width.

    python -m bench.sass [--arch 90] [--write]      to bench/results/sass.md, or only to the screen

The counts are static (each instruction once, however often it runs) and exclude functions that are called. In kernels
whose loop over the classes is fully unrolled, a thread holds a fixed number of classes (POSITIONS), by which the counts
are divided; the quotient includes the constant cost of a row. For other kernels the table lists the lengths of the
innermost loops that compute exponentials or move full vectors.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from bench import cuda_toolkit
from bench.arguments import make_parser
from bench.commands import ROOT
from bench.files import write_text
from bench.formatting import markdown_table

FILE = ROOT / "bench/results/sass.md"
# Classes that a thread holds in registers, by a pattern of the kernel's short name: one packet has 4 classes of float
# or 8 of the other dtypes.
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
class KernelListing:
    """The instructions of one kernel in order, without the padding at its end."""

    name: str
    addresses: list[int] = field(default_factory=list)
    opcodes: list[str] = field(default_factory=list)
    targets: list[int | None] = field(default_factory=list)  # the targets of branches and calls

    @property
    def size(self) -> int:
        """The number of its own instructions; those of functions that were not inlined follow them."""
        called = [target for opcode, target in zip(self.opcodes, self.targets, strict=True) if opcode[:4] == "CALL"]
        begin = min((target for target in called if target is not None), default=None)
        return len(self.opcodes) if begin is None else sum(1 for address in self.addresses if address < begin)

    def count(self, title: str, begin: int = 0, end: int | None = None) -> int:
        """The number of instructions in a column, among all its own or those with indices from begin to end - 1."""
        end = self.size if end is None else end
        return sum(1 for opcode in self.opcodes[begin:end] if re.fullmatch(COUNTED[title], opcode))

    def loops(self) -> list[tuple[int, int]]:
        """The innermost loops, as the indices of their first instruction and of the one after their last.

        A loop is the range of a backward branch; it is innermost if it contains no other such range.
        """
        indices = {address: index for index, address in enumerate(self.addresses)}
        jumps = [(indices.get(target, -1), k + 1) for k, target in enumerate(self.targets[: self.size]) if target]
        found = sorted({(begin, end) for begin, end in jumps if 0 <= begin < end})
        return [
            (begin, end)
            for begin, end in found
            if not any((a, b) != (begin, end) and begin <= a and b <= end for a, b in found)
        ]


def parse(text: str) -> list[KernelListing]:
    """The kernels of a listing of `cuobjdump -sass`, by their mangled names."""
    kernels: list[KernelListing] = []
    for line in text.splitlines():
        if name := re.match(r"\s*Function : (\S+)", line):
            kernels.append(KernelListing(name[1]))
        elif kernels and (code := re.match(r"\s*/\*([0-9a-f]+)\*/\s+(?:@!?U?P[T\d]+ )?\s*([A-Z][\w.]*)([^;]*);", line)):
            address, opcode, operands = int(code[1], 16), code[2], code[3]
            target = (
                re.search(r"\b0x([0-9a-f]+)\s*$", operands) if opcode[:3] == "BRA" or opcode[:4] == "CALL" else None
            )
            jump = int(target[1], 16) if target else None
            if opcode == "NOP" or jump == address:  # both are padding after the last instruction
                continue
            kernels[-1].addresses.append(address)
            kernels[-1].opcodes.append(opcode)
            kernels[-1].targets.append(jump)
    return kernels


def positions(name: str, table: dict[str, int]) -> int | None:
    """The number of classes that a thread of the kernel holds, if the table has it."""
    return next((count for pattern, count in table.items() if fnmatchcase(name, pattern)), None)


def line(kernel: KernelListing, table: dict[str, int]) -> list[str]:
    """The cells of one kernel; zeros are left empty."""
    held = positions(kernel.name, table)
    each = f"{kernel.size / held:.1f}, {kernel.count('EX2') / held:.2g} EX2" if held else ""
    counts = [str(kernel.count(title) or "") for title in COUNTED]
    called = str(len(kernel.opcodes) - kernel.size or "")
    return [f"`{kernel.name}`", str(kernel.size), *counts, ", ".join(over_classes(kernel)), called, each]


def over_classes(kernel: KernelListing) -> list[str]:
    """Length and number of EX2 of the innermost loops over classes; loops of reductions have none of the opcodes."""
    out = []
    for begin, end in kernel.loops():
        exponentials = kernel.count("EX2", begin, end)
        if exponentials or kernel.count("LDG.128", begin, end) or kernel.count("STG.128", begin, end):
            out.append(f"{end - begin} ({exponentials} EX2)")
    return out


def markdown(kernels: Sequence[KernelListing], arch: int, nvcc: str, table: dict[str, int]) -> str:
    title = f"Static counts of instructions for sm_{arch}, by nvcc {nvcc} (`python -m bench.sass`)."
    return f"{title}\n\n{markdown_table(HEADER, [line(kernel, table) for kernel in kernels])}"


def measure(home: str, arch: int, jobs: int) -> list[KernelListing]:
    """Compiles every source and disassembles it; sorted by name."""
    cuobjdump = cuda_toolkit.program("cuobjdump", home)
    if cuobjdump is None:
        raise cuda_toolkit.ToolError("no cuobjdump: not on PATH, in the toolkit, among pip's packages or Triton's")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:

        def compile_one(number: int, source: str) -> list[KernelListing]:
            cubin = Path(folder, f"{number}.cubin")
            cuda_toolkit.compile_device(home, source, arch, cubin)
            return parse(cuda_toolkit.output([cuobjdump, "-sass", str(cubin)]))

        sources = cuda_toolkit.sources()
        found = pool.map(compile_one, range(len(sources)), sources)
        kernels = [kernel for part in found for kernel in part]
    names = cuda_toolkit.readable([kernel.name for kernel in kernels])
    for kernel in kernels:
        kernel.name = names[kernel.name]
    return sorted(kernels, key=lambda kernel: kernel.name)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("sass", __doc__)
    parser.add_argument("--arch", type=int, choices=cuda_toolkit.ARCHS, default=90)
    parser.add_argument("--write", action="store_true", help="also write the table to a file")
    parser.add_argument("--output", type=Path, default=FILE, metavar="FILE")
    parser.add_argument("--jobs", type=int, default=2, help="parallel compilations")
    options = parser.parse_args(argv)
    home = cuda_toolkit.home()
    if home is None:
        parser.error("no nvcc: set CUDA_HOME")
    try:
        kernels = measure(home, options.arch, options.jobs)
    except cuda_toolkit.ToolError as error:
        print(error, file=sys.stderr)
        return 1
    text = markdown(kernels, options.arch, cuda_toolkit.release(home), POSITIONS)
    print(text, end="")
    if options.write:
        write_text(options.output, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
