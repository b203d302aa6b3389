"""Everything that needs an NVIDIA GPU, by one command: `make gpu`, or

    python -m bench.gpu [--out DIR] [--seconds 480] [--only build,tests,...]

It builds the library for the GPU of this machine with the current Python and its packages; runs the tests that need a
GPU; runs the kernels under compute-sanitizer; measures the loss, the overhead of a call, and the training step. Each
part is one command with its own time limit and log, and runs even if an earlier one has failed (except the build). The
table of the results is printed last and written to DIR. No part needs a network or changes a setting of the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench import commands, cuda_toolkit
from bench.arguments import make_parser
from bench.commands import Command, CommandResult, Verdict
from bench.files import write_json
from udskd.files import read_text

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
FORMS = ("udskd", "udskd-fused", "udskd-recompute", "udskd-graph")
PYTHON = [sys.executable, "-u"]
# Batches from those whose time is that of the launch to those that fill a GPU; numbers of classes that the vector
# lengths divide, and neighbours that none divides.
SIZES = ["1024x50257", "1024x50256", "4096x1001", "4096x999"]
SIZES += [f"{rows}x{classes}" for classes in (100, 1000) for rows in (64, 128, 256, 512, 1024, 2048, 4096)]
MIN_L2_SIZES = 4  # minimal traffic of a case, in sizes of the L2 cache, for a meaningful share of a copy


class CannotStart(Exception):
    """None of the parts can run on this machine; the message is the reason."""


def describe_machine() -> dict[str, Any]:
    """The output of bench.machine. It runs in a process of its own, whose end frees its memory on the GPU."""
    command = [*PYTHON, "-W", "ignore", "-m", "bench.machine", "--device", "cuda"]
    try:
        done = subprocess.run(command, cwd=commands.ROOT, capture_output=True, text=True, timeout=90)
    except subprocess.TimeoutExpired:
        raise CannotStart("the GPU does not respond") from None
    if done.returncode:
        raise CannotStart(commands.last_line(done.stdout + done.stderr))
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# --- verdicts on the parts -------------------------------------------------------------------------------------------


def judge_tests(code: int, output: str) -> Verdict:
    """pytest's counts. If all tests were skipped, the part has failed."""
    found = re.findall(r"((?:\d+ (?:passed|failed|skipped|errors?|deselected|warnings?)(?:, )?)+) in [\d.]+s", output)
    if not found:
        return Verdict("failed", commands.last_line(output))
    counts = re.sub(r", \d+ (deselected|warnings?)", "", found[-1])
    return Verdict("ok" if code == 0 and "passed" in counts else "failed", counts)


def judge_sanitizer(code: int, output: str) -> Verdict:
    """The tool's summary. The script must have reached its end, where it prints how many calls it has checked."""
    if "Device not supported" in output:
        return Verdict("skipped", "the tool does not support this device")
    summaries = re.findall(r"=+ ([A-Z ]*SUMMARY: .*)", output)
    checked = re.findall(r"^checked .*", output, re.M)
    if code == 0 and summaries and checked:
        return Verdict("ok", f"{summaries[-1]}; {checked[-1]}")
    return Verdict("failed", summaries[-1] if summaries else commands.last_line(output))


def judge_build(capability: str, code: int, output: str) -> Verdict:
    errors = re.findall(r".*\berror\b.*", output)
    return (
        Verdict("failed", (errors or [commands.last_line(output)])[0]) if code else Verdict("ok", f"for {capability}")
    )


def judge_loss(rows: Path, l2_bytes: int, code: int, output: str) -> Verdict:
    """The number of cases, and the largest share of a copy among those that exceed the cache."""
    if code or not rows.is_file():
        return Verdict("failed", commands.last_line(output))
    ours = [row for row in json.loads(read_text(rows)) if row["provider"] == "udskd"]
    details = [f"{len(ours)} cases"]
    skipped = re.findall(r"^(?:no (?:time left|memory) for|skipped: udskd).*", output, re.M)
    if not ours:
        return Verdict("failed", "; ".join(details + skipped))
    if large := [row for row in ours if row["minimal_bytes"] > MIN_L2_SIZES * l2_bytes]:
        best = max(large, key=lambda row: row["share_of_copy"])
        case = f"{best['rows']} x {best['classes']}, {best['dtype']}"
        details.append(f"best beyond the caches {best['share_of_copy']:.0%} of a copy: {case}")
    return Verdict("ok", "; ".join(details + skipped))


