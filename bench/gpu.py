"""Everything that needs an NVIDIA GPU, by one command: `make gpu`, or

    python -m bench.gpu [--out DIR] [--seconds 480] [--only build,tests,...]

Builds the library for the GPU that is there, with the Python that runs this and what is installed beside it; runs the
tests that need one; runs the kernels under compute-sanitizer; measures the loss, a call's cost, and the training step.
Every part has its own time limit and log, and is reported whether or not those before it passed. The table comes last,
and is in DIR, too. Needs no network, and changes no setting of the GPU.
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

from bench import steps, toolkit
from bench.steps import Outcome, Step, Verdict

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
FORMS = ("udskd", "udskd-fused", "udskd-recompute", "udskd-graph")
PYTHON = [sys.executable, "-u"]
# Batches from those that only pay for the launch to those that fill a GPU; rows that vectors divide, and neighbours
# that none does.
SIZES = ["1024x50257", "1024x50256", "4096x1001", "4096x999"]
SIZES += [f"{rows}x{classes}" for classes in (100, 1000) for rows in (64, 128, 256, 512, 1024, 2048, 4096)]
BEYOND = 4  # times the L2 cache that a case moves at least, if its share of a copy is to say something


class CannotStart(Exception):
    """Why nothing of this can run here."""


def facts() -> dict[str, Any]:
    """The machine, asked in a process of its own, which gives its part of the GPU back."""
    command = [*PYTHON, "-W", "ignore", "-m", "bench.machine", "--device", "cuda"]
    try:
        done = subprocess.run(command, cwd=toolkit.ROOT, capture_output=True, text=True, timeout=90)
    except subprocess.TimeoutExpired:
        raise CannotStart("the GPU does not answer") from None
    if done.returncode:
        raise CannotStart(steps.last_line(done.stdout + done.stderr))
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# --- what the parts say ----------------------------------------------------------------------------------------------


def judge_tests(code: int, output: str) -> Verdict:
    """pytest's own counts. Tests that all skipped themselves have tested nothing."""
    found = re.findall(r"((?:\d+ (?:passed|failed|skipped|errors?|deselected|warnings?)(?:, )?)+) in [\d.]+s", output)
    if not found:
        return Verdict("failed", steps.last_line(output))
    counts = re.sub(r", \d+ (deselected|warnings?)", "", found[-1])
    return Verdict("ok" if code == 0 and "passed" in counts else "failed", counts)


def judge_sanitizer(code: int, output: str) -> Verdict:
    """The tool's summary. It must have seen the script through, which prints how many calls it checked."""
    if "Device not supported" in output:
        return Verdict("skipped", "the tool does not support this device")
    said = re.findall(r"=+ ([A-Z ]*SUMMARY: .*)", output)
    checked = re.findall(r"^checked .*", output, re.M)
    if code == 0 and said and checked:
        return Verdict("ok", f"{said[-1]}; {checked[-1]}")
    return Verdict("failed", said[-1] if said else steps.last_line(output))


def judge_build(capability: str, code: int, output: str) -> Verdict:
    errors = re.findall(r".*\berror\b.*", output)
    return Verdict("failed", (errors or [steps.last_line(output)])[0]) if code else Verdict("ok", f"for {capability}")


def judge_loss(rows: Path, l2_bytes: int, code: int, output: str) -> Verdict:
    """How many cases, and how near the best of those that no cache holds came to a copy."""
    if code or not rows.is_file():
        return Verdict("failed", steps.last_line(output))
    ours = [row for row in json.loads(rows.read_text(encoding="utf-8")) if row["provider"] == "udskd"]
    said = [f"{len(ours)} cases"]
    lost = re.findall(r"^(?:no (?:time left|memory) for|skipped: udskd).*", output, re.M)
    if not ours:
        return Verdict("failed", "; ".join(said + lost))
    if large := [row for row in ours if row["minimal_bytes"] > BEYOND * l2_bytes]:
        best = max(large, key=lambda row: row["share_of_copy"])
        where = f"{best['rows']} x {best['classes']}, {best['dtype']}"
        said.append(f"best beyond the caches {best['share_of_copy']:.0%} of a copy: {where}")
    return Verdict("ok", "; ".join(said + lost))


def judge_step(rows: Path, code: int, output: str) -> Verdict:
    """Images per second of each way to train, beside the plain loop's; and what an epoch reaches of that."""
    if code or not rows.is_file():
        return Verdict("failed", steps.last_line(output))
    found = json.loads(rows.read_text(encoding="utf-8"))
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
        return Verdict("failed", steps.last_line(output))
    ours = [row for row in json.loads(rows.read_text(encoding="utf-8")) if row["provider"] == "udskd"]
    return Verdict("ok", ", ".join(f"{row['pass']} {row['median_us']} µs" for row in ours))


# --- the parts -------------------------------------------------------------------------------------------------------


def plan(out: Path, home: str, found: dict[str, Any]) -> list[list[Step]]:
    """All parts in order; those that run side by side in one list. Their limits add up to more than there is, because
    most parts take less."""
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


def chosen(groups: list[list[Step]], only: Sequence[str]) -> list[list[Step]]:
    """The parts of these names.

    Raises:
        CannotStart: one of the names is no part's.
    """
    names = [step.name for group in groups for step in group]
    if unknown := [name for name in only if name not in names]:
        raise CannotStart(f"argument --only: there is no part {unknown[0]!r}; there are {', '.join(names)}")
    kept = [[step for step in group if step.name in only] for group in groups]
    return [group for group in kept if group]


