"""Calls of the loss under compute-sanitizer: every plan, that is every way to distribute a row over threads, on inputs
small enough for a tool that is a hundred times slower.

    compute-sanitizer --tool racecheck python -m bench.sanitized

UDSKD_CUDA_PLAN selects the plan, which otherwise depends on the size of the inputs. Every result is compared with that
of the reference backend, with wide tolerances; the tests check the accuracy.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import udskd
from bench.arguments import make_parser
from tests.loss.helpers import forms
from tests.loss.helpers.inputs import LossInputs, make

PLAN = "UDSKD_CUDA_PLAN"
# Numbers of classes for each plan: divisible by the vector length or not, fewer or more than threads.
CLASSES = {
    "lanes8": (7, 121),
    "warp": (33, 125),
    "warp8": (100, 1017),
    "block128": (129, 1000),
    "block256": (515, 2049),
    "shared": (1001, 4096),
    "cluster": (2050, 8195),
    "split": (1003, 5000),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS, IGNORED = 9, 2
COUNTED = 17_000  # rows, so many that a separate kernel counts their labels
OPTIONS: list[dict[str, Any]] = [
    {"reduction": "mean"},
    {"reduction": "sum", "detach_peer": False, "label_smoothing": 0.1},
    {"reduction": "none", "peer_temperature": 1.0, "uncertainty": "margin"},
    {"reduction": "mean", "normalize_weights": True, "temperature": 2.5, "uncertainty": "max_prob"},
    {"reduction": "sum", "uncertainty": "none", "ce_weight": 0.3, "peer_weight": 0.0},
]
PARTS: list[dict[str, Any]] = [{}, {}, {"two": False}, {}, {"teacher": False}, {"target": "soft"}, {"target": None}]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}


class WrongResult(Exception):
    """A result differs from that of the reference backend by more than the tolerance."""


class Call(NamedTuple):
    number: int
    plan: str
    classes: int
    dtype: torch.dtype
    form: forms.Form
    parts: dict[str, Any]
    options: dict[str, Any]
    rows: int = ROWS

    def __str__(self) -> str:
        return f"{self.plan}, {self.rows} x {self.classes}, {self.dtype}, {self.form}, {self.parts | self.options}"


def calls() -> Iterator[Call]:
    """Every plan in every dtype. The other properties alternate with coprime periods, so that all pairs occur."""
    number = itertools.count()
    for plan, sizes in CLASSES.items():
        for classes, dtype in itertools.product(sizes, DTYPES):
            k = next(number)
            form: forms.Form = "recompute" if k % 11 < 3 else "auto"
            yield Call(k, plan, classes, dtype, form, PARTS[k % len(PARTS)], OPTIONS[k % len(OPTIONS)])
    yield Call(next(number), "warp", 7, torch.float32, "auto", {}, {"reduction": "mean"}, COUNTED)


def results(problem: LossInputs, backend: Any, **options: Any) -> list[Tensor]:
    """Loss, weights and gradients for a grad_output that is not 1."""
    out = udskd.dual_student_loss(*problem.inputs, backend=backend, **options)
    gradients = torch.autograd.grad(out.loss, problem.logits, torch.full_like(out.loss, 1.5))
    return [x.detach().float().cpu() for x in (out.loss, out.weight, *gradients)]


def shifted(problem: LossInputs) -> LossInputs:
    """The same logits as rows of a wider matrix, whose addresses are not aligned to vectors."""

    def shift(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        wide = x.new_zeros(x.shape[0], x.shape[1] + 3)
        wide[:, 1:-2] = x.detach()
        return wide[:, 1:-2].requires_grad_()

    a = shift(problem.student_a)
    assert a is not None
    return LossInputs(shift(problem.teacher), a, shift(problem.student_b), problem.target)


def check(call: Call, device: str) -> None:
    made = make(call.rows, call.classes, dtype=torch.float32, seed=call.number, ignored=IGNORED, **call.parts)
    made = made.like(call.dtype)
    expected = results(made, "reference", **call.options)
    problem = made.like(device=device)
    with forms.only(call.form):
        found = results(shifted(problem) if call.number % 2 else problem, "auto", **call.options)
    for x, y in zip(found, expected, strict=True):
        off, largest = (x - y).abs().max().item(), y.abs().max().item()
        if not off <= TOLERANCE[call.dtype] * largest:
            raise WrongResult(f"off by {off:.1e} where the largest element is {largest:.1e}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("sanitized", __doc__)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--plans", default=",".join(CLASSES), help="comma-separated; all if not given")
    options = parser.parse_args(argv)
    done: dict[str, int] = {}
    for call in calls():
        if call.plan not in options.plans.split(","):
            continue
        os.environ[PLAN] = call.plan
        try:
            check(call, options.device)
        except Exception as error:
            print(f"{call}: {error}", flush=True)
            return 1
        done[call.plan] = done.get(call.plan, 0) + 1
    if options.device == "cuda":
        torch.cuda.synchronize()
    print(f"checked {sum(done.values())} calls: {', '.join(f'{count} of {plan}' for plan, count in done.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