def judge_step(rows: Path, code: int, output: str) -> Verdict:
    """Images per second of each loop's step, and of the fastest epoch with its share of the step alone."""
    if code or not rows.is_file():
        return Verdict("failed", commands.last_line(output))
    found = json.loads(read_text(rows))
    step = [f"{row['whose']} {row['images_per_s']:,.0f}" for row in found["parts"] if row["part"] == "step"]
    ends = [row for row in found["epochs"] if row["what"].startswith("udskd") and row["of_step"]]
    end = "no time for whole epochs"
    if ends:
        best = max(ends, key=lambda row: row["images_per_s"])
        reached = f"{best['images_per_s']:,.0f}, {best['of_step']:.0%} of its step"
        end = f"end to end {best['what']}, {best['images']}: {reached}"
    return Verdict("ok", f"images/s: {', '.join(step)}; {end}")


def judge_call(rows: Path, code: int, output: str) -> Verdict:
    if code or not rows.is_file():
        return Verdict("failed", commands.last_line(output))
    ours = [row for row in json.loads(read_text(rows)) if row["provider"] == "udskd"]
    return Verdict("ok", ", ".join(f"{row['pass']} {row['median_us']} µs" for row in ours))


# --- the parts -------------------------------------------------------------------------------------------------------


def all_parts(out: Path, home: str, found: dict[str, Any]) -> list[list[Command]]:
    """All parts in order; those of one list run in parallel. The sum of their limits exceeds the time of `make gpu`,
    because most parts take less than their limit."""
    compiled = ["eager", "compile", "compile-reduce-overhead", *FORMS, "liger", "quack"]
    gradients, l2 = ["--passes", "forward+backward"], found["l2_bytes"]
    return [
        [build(out, home, found["capability"])],
        [tests(out)],
        [sanitizer(out, home, tool) for tool in TOOLS],
        [call(out)],
        [loss(out, "forward", 40, ["eager", "udskd", "udskd-graph"], ["--passes", "forward"], l2)],
        [loss(out, "loss", 200, compiled, gradients, l2)],
        [loss(out, "sizes", 100, ["eager", *FORMS], [*gradients, "--shapes", ",".join(SIZES)], l2)],
        [step(out)],
    ]


def select(groups: list[list[Command]], only: Sequence[str]) -> list[list[Command]]:
    """The parts with these names.

    Raises:
        CannotStart: there is no part with one of the names.
    """
    names = [part.name for group in groups for part in group]
    if unknown := [name for name in only if name not in names]:
        raise CannotStart(f"argument --only: unknown part {unknown[0]!r}; known are {', '.join(names)}")
    selected = [[part for part in group if part.name in only] for group in groups]
    return [group for group in selected if group]


def build(out: Path, home: str, capability: str) -> Command:
    environment = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": capability, "CUDA_HOME": home}
    argv = [*PYTHON, "setup.py", "build_ext", "--inplace"]
    judge = partial(judge_build, capability)
    return Command("build", lambda _: argv, 200, out / "build.log", judge, environment, required=True)


def tests(out: Path) -> Command:
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if find_spec("xdist") else []
    # The timeout names the test whose kernel hangs. It needs a thread: Python handles no signal while it waits for the
    # GPU.
    hangs = ["--timeout", "100", "--timeout-method", "thread"] if find_spec("pytest_timeout") else []
    argv = [*PYTHON, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *workers, *hangs, "tests"]
    return Command("tests", lambda _: argv, 150, out / "tests.log", judge_tests)


