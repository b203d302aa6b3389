"""What the compiler says of every kernel: registers, stack, spills and static shared memory, for each architecture.

    python -m bench.resources --write               compiles everything and writes bench/results/resources.{json,md}
    python -m bench.resources --check --archs 90    compiles again and compares with what was written

A check fails on a new spill, more registers or more stack, and on a kernel that only one of the two knows. What is
better than written passes; write it down.
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

from bench import toolkit

TABLE = toolkit.ROOT / "bench/results/resources.json"
# More of any of these is worse, and how a line says it.
WATCHED = {
    "registers": "registers",
    "stack": "bytes of stack",
    "spill_stores": "bytes of spill stores",
    "spill_loads": "bytes of spill loads",
}


@dataclass(frozen=True, order=True)
class Kernel:
    """One kernel on one architecture. A function that was not inlined counts as a kernel without registers."""

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


def parse(text: str, arch: int) -> list[Kernel]:
    """The kernels in the output of `ptxas -v`, by their mangled names."""
    found: dict[str, dict[str, int]] = {}
    used: dict[str, int] = {}  # of the last kernel or function that was named
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
    return [Kernel(name, arch, **numbers) for name, numbers in found.items()]


def merged(kernels: Iterable[Kernel]) -> list[Kernel]:
    """Sorted, each once: two sources may hold a kernel of the same name; the larger numbers stand for both."""
    out: dict[tuple[str, int], Kernel] = {}
    for kernel in kernels:
        other = out.get(kernel.key, kernel)
        most = {f.name: max(getattr(kernel, f.name), getattr(other, f.name)) for f in fields(Kernel)[2:]}
        out[kernel.key] = replace(kernel, **most)
    return sorted(out.values())


def measure(home: str, archs: Sequence[int], jobs: int) -> list[Kernel]:
    """Compiles every source for every architecture."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:

        def one(job: tuple[int, str, int]) -> list[Kernel]:
            number, source, arch = job
            return parse(toolkit.compile_device(home, source, arch, Path(folder, f"{number}.cubin")), arch)

        pairs = [(source, arch) for source in toolkit.sources() for arch in archs]
        kernels = [kernel for part in pool.map(one, [(k, *pair) for k, pair in enumerate(pairs)]) for kernel in part]
    names = toolkit.readable(sorted({kernel.kernel for kernel in kernels}))
    return merged(replace(kernel, kernel=names[kernel.kernel]) for kernel in kernels)


def compare(before: Sequence[Kernel], now: Sequence[Kernel]) -> list[str]:
    """A line for each kernel that is worse than it was, that is gone, or that is new."""
    old, new = {kernel.key: kernel for kernel in before}, {kernel.key: kernel for kernel in now}
    lines = []
    for key in sorted(old | new):
        if key not in new:
            lines.append(f"{old[key]}: missing, but in the table")
        elif key not in old:
            lines.append(f"{new[key]}: unknown, not in the table")
        else:
            pairs = {words: (getattr(old[key], name), getattr(new[key], name)) for name, words in WATCHED.items()}
            grown = [f"{words} {was} -> {become}" for words, (was, become) in pairs.items() if become > was]
            lines += [f"{new[key]}: {', '.join(grown)}"] if grown else []
    return lines


# --- the table -------------------------------------------------------------------------------------------------------


def dumps(nvcc: str, kernels: Sequence[Kernel]) -> str:
    """JSON with a line for each kernel and architecture, so that a change shows what it changed."""
    lines = ",\n".join(json.dumps(asdict(kernel)) for kernel in kernels)
    return f'{{"nvcc": {json.dumps(nvcc)}, "kernels": [\n{lines}\n]}}\n'


def read(path: Path) -> tuple[str, list[Kernel]]:
    """The release of nvcc that the table was made with, and the table."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content["nvcc"], [Kernel(**row) for row in content["kernels"]]


def markdown(nvcc: str, kernels: Sequence[Kernel]) -> str:
    archs = sorted({kernel.arch for kernel in kernels})
    found = {kernel.key: kernel for kernel in kernels}
    lines = [f"Registers a thread, by nvcc {nvcc}; static shared memory of a block at its largest.", ""]
    lines += ["| kernel | " + " | ".join(f"sm_{arch}" for arch in archs) + " | shared |"]
    lines += ["|---|" + "--:|" * (len(archs) + 1)]
    for name in sorted({kernel.kernel for kernel in kernels}):
        shared = max(kernel.shared for kernel in kernels if kernel.kernel == name)
        cells = [cell(found.get((name, arch))) for arch in archs]
        lines.append(f"| `{name}` | " + " | ".join(cells) + f" | {shared:,} B |")
    return "\n".join(lines) + "\n"


def cell(kernel: Kernel | None) -> str:
    if kernel is None:
        return ""
    stack = f", {kernel.stack} B stack" if kernel.stack else ""
    spilled = kernel.spill_stores or kernel.spill_loads
    spills = f", spills {kernel.spill_stores} / {kernel.spill_loads} B" if spilled else ""
    return f"{kernel.registers or 'not inlined'}{stack}{spills}"


def check(path: Path, nvcc: str, kernels: Sequence[Kernel], archs: Sequence[int]) -> int:
    """Compares with the table and says what is wrong; the exit code."""
    made_with, table = read(path)
    if made_with != nvcc:
        print(f"The table was made with nvcc {made_with}; this is {nvcc}, which may use other registers.")
        return 1
    lines = compare([kernel for kernel in table if kernel.arch in archs], kernels)
    print(*lines, sep="\n", end="\n" if lines else "")
    return 1 if lines else 0


def an_arch(text: str) -> int:
    if not text.isdecimal() or int(text) not in toolkit.ARCHS:
        raise argparse.ArgumentTypeError(f"unknown architecture {text!r}; known are {toolkit.ARCHS}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.resources", description=(__doc__ or "").splitlines()[0])
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--write", action="store_true", help="writes the table, and the same as Markdown beside it")
    task.add_argument("--check", action="store_true", help="compares with the table")
    parser.add_argument("--archs", type=lambda text: [an_arch(part) for part in text.split(",")], default=toolkit.ARCHS)
    parser.add_argument("--table", type=Path, default=TABLE, metavar="FILE")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    options = parser.parse_args(argv)
    home = toolkit.home()
    if home is None:
        parser.error("no nvcc: set CUDA_HOME")
    nvcc = toolkit.release(home)
    try:
        kernels = measure(home, options.archs, options.jobs)
    except toolkit.ToolError as error:
        print(error, file=sys.stderr)
        return 1
    if options.check:
        return check(options.table, nvcc, kernels, options.archs)
    options.table.parent.mkdir(parents=True, exist_ok=True)
    options.table.write_text(dumps(nvcc, kernels), encoding="utf-8")
    options.table.with_suffix(".md").write_text(markdown(nvcc, kernels), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
