"""Runs commands one after another under a common deadline, whether or not the earlier ones fail, and tabulates the
results."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.files import write_json, write_text
from bench.formatting import markdown_table
from udskd.files import create, read_regular

ROOT = Path(__file__).parents[1]
MIN_SECONDS = 5.0  # a command with less time left is skipped
GRACE = 5.0  # seconds between the interruption of a command and its end by force


class Verdict(NamedTuple):
    status: str  # "ok", "failed" or "skipped"
    detail: str  # one line


Judge = Callable[[int, str], Verdict]
"""Makes the verdict of an exit code and the output."""


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def by_exit_code(code: int, output: str) -> Verdict:
    return Verdict("ok" if code == 0 else "failed", last_line(output))


@dataclass(frozen=True)
class Command:
    """A command whose output goes to a log and is judged together with its exit code."""

    name: str
    argv: Callable[[float], Sequence[str]]
    """The words of the command, for the seconds that it may take."""
    limit: float
    log: Path
    judge: Judge = by_exit_code
    environment: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""
    """The reason why it cannot run on this machine."""
    required: bool = False
    """Whether the commands after it are skipped if it fails."""
    results: tuple[Path, ...] = ()
    """Files that it writes; those of an earlier run are removed first."""
    saves_progress: bool = False
    """Whether it writes results as it goes, so that they are judged even if its time runs out."""


class CommandResult(NamedTuple):
    name: str
    status: str
    seconds: float
    detail: str


def run(command: Command, seconds: float) -> CommandResult:
    """Runs a command for at most its limit and the seconds that are left."""
    if command.missing:
        return CommandResult(command.name, "skipped", 0.0, command.missing)
    allowed = min(command.limit, seconds)
    if allowed < MIN_SECONDS:
        return CommandResult(command.name, "skipped", 0.0, "no time left")
    start = time.monotonic()
    command.log.parent.mkdir(parents=True, exist_ok=True)
    try:
        code = execute(command, allowed)
    except OSError as error:
        return CommandResult(command.name, "failed", 0.0, str(error))
    verdict = verdict_of(command, code, allowed)
    return CommandResult(command.name, verdict.status, round(time.monotonic() - start, 1), verdict.detail)


def verdict_of(command: Command, code: int | None, allowed: float) -> Verdict:
    """code: None if the command was stopped after `allowed` seconds."""
    output = read_regular(command.log).decode("utf-8", "replace")
    if code is not None:
        return command.judge(code, output)
    verdict = command.judge(0, output) if command.saves_progress else Verdict("failed", last_line(output))
    return Verdict(verdict.status, f"stopped after {allowed:.0f} s; {verdict.detail}")


def execute(command: Command, allowed: float) -> int | None:
    """The exit code, or None if the time ran out. All processes that the command has started end with it."""
    with create(command.log) as log:
        argv, environment = command.argv(allowed), os.environ | dict(command.environment)
        process = subprocess.Popen(
            argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            return process.wait(allowed)
        except subprocess.TimeoutExpired:
            signal_all(process, signal.SIGINT)  # on which pytest prints its summary
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return None
        finally:
            signal_all(process, signal.SIGKILL)
            process.wait()


def signal_all(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # all of them have ended
        os.killpg(process.pid, number)


def run_all(
    groups: Sequence[Sequence[Command]],
    seconds: float,
    on_group: Callable[[list[CommandResult]], None] = lambda results: None,
) -> list[CommandResult]:
    """Runs the groups in turn and the commands of a group in parallel.

    Args:
        on_group: is called after each group with all results so far.
    """
    end, results, skip = time.monotonic() + seconds, list[CommandResult](), ""
    for path in (path for group in groups for command in group for path in command.results):
        path.unlink(missing_ok=True)
    for group in groups:
        if skip:
            results += [CommandResult(command.name, "skipped", 0.0, skip) for command in group]
            continue
        left = end - time.monotonic() - GRACE
        with ThreadPoolExecutor(len(group)) as pool:
            found = list(pool.map(run, group, [left] * len(group)))
        failed = [
            command.name for command, x in zip(group, found, strict=True) if command.required and x.status != "ok"
        ]
        skip = f"{failed[0]} failed" if failed else ""
        results += found
        on_group(results)
    return results


# --- the table -------------------------------------------------------------------------------------------------------


def markdown(results: Sequence[CommandResult]) -> str:
    rows = [[x.name, x.status, f"{x.seconds:.1f}", x.detail.replace("|", "\\|")] for x in results]
    return markdown_table(["part", "result", "seconds", "detail"], rows, text_columns=4)


def write(folder: Path, facts: Mapping[str, Any], results: Sequence[CommandResult]) -> None:
    """Writes summary.json and summary.md."""
    keys = ("step", "status", "seconds", "detail")
    steps = [dict(zip(keys, result, strict=True)) for result in results]
    write_json(folder / "summary.json", {"machine": dict(facts), "steps": steps})
    write_text(folder / "summary.md", markdown(results))
