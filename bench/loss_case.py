"""One case of `python -m bench.loss`: compares every provider with float64, then times all of them, interleaved."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from bench import caches, kernel_time, memory, providers, timing
from bench.providers import Provider
from bench.records import digits
from bench.timing import TimedLoop, Times
from bench.workload import CHUNK_LOGITS, DTYPES, Case, Oracle, Workload, evaluate, make_workload

# Prefixes of the providers that must run and be right: their failure ends the benchmark.
REQUIRED = ("eager", "udskd", "reference")


class Disagreement(Exception):
    """The result of a provider differs from that in float64 by more than its dtype explains."""


class Prepared(NamedTuple):
    """A provider's loop over the batches of a case, after its first run."""

    loop: TimedLoop
    peak_bytes: int | None  # None where the memory of a CUDA graph hides it


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
        Disagreement: the result of a required provider is wrong.
        torch.OutOfMemoryError: there is not enough memory for the case.
    """
    providers.reset(chosen)
    count = caches.batch_count(case, caches.last_level_bytes(device))
    workloads = [make_workload(case, device, seed) for seed in range(count)]
    errors = check(case, chosen, workloads[0], options)
    prepared = prepare_all(case, [provider for provider in chosen if provider.name in errors], workloads, device)
    loops = {name: each.loop for name, each in prepared.items()}
    times = timing.interleaved(loops, rounds, device)
    kernels = {name: kernel_time.microseconds(loop, device) if with_kernels else None for name, loop in loops.items()}
    return [
        timed_row(case, name, times, copy)
        | {"kernels_us": kernels[name], "peak_bytes": each.peak_bytes, "max_error": digits(errors[name])}
        for name, each in prepared.items()
    ]


@contextmanager
def skipping_failures(provider: Provider, case: Case) -> Generator[None]:
    """Prints why a provider is skipped: any error of an optional one, lack of memory of any."""
    try:
        yield
    except Exception as failure:
        if provider.name.startswith(REQUIRED) and not isinstance(failure, torch.OutOfMemoryError):
            raise
        reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
        print(f"skipped: {provider.name}, which fails on {case}: {reason}\n", flush=True)


# --- results ---------------------------------------------------------------------------------------------------------


def check(case: Case, chosen: Sequence[Provider], workload: Workload, options: dict[str, Any]) -> dict[str, float]:
    """The errors of the providers that can run the case and are right."""
    oracle = Oracle(workload, options, case.gradients)
    allowed = error_bound(case, workload, options, oracle)
    errors = {}
    for provider in chosen:
        if provider.supports(case):
            with skipping_failures(provider, case):
                errors[provider.name] = checked_error(provider, case, workload, oracle, allowed)
    return errors


def checked_error(provider: Provider, case: Case, workload: Workload, oracle: Oracle, allowed: float) -> float:
    """Raises Disagreement if the error is larger than allowed."""
    inputs = workload.copy() if provider.overwrites_logits else workload
    with provider.context():
        error = oracle.error(evaluate(provider.loss, inputs, case.gradients))
    if not error <= allowed:
        wrong = f"is off by {error:.1e} where {allowed:.1e} is allowed"
        raise Disagreement(f"{provider.name} disagrees with float64 on {case}: it {wrong}.")
    return error


def error_bound(case: Case, workload: Workload, options: dict[str, Any], oracle: Oracle) -> float:
    """The allowed error: four times that of plain PyTorch in this dtype, plus two roundings for cases in which plain
    PyTorch happens to be exact. Of a large batch, plain PyTorch's error is taken on the first rows."""
    (plain,), _ = providers.available(["eager"], workload.target.device.type, options)
    height = max(1, CHUNK_LOGITS // case.classes)
    if height < case.rows:
        workload = workload.rows(slice(0, height))
        oracle = Oracle(workload, options, case.gradients)
    roundings = max(2 * torch.finfo(DTYPES[case.dtype]).eps, 1e-12)  # the oracle has rounding errors, too
    error = oracle.error(evaluate(plain.loss, workload, case.gradients))
    if not math.isfinite(error):
        raise Disagreement(f"eager PyTorch has no finite result for {case} with which others could be compared.")
    return 4 * error + roundings


# --- times -----------------------------------------------------------------------------------------------------------


def prepare_all(
    case: Case, chosen: Sequence[Provider], workloads: Sequence[Workload], device: str
) -> dict[str, Prepared]:
    """The loops of the providers, without those that fail when they run."""
    prepared = {}
    for provider in chosen:
        with skipping_failures(provider, case):
            prepared[provider.name] = prepare(provider, workloads, case.gradients, device)
    return prepared


def prepare(provider: Provider, workloads: Sequence[Workload], gradients: bool, device: str) -> Prepared:
    if provider.overwrites_logits:
        workloads = [workload.copy() for workload in workloads]
    loop = loop_over(provider, workloads, gradients)
    loop(len(workloads))
    return Prepared(loop, None if provider.uses_cuda_graph else memory.peak_bytes(loop, device))


def loop_over(provider: Provider, workloads: Sequence[Workload], gradients: bool) -> TimedLoop:
    """Calls with one batch after the other.

    Of several batches the results of one round are kept; otherwise the allocator would place new results in memory that
    the caches still hold, and cold cases would write to warm memory.
    """
    calls = itertools.cycle([provider.prepare(workload, gradients) for workload in workloads])
    results: deque[object] = deque(maxlen=0 if provider.uses_cuda_graph else len(workloads) - 1)

    def loop(times: int) -> None:
        with provider.context(), torch.set_grad_enabled(gradients):
            for call in itertools.islice(calls, times):
                results.append(call())

    return loop


def timed_row(case: Case, name: str, times: Mapping[str, Times], copy: float) -> dict[str, Any]:
    median = times[name].median
    rate = case.minimal_bytes / median / 1e3
    return {
        "provider": name,
        "rows": case.rows,
        "classes": case.classes,
        "dtype": case.dtype,
        "pass": case.kind,
        "cache": case.cache,
        "apart": case.apart,
        "threads": torch.get_num_threads(),
        **times[name].as_row(wall=True),
        "minimal_bytes": case.minimal_bytes,
        "gb_per_s": digits(rate),
        "share_of_copy": digits(rate / copy),
        "speedup_vs_eager": digits(times["eager"].median / median) if "eager" in times else None,
    }
