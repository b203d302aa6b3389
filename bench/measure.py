"""One case of `python -m bench.loss`: every provider checked against float64, then timed in turns with the others."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from bench import busy, caches, memory, providers, timing
from bench.problem import AT_ONCE, DTYPES, Case, Oracle, Problem, make, observe
from bench.providers import Provider
from bench.timing import Times, Work

OURS = ("eager", "udskd", "reference")  # and what begins with one of them: no run without these, right and running
OutOfMemory = torch.OutOfMemoryError


class Disagreement(Exception):
    """A provider's answer is not that of float64."""


def measure(
    case: Case, chosen: Sequence[Provider], device: str, options: dict[str, Any], rounds: int, copy: float
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
    running = [provider for provider in chosen if provider.name in errors]
    works = {p.name: repeated(p, own(p, problems), case.gradients) for p in running}
    peaks = {p.name: None if p.graphs else memory.peak(works[p.name], device) for p in running}
    times = timing.interleaved(works, rounds, device)
    kernels = {name: busy.microseconds(work, device) for name, work in works.items()}
    baseline = times.get("eager")
    return [
        row(case, name, times[name], baseline, copy)
        | {"kernels_us": kernels[name], "peak_bytes": peaks[name], "max_error": digits(errors[name])}
        for name in works
    ]


def own(provider: Provider, problems: Sequence[Problem]) -> Sequence[Problem]:
    """Batches that a provider may overwrite are its own."""
    return [problem.copy() for problem in problems] if provider.overwrites else problems


def check(case: Case, chosen: Sequence[Provider], problem: Problem, options: dict[str, Any]) -> dict[str, float]:
    """The errors of the providers that can run the case. Others' that fail or are wrong are named and left out."""
    oracle = Oracle(problem, options, case.gradients)
    allowed = bound(case, problem, options)
    errors = {}
    for provider in chosen:
        if not provider.runs(case):
            continue
        try:
            with provider.around():
                seen = observe(provider.loss, problem.copy() if provider.overwrites else problem, case.gradients)
            found = oracle.error(seen)
            if not found <= allowed:
                wrong = f"is off by {found:.1e} where {allowed:.1e} is allowed"
                raise Disagreement(f"{provider.name} disagrees with float64 on {case}: it {wrong}.")
        except Exception as failure:
            if provider.name.startswith(OURS) and not isinstance(failure, OutOfMemory):
                raise
            reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
            print(f"skipped: {provider.name}, which fails on {case}: {reason}\n", flush=True)
            continue
        errors[provider.name] = found
    return errors


def bound(case: Case, problem: Problem, options: dict[str, Any]) -> float:
    """The error allowed: four times that of plain PyTorch in this dtype, and two roundings, should that be lucky. Of a
    large batch, plain PyTorch's is that of the first rows."""
    (plain,), _ = providers.available(["eager"], problem.target.device.type, options)
    first = problem.rows(slice(0, max(1, AT_ONCE // case.classes)))
    roundings = max(2 * torch.finfo(DTYPES[case.dtype]).eps, 1e-12)  # the oracle has its own
    error = Oracle(first, options, case.gradients).error(observe(plain.loss, first, case.gradients))
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
