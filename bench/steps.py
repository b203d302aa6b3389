"""Commands that run one after another under a common deadline, none of which can stop the others, and a table of how
they went."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
LEAST = 5.0  # seconds below which nothing is started
GRACE = 5.0  # for a command to end by itself once it was interrupted


class Verdict(NamedTuple):
    status: str  # "ok", "failed" or "skipped"
    detail: str  # one line


Judge = Callable[[int, str], Verdict]


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def by_exit_code(code: int, output: str) -> Verdict:
    return Verdict("ok" if code == 0 else "failed", last_line(output))


@dataclass(frozen=True)
class Step:
    """A command, made for the seconds it may take, that writes a log and is judged by its exit code and output."""

    name: str
    command: Callable[[float], Sequence[str]]
    limit: float
    log: Path
    judge: Judge = by_exit_code
    environment: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""  # why it cannot run here
    vital: bool = False  # nothing after it makes sense without it
    writes: tuple[Path, ...] = ()  # results; those of an earlier time are removed first
    keeps: bool = False  # writes what it has as it goes: that counts although its time ran out


@dataclass(frozen=True)
class Outcome:
    step: str
    status: str
    seconds: float
    detail: str


def run(step: Step, seconds: float) -> Outcome:
    """Runs a step for no longer than its limit and what is left."""
    if step.missing:
        return Outcome(step.name, "skipped", 0.0, step.missing)
    allowed = min(step.limit, seconds)
    if allowed < LEAST:
        return Outcome(step.name, "skipped", 0.0, "no time left")
    start = time.monotonic()
    step.log.parent.mkdir(parents=True, exist_ok=True)
    try:
        code = execute(step, allowed)
    except OSError as error:
        return Outcome(step.name, "failed", 0.0, str(error))
    output = step.log.read_text(encoding="utf-8", errors="replace")
    if code is None:
        said = step.judge(0, output) if step.keeps else Verdict("failed", last_line(output))
        verdict = Verdict(said.status, f"stopped after {allowed:.0f} s; {said.detail}")
    else:
        verdict = step.judge(code, output)
    return Outcome(step.name, verdict.status, round(time.monotonic() - start, 1), verdict.detail)


def execute(step: Step, allowed: float) -> int | None:
    """The exit code, or None if the time ran out. Whatever the command started ends with it."""
    with step.log.open("wb") as log:
        command = step.command(allowed)
        environment = os.environ | dict(step.environment)
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            return process.wait(allowed)
        except subprocess.TimeoutExpired:
            signal_all(process, signal.SIGINT)  # pytest then says how far it came
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
    groups: Sequence[Sequence[Step]], seconds: float, done: Callable[[list[Outcome]], None] = lambda outcomes: None
) -> list[Outcome]:
    """Runs groups in turn, a group's steps side by side; `done` hears all outcomes so far after each group."""
    end, outcomes, broken = time.monotonic() + seconds, list[Outcome](), ""
    for path in (path for group in groups for step in group for path in step.writes):
        path.unlink(missing_ok=True)
    for group in groups:
        if broken:
            outcomes += [Outcome(step.name, "skipped", 0.0, broken) for step in group]
            continue
        left = end - time.monotonic() - GRACE
        with ThreadPoolExecutor(len(group)) as pool:
            found = list(pool.map(run, group, [left] * len(group)))
        failed = [step.name for step, x in zip(group, found, strict=True) if step.vital and x.status != "ok"]
        broken = f"without {failed[0]} there is nothing to run" if failed else ""
        outcomes += found
        done(outcomes)
    return outcomes


# --- the table -------------------------------------------------------------------------------------------------------


def markdown(outcomes: Sequence[Outcome]) -> str:
    rows = [["step", "result", "seconds", "what it says"], ["---", "---", "--:", "---"]]
    rows += [[x.step, x.status, f"{x.seconds:.1f}", x.detail.replace("|", "\\|")] for x in outcomes]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def write(folder: Path, facts: Mapping[str, Any], outcomes: Sequence[Outcome]) -> None:
    """summary.json and summary.md."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": dict(facts), "steps": [asdict(outcome) for outcome in outcomes]}
    (folder / "summary.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / "summary.md").write_text(markdown(outcomes), encoding="utf-8")