def sanitizer(out: Path, home: str, tool: str) -> Command:
    """Checks udskd's kernels alone, without PyTorch's memory pool, in which a read beyond the end of a tensor would be
    valid. initcheck also watches PyTorch's kernels, since otherwise it would not track what they have written."""
    program = cuda_toolkit.program("compute-sanitizer", home)
    options = [*("--error-exitcode", "9"), *("--print-limit", "20"), *("--report-api-errors", "no")]
    options += [] if tool == "initcheck" else ["--kernel-name", "kns=udskd"]
    options += ["--padding", "65536"] if tool == "memcheck" else []  # else another tensor may begin far beyond the end
    argv = [program or "", "--tool", tool, *options, *PYTHON, "-m", "bench.sanitized"]
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    missing = "" if program else "not installed"
    return Command(tool, lambda _: argv, 90, out / f"{tool}.log", judge_sanitizer, environment, missing)


def loss(out: Path, name: str, limit: float, providers: Sequence[str], more: Sequence[str], l2_bytes: int) -> Command:
    """bench.loss. Its own limit leaves the time of one case, so that it ends before it is stopped."""
    rows, seconds_of_case = out / f"{name}.json", 40 if "compile" in providers else 10
    fixed = ["-m", "bench.loss", "--device", "cuda", "--rounds", "10", "--providers", ",".join(providers), *more]
    fixed += ["--json", str(rows), "--markdown", str(rows.with_suffix(".md"))]

    def argv(seconds: float) -> list[str]:
        return [*PYTHON, *fixed, "--limit", str(max(1, int(seconds - seconds_of_case)))]

    judge, results = partial(judge_loss, rows, l2_bytes), (rows, rows.with_suffix(".md"))
    return Command(name, argv, limit, out / f"{name}.log", judge, results=results, saves_progress=True)


def call(out: Path) -> Command:
    rows = out / "call.json"
    argv = [*PYTHON, "-m", "bench.call", "--device", "cuda", "--json", str(rows)]
    return Command("call", lambda _: argv, 40, out / "call.log", partial(judge_call, rows), results=(rows,))


def step(out: Path) -> Command:
    """bench.step on generated images. Within its limit it leaves out variants that it has no time for."""
    rows = out / "step.json"
    fixed = ["-m", "bench.step", "--device", "cuda", "--epochs", "2", "--json", str(rows)]
    fixed += ["--markdown", str(rows.with_suffix(".md"))]

    def argv(seconds: float) -> list[str]:
        return [*PYTHON, *fixed, "--limit", str(max(1, int(seconds - 60)))]

    judge, results = partial(judge_step, rows), (rows, rows.with_suffix(".md"))
    return Command("step", argv, 210, out / "step.log", judge, results=results, saves_progress=True)


# --- the command -----------------------------------------------------------------------------------------------------


def prepare(out: Path, only: Sequence[str]) -> tuple[dict[str, Any], list[list[Command]]]:
    """The machine and the parts: all of them, or those in `only`.

    Raises:
        CannotStart: there is no GPU, no nvcc, or no such part.
    """
    found = describe_machine()
    home = cuda_toolkit.home()
    if home is None:
        raise CannotStart("no nvcc: install the CUDA toolkit or set CUDA_HOME")
    groups = all_parts(out, home, found)
    groups = select(groups, only) if only else groups
    found["nvcc"] = cuda_toolkit.release(home)
    write_json(out / "machine.json", found)
    return found, groups


def part_names(text: str) -> list[str]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError("expected at least one part")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("gpu", __doc__)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), metavar="DIR", help="folder of logs and results")
    parser.add_argument("--seconds", type=float, default=480, help="time limit of all parts together")
    parser.add_argument("--only", type=part_names, default=[], metavar="PART,...", help="run only these parts")
    options = parser.parse_args(argv)
    start, out = time.monotonic(), options.out.resolve()
    try:
        found, groups = prepare(out, options.only)
    except CannotStart as reason:
        print(f"udskd: {reason}")
        return 1
    print(f"{found['gpu']}, compute capability {found['capability']}; logs in {options.out}", flush=True)

    def report(results: list[CommandResult]) -> None:
        commands.write(out, found, results)
        print(f"{results[-1].name} done: {results[-1].status}, {results[-1].detail}", flush=True)

    results = commands.run_all(groups, options.seconds - (time.monotonic() - start), report)
    commands.write(out, found, results)
    print("\n" + commands.markdown(results), end="", flush=True)
    return 1 if any(result.status == "failed" for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
