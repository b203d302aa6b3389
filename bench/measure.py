"""One case of `python -m bench.loss`: every provider checked against float64, then timed in turns with the others."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from bench import caches, kernel_time, memory, providers, timing
from bench.problem import AT_ONCE, DTYPES, Case, Oracle, Problem, make, observe
from bench.providers import Provider
from bench.timing import Times, Work

OURS = ("eager", "udskd", "reference")  # and what begins with one of them: no run without these, right and running


class Disagreement(Exception):
    """A provider's answer is not that of float64."""


def measure(
    case: Case,
    chosen: Sequence[Provider],
    device: str,
    options: dict[str, Any],
    rounds: int,
    copy: float,
    with_kernels: bool = False,
) -> list[dict[str, Any]]:
    """A row for each provider that can run the case; `copy` is the bandwidth of a copy in GB/s.

    Raises:
        Disagreement: one of ours, or eager, is wrong.
        torch.OutOfMemoryError: there is no room for the case.
    """
    providers.forget(chosen)
    number = caches.batches(case, caches.last_level(device))
    problems = [make(case, device, seed) for seed in range(number)]
    errors = check(case, chosen, problems[0], options)
    works: dict[str, Work] = {}
    peaks: dict[str, int | None] = {}
    for provider in chosen:
        if provider.name not in errors:
            continue
        with leaving_out(provider, case):
            works[provider.name] = work = repeated(provider, own(provider, problems), case.gradients)
            try:
                work(number)
                peaks[provider.name] = None if provider.graphs else memory.peak(work, device)
            except Exception:
                del works[provider.name], work  # and with it, its memory
                raise
    times = timing.interleaved(works, rounds, device)
    kernels = {name: kernel_time.microseconds(work, device) if with_kernels else None for name, work in works.items()}
    baseline = times.get("eager")
    return [
        row(case, name, times[name], baseline, copy)
        | {"kernels_us": kernels[name], "peak_bytes": peaks[name], "max_error": digits(errors[name])}
        for name in works
    ]


@contextmanager
def leaving_out(provider: Provider, case: Case) -> Generator[None]:
    """Others that fail or are wrong are named and left out, and so is whoever finds no memory."""
    try:
        yield
    except Exception as failure:
        if provider.name.startswith(OURS) and not isinstance(failure, torch.OutOfMemoryError):
            raise
        reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
        print(f"skipped: {provider.name}, which fails on {case}: {reason}\n", flush=True)


def own(provider: Provider, problems: Sequence[Problem]) -> Sequence[Problem]:
    """Batches that a provider may overwrite are its own."""
    return [problem.copy() for problem in problems] if provider.overwrites else problems


def check(case: Case, chosen: Sequence[Provider], problem: Problem, options: dict[str, Any]) -> dict[str, float]:
    """The errors of the providers that can run the case."""
    oracle = Oracle(problem, options, case.gradients)
    allowed = bound(case, problem, options, oracle)
    errors = {}
    for provider in chosen:
        if not provider.runs(case):
            continue
        with leaving_out(provider, case):
            with provider.around():
                seen = observe(provider.loss, problem.copy() if provider.overwrites else problem, case.gradients)
            found = oracle.error(seen)
            if not found <= allowed:
                wrong = f"is off by {found:.1e} where {allowed:.1e} is allowed"
                raise Disagreement(f"{provider.name} disagrees with float64 on {case}: it {wrong}.")
            errors[provider.name] = found
    return errors


def bound(case: Case, problem: Problem, options: dict[str, Any], oracle: Oracle) -> float:
    """The error allowed: four times that of plain PyTorch in this dtype, and two roundings, should that be lucky. Of a
    large batch, plain PyTorch's is that of the first rows."""
    (plain,), _ = providers.available(["eager"], problem.target.device.type, options)
    height = max(1, AT_ONCE // case.classes)
    if height < case.rows:
        problem = problem.rows(slice(0, height))
        oracle = Oracle(problem, options, case.gradients)
    roundings = max(2 * torch.finfo(DTYPES[case.dtype]).eps, 1e-12)  # the oracle has its own
    error = oracle.error(observe(plain.loss, problem, case.gradients))
    if not math.isfinite(error):
        raise Disagreement(f"eager PyTorch has no finite answer to {case}, by which others could be judged.")
    return 4 * error + roundings


def repeated(provider: Provider, problems: Sequence[Problem], gradients: bool) -> Work:
    """What is timed, of one batch after the other. Of several, the results of all are kept for a round, so that they
    are not written to what a cache holds either."""
    calls = itertools.cycle([provider.ready(problem, gradients) for problem in problems])
    results: deque[object] = deque(maxlen=0 if provider.graphs else len(problems) - 1)

    def work(times: int) -> None:
        with provider.around(), torch.set_grad_enabled(gradients):
            for call in itertools.islice(calls, times):
                results.append(call())

    return work


def row(case: Case, name: str, times: Times, baseline: Times | None, copy: float) -> dict[str, Any]:
    rate = case.minimal_bytes / times.median / 1e3
    return {
        "provider": name,
        "rows": case.rows,
        "classes": case.classes,
        "dtype": case.dtype,
        "pass": case.kind,
        "cache": case.cache,
        "threads": torch.get_num_threads(),
        "median_us": digits(times.median),
        "p10_us": digits(times.p10),
        "p90_us": digits(times.p90),
        "wall_us": digits(times.wall),
        "minimal_bytes": case.minimal_bytes,
        "gb_per_s": digits(rate),
        "share_of_copy": digits(rate / copy),
        "speedup_vs_eager": digits(baseline.median / times.median) if baseline else None,
    }


def digits(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")