def build(out: Path, home: str, capability: str) -> Step:
    only = {"UDSKD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": capability, "CUDA_HOME": home}
    command = [*PYTHON, "setup.py", "build_ext", "--inplace"]

    judge = partial(judge_build, capability)
    return Step("build", lambda _: command, 200, out / "build.log", judge, only, vital=True)


def tests(out: Path) -> Step:
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if find_spec("xdist") else []
    # A kernel that hangs is to be known by its test; while Python waits for the GPU, it would not hear a signal.
    hangs = ["--timeout", "100", "--timeout-method", "thread"] if find_spec("pytest_timeout") else []
    command = [*PYTHON, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *workers, *hangs, "tests"]
    return Step("tests", lambda _: command, 150, out / "tests.log", judge_tests)


def sanitizer(out: Path, home: str, tool: str) -> Step:
    """Our kernels alone, and memory that PyTorch does not pool, so that a read beyond an end is one. What was written
    is known only of kernels that are watched: initcheck watches PyTorch's as well."""
    program = toolkit.program("compute-sanitizer", home)
    options = [*("--error-exitcode", "9"), *("--print-limit", "20"), *("--report-api-errors", "no")]
    options += [] if tool == "initcheck" else ["--kernel-name", "kns=udskd"]
    options += ["--padding", "65536"] if tool == "memcheck" else []  # or far beyond an end another tensor would begin
    command = [program or "", "--tool", tool, *options, *PYTHON, "-m", "bench.sanitized"]
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    missing = "" if program else "not installed"
    return Step(tool, lambda _: command, 90, out / f"{tool}.log", judge_sanitizer, environment, missing)


def loss(out: Path, name: str, limit: float, providers: Sequence[str], more: Sequence[str], l2_bytes: int) -> Step:
    """bench.loss, which is told when to start no other case, and so still writes what it has."""
    rows, a_case = out / f"{name}.json", 40 if "compile" in providers else 10
    fixed = ["-m", "bench.loss", "--device", "cuda", "--rounds", "10", "--providers", ",".join(providers), *more]
    fixed += ["--json", str(rows), "--markdown", str(rows.with_suffix(".md"))]

    def command(seconds: float) -> list[str]:
        return [*PYTHON, *fixed, "--limit", str(max(1, int(seconds - a_case)))]

    judge = partial(judge_loss, rows, l2_bytes)
    return Step(name, command, limit, out / f"{name}.log", judge, writes=(rows, rows.with_suffix(".md")), keeps=True)


def call(out: Path) -> Step:
    rows = out / "call.json"
    command = [*PYTHON, "-m", "bench.call", "--device", "cuda", "--json", str(rows)]
    return Step("call", lambda _: command, 40, out / "call.log", partial(judge_call, rows), writes=(rows,))


def step(out: Path) -> Step:
    """bench.step on images that it generates; what it has no time for, compiled networks first, it leaves out."""
    rows = out / "step.json"
    fixed = ["-m", "bench.step", "--device", "cuda", "--epochs", "2", "--json", str(rows)]
    fixed += ["--markdown", str(rows.with_suffix(".md"))]

    def command(seconds: float) -> list[str]:
        return [*PYTHON, *fixed, "--limit", str(max(1, int(seconds - 60)))]

    judge = partial(judge_step, rows)
    return Step("step", command, 210, out / "step.log", judge, writes=(rows, rows.with_suffix(".md")), keeps=True)


# --- the command -----------------------------------------------------------------------------------------------------


def prepare(out: Path, only: Sequence[str]) -> tuple[dict[str, Any], list[list[Step]]]:
    """The machine and what is to be done on it: all, or only these parts.

    Raises:
        CannotStart: there is no GPU, nothing to compile for it with, or no such part.
    """
    found = facts()
    home = toolkit.home()
    if home is None:
        raise CannotStart("no nvcc: install the CUDA toolkit or set CUDA_HOME")
    groups = plan(out, home, found)
    groups = chosen(groups, only) if only else groups
    out.mkdir(parents=True, exist_ok=True)
    found["nvcc"] = toolkit.release(home)
    (out / "machine.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found, groups


def part_names(text: str) -> list[str]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError("it names no part")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), metavar="DIR", help="for logs and results")
    parser.add_argument("--seconds", type=float, default=480, help="for all of it")
    parser.add_argument("--only", type=part_names, default=[], metavar="PART,...", help="of the table's")
    options = parser.parse_args(argv)
    start, out = time.monotonic(), options.out.resolve()
    try:
        found, groups = prepare(out, options.only)
    except CannotStart as reason:
        print(f"udskd: {reason}")
        return 1
    print(f"{found['gpu']}, compute capability {found['capability']}; logs in {options.out}", flush=True)

    def done(outcomes: list[Outcome]) -> None:
        steps.write(out, found, outcomes)
        print(f"{outcomes[-1].step} done: {outcomes[-1].status}, {outcomes[-1].detail}", flush=True)

    outcomes = steps.run_all(groups, options.seconds - (time.monotonic() - start), done)
    steps.write(out, found, outcomes)
    print("\n" + steps.markdown(outcomes), end="", flush=True)
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
