"""The regimes of csrc/loss/plan.h and inputs at their limits, for the tests of the emulated CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import udskd
from tests.loss.helpers import emulated, forms
from tests.loss.helpers.inputs import LossInputs, can_fuse, make
from tests.loss.test_values import assert_as_exact_as_eager

# Regimes, and the largest number of classes in their tests: more than fits for some dtypes, for which the library takes
# another regime.
REGIMES = {
    **{"lanes8": 100, "warp": 100, "warp8": 1025, "block128": 1025},
    **{"block256": 8191, "shared": 21841, "cluster": 50257, "split": 50257},
}
KERNELS = {  # the name in the log: the thread group of a row, and the memory of its logits
    **{
        "lanes8": "ThreadGroup<8>, InRegisters",
        "warp": "ThreadGroup<32>, InRegisters<1>",
        "warp8": "ThreadGroup<32>, InRegisters<8>",
    },
    **{"block128": "Block<128>, InRegisters", "block256": "Block<256>, InRegisters", "shared": "Block<256>, InShared"},
    **{"cluster": "Cluster<256>, InShared", "split": "BlockGroup<256>, InMemory"},
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = {
    "narrow": [((3, 257, 1, 0)[classes % 4], classes) for classes in range(2, 34)],
    "hundreds": [(257, 100), (1, 100), (3, 1000), (1, 1023), (3, 1024), (1, 1025)],
    "thousands": [(1, 4095), (3, 4096), (1, 4097), (3, 8191)],
    "wide": [(3, 21841), (1, 50257)],
}
VARIANTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"target": "soft"}, {"label_smoothing": 0.1}),
    ({"target": None}, {"trust": "uncertain"}),
    ({"teacher": False}, {}),
    ({"two": False}, {"uncertainty": "margin"}),
    ({}, {"temperature": 2.5, "peer_temperature": 1.7, "uncertainty": "max_prob", "reduction": "sum"}),
    ({}, {"reduction": "none", "normalize_weights": True}),
    ({}, {"normalize_weights": True, "uncertainty_temperature": 3.0}),
    ({}, {"uncertainty": "none", "ce_weight": 0.0}),
    ({}, {"label_smoothing": 0.1, "temperature": 1.0, "uncertainty": "margin"}),
    ({}, {"detach_peer": False}),
]


def shapes(regime: str, group: str) -> list[tuple[int, int]]:
    """Many rows only if each has few threads: the emulator takes a microsecond for a thread."""
    most = 257 if REGIMES[regime] < 5000 else 37
    return [(min(rows, most), classes) for rows, classes in SHAPES[group] if classes <= REGIMES[regime]]


def groups() -> list[tuple[str, str]]:
    return [(regime, group) for regime in REGIMES for group in SHAPES if shapes(regime, group)]


def assert_exact(rows: int, classes: int, dtype: torch.dtype, variant: int) -> None:
    """As exact as PyTorch in one of the variants, which alternate between the forms."""
    given, options = VARIANTS[variant % len(VARIANTS)]
    if rows == 0:  # the mean of no rows is NaN
        options = options | {"reduction": "sum"}
    times = max(1, min(8, 100 // max(rows, 1))) if rows * classes < 5000 else 2
    problems = [make(rows, classes, seed=classes + 10**5 * k, ignored=rows // 3, **given) for k in range(times)]
    fused = can_fuse("emulated", options) and dtype != torch.float16 and variant % 3 != 0
    with forms.only("fused" if fused else "recompute"):
        assert_as_exact_as_eager("emulated", problems, dtype, (1, 2), **options)


def results(form: Any, problem: LossInputs, **options: Any) -> list[Tensor]:
    """All outputs, and the gradients of the inputs that require them, for a grad_output of 1.5."""
    with forms.only(form):
        out = udskd.dual_student_loss(*problem.inputs, backend="emulated", **options)  # type: ignore[arg-type]
    learning = [x for x in problem.logits if x.requires_grad]
    return [x.detach() for x in out] + list(torch.autograd.grad(out.loss, learning, torch.full_like(out.loss, 1.5)))


def launches(run: Callable[[], Any]) -> list[str]:
    emulated.log()
    run()
    return [line for line in emulated.log() if not line.startswith("memset")]
