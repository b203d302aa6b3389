"""One case of `python -m bench.loss`: every provider checked against float64, then timed in turns with the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench import memory, providers, timing
from bench.problem import DTYPES, Case, Problem, error, make, observe, oracle
from bench.providers import Provider
from bench.timing import Times, Work

MUST_RUN = ("eager", "udskd")  # any other provider that raises is left out of the case


class Disagreement(Exception):
    """A provider's answer is not that of float64."""


def measure(
    case: Case, chosen: Sequence[Provider], device: str, options: dict[str, Any], rounds: int, copy: float
) -> list[dict[str, Any]]:
    """A row for each provider that can run the case; `copy` is the bandwidth of a copy in GB/s.

    Raises:
        Disagreement: a provider is wrong.
    """
    providers.forget_compiled()
    problem = make(case, device)
    errors = check(case, chosen, problem, options)
    running = [provider for provider in chosen if provider.name in errors]
    works = {p.name: repeated(p, problem.copy() if p.overwrites else problem, case.gradients) for p in running}
    peaks = {p.name: None if p.graphs else memory.peak(works[p.name], device) for p in running}
    times = timing.interleaved(works, rounds, device)
    baseline = times.get("eager")
    return [row(case, name, times[name], baseline, copy, peaks[name], errors[name]) for name in works]


def check(case: Case, chosen: Sequence[Provider], problem: Problem, options: dict[str, Any]) -> dict[str, float]:
    """The errors of the providers that can run the case."""
    truth = oracle(problem, options, case.gradients)
    allowed = bound(case, problem, options, truth)
    errors = {}
    for provider in chosen:
        if case.kind not in provider.passes:
            continue
        try:
            with provider.around():
                seen = observe(provider.loss, problem.copy(), case.gradients)
        except Exception as failure:
            if provider.name in MUST_RUN:
                raise
            reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
            print(f"skipped: {provider.name}, which fails on {case}: {reason}\n", flush=True)
            continue
        errors[provider.name] = error(seen, truth)
        if not errors[provider.name] <= allowed:
            wrong = f"is off by {errors[provider.name]:.1e} where {allowed:.1e} is allowed"
            raise Disagreement(f"{provider.name} disagrees with float64 on {case}: it {wrong}.")
    return errors


def bound(case: Case, problem: Problem, options: dict[str, Any], truth: Sequence[Tensor]) -> float:
    """The error allowed: four times that of plain PyTorch in this dtype, and two roundings, should that be lucky."""
    (plain,), _ = providers.available(["eager"], problem.target.device.type, options)
    roundings = max(2 * torch.finfo(DTYPES[case.dtype]).eps, 1e-12)  # the oracle has its own
    return 4 * error(observe(plain.loss, problem, case.gradients), truth) + roundings


def repeated(provider: Provider, problem: Problem, gradients: bool) -> Work:
    """What is timed; torch.autograd.grad, so that nothing is added to the gradients of an earlier call."""
    students = problem.student_a, problem.student_b

    def forward(times: int) -> None:
        with provider.around(), torch.no_grad():
            for _ in range(times):
                provider.loss(*problem)

    def forward_backward(times: int) -> None:
        with provider.around():
            for _ in range(times):
                torch.autograd.grad(provider.loss(*problem), students)

    return forward_backward if gradients else forward


def row(
    case: Case, name: str, times: Times, baseline: Times | None, copy: float, peak: int | None, wrong: float
) -> dict[str, Any]:
    rate = case.minimal_bytes / times.median / 1e3
    return {
        "provider": name,
        "rows": case.rows,
        "classes": case.classes,
        "dtype": case.dtype,
        "pass": case.kind,
        "threads": torch.get_num_threads(),
        "median_us": digits(times.median),
        "p10_us": digits(times.p10),
        "p90_us": digits(times.p90),
        "wall_us": digits(times.wall),
        "minimal_bytes": case.minimal_bytes,
        "gb_per_s": digits(rate),
        "share_of_copy": digits(rate / copy),
        "peak_bytes": peak,
        "max_error": digits(wrong),
        "speedup_vs_eager": digits(baseline.median / times.median) if baseline else None,
    }


def digits(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")
