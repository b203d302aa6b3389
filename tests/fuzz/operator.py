"""udskd.dual_student_loss. Valid calls: the error against the float64 oracle is at most twice PyTorch's own. Hostile
calls: one sentence that names the argument, the same from every backend, or a result of the right shape and dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

import udskd
from tests.fuzz import children
from tests.fuzz.case import Case
from tests.loss.helpers.hostile import CLASSES, DTYPES, INTEGERS, NUMBERS, ROWS, SHAPES, shrunk
from tests.loss.helpers.hostile import LAYINGS as RAW_LAYINGS
from tests.loss.helpers.inputs import DTYPES as FLOATING
from tests.loss.helpers.inputs import LossInputs, make
from tests.loss.test_values import assert_as_exact_as_eager
from udskd import _native
from udskd.loss.functional import DEFAULTS

BACKENDS = [name for name in ("cpu", "reference") if _native.unavailable(name) is None]
SECONDS = 60.0
INPUTS = ("teacher", "student_a", "student_b", "target")
NAMES = (*INPUTS, *DEFAULTS)
LAYINGS = [laying for laying in RAW_LAYINGS if laying is not shrunk]  # PyTorch itself refuses to read beyond a storage
DOCUMENTED = (ValueError, TypeError, IndexError, NotImplementedError)
_ODD: tuple[Any, ...] = (None, True, False, "", "entropy", "mean", b"x", [], [1.0], (), {}, 1j)
# Values of any type, by their text: JSON holds neither long integers nor objects.
VALUES: dict[str, Any] = {
    **{repr(x): x for x in NUMBERS},
    **{repr(x): x for x in INTEGERS},
    **{repr(x): x for x in _ODD},
    **{"10**5000": 10**5000, "-10**5000": -(10**5000), "text": "x" * 5_000, "control": "a\n\0\x1b[31m"},
    **{"array": np.zeros((ROWS, CLASSES)), "tuple": (torch.zeros(ROWS, CLASSES),), "object": object(), "type": int},
}
VALID: dict[str, tuple[Any, ...]] = {
    "temperature": (0.5, 1.0, 2.0, 3.0, 4.0, 7.3, 20.0),
    "peer_temperature": (None, 1.0, 5.0),
    "ce_weight": (1.0, 0.3, 0.0),
    "kd_weight": (0.9, 2.0, 0.0),
    "peer_weight": (0.5, 1.5, 0.0),
    "uncertainty": ("entropy", "max_prob", "margin", "none"),
    "trust": ("confident", "uncertain"),
    "uncertainty_temperature": (1.0, 3.0),
    "detach_peer": (True, False),
    "label_smoothing": (0.0, 0.1, 0.9),
    "reduction": ("mean", "sum", "none"),
}


class Operator:
    def draw(self, random: Random) -> Case:
        return _draw_valid(random) if random.random() < 0.5 else _draw_hostile(random)

    def findings(self, cases: list[Case]) -> list[str | None]:
        return children.findings(cases, _run, SECONDS)

    def smaller(self, case: Case) -> Iterable[Case]:
        """Without one of the options or changes, and with fewer rows or classes."""
        part = "changes" if "changes" in case else "options"
        if case.get("module"):
            yield {**case, "module": False}
        for name in case[part]:
            yield {**case, part: {key: value for key, value in case[part].items() if key != name}}
        for size, least in (("rows", 1), ("classes", 2)) if part == "options" else ():
            if case[size] > least:
                yield {**case, size: max(least, case[size] // 2)}


def _run(case: Case) -> str | None:
    return _run_hostile(case) if "changes" in case else _run_valid(case)


def _draw_valid(random: Random) -> Case:
    """A call within the contract. Of several problems of few numbers, of which one may be lucky, the largest errors
    are compared."""
    sizes = (random.randrange(2, 70), random.choice((511, 512, 1000, 1024, 2047, 2048, 2049, 4097)))
    options = {name: random.choice(values) for name, values in VALID.items() if random.random() < 0.5}
    there = {"teacher": random.random() < 0.8, "two": random.random() < 0.8}
    return {
        **{
            "rows": random.choice((*range(1, 10), 33)),
            "classes": random.choice(sizes),
            "seed": random.randrange(2**31),
        },
        **{"dtype": random.randrange(len(FLOATING)), "scale": random.choice((0.01, 1.0, 3.0)), **there},
        **{
            "target": random.choice(("hard", "soft", "ignored", None)),
            "learning": random.choice(((0, 1, 2), (1, 2))),
        },
        **{"backend": random.choice(BACKENDS), "options": options},
    }


def _run_valid(case: Case) -> str | None:
    count = 12 if case["rows"] * case["classes"] < 5_000 else 4
    problems = [_problem(case, case["seed"] + k) for k in range(count)]
    there = [k for k in range(3) if problems[0].inputs[k] is not None]
    try:
        learning = tuple(k for k, place in enumerate(there) if place in case["learning"])
        assert_as_exact_as_eager(
            case["backend"], problems, FLOATING[case["dtype"]], tuple(there[k] for k in learning), **case["options"]
        )
    except AssertionError as error:
        return f"larger error than allowed: {' '.join(str(error).split())}"
    return None


def _problem(case: Case, seed: int) -> LossInputs:
    ignored = case["rows"] // 2 if case["target"] == "ignored" else 0
    target = "hard" if case["target"] == "ignored" else case["target"]
    return make(
        case["rows"],
        case["classes"],
        seed=seed,
        scale=case["scale"],
        teacher=case["teacher"],
        two=case["two"],
        target=target,
        ignored=ignored,
    )


def _draw_hostile(random: Random) -> Case:
    """A good call of which one to three arguments are replaced."""
    names = random.sample(NAMES, random.choice((1, 1, 1, 2, 3)))
    return {
        "changes": {name: _draw_value(name, random) for name in names},
        "leading": random.choice(([ROWS], [ROWS], [1, ROWS], [ROWS, 1, 1])),
        "module": random.random() < 0.3,
    }


def _draw_value(name: str, random: Random) -> Any:
    takes_tensor = name in INPUTS or name in ("uncertainty", "ce_weight", "kd_weight", "peer_weight")
    if random.random() < (0.8 if takes_tensor else 0.1):
        return {
            "shape": random.choice(SHAPES),
            "dtype": str(random.choice(DTYPES)).removeprefix("torch."),
            "laying": random.randrange(len(LAYINGS)) if random.random() < 0.5 else 0,
            "scale": random.choice((0.0, 1.0, 30.0, 1e30, 1e300)),
            "special": random.choice((None, None, None, *NUMBERS)),
            "learns": random.random() < 0.3,
        }
    if name in VALID and random.random() < 0.2:
        return repr(random.choice(VALID[name]))
    return random.choice(list(VALUES))


def _value(spec: Any) -> Any:
    if isinstance(spec, str):
        return VALUES[spec] if spec in VALUES else next(x for xs in VALID.values() for x in xs if repr(x) == spec)
    return _tensor(**spec)


def _tensor(shape: list[int], dtype: str, laying: int, scale: float, special: float | None, learns: bool) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).abs() * scale
    if special is not None and x.numel():
        x.view(-1)[-1] = special
    x = x.to(getattr(torch, dtype))
    with suppress(RuntimeError, NotImplementedError):  # no such layout of this dtype
        x = LAYINGS[laying](x)
    return x.requires_grad_() if learns and x.dtype.is_floating_point and x.layout == torch.strided else x


def _run_hostile(case: Case) -> str | None:
    results = [_outcome(backend, case) for backend in BACKENDS]
    for result in results:
        if isinstance(result, Exception):
            text = str(result)
            if not isinstance(result, DOCUMENTED):
                return f"{type(result).__name__} is not documented: {text}"
            if len(text.splitlines()) != 1 or len(text) > 1_000 or not any(name in text for name in NAMES):
                return f"{type(result).__name__} is not a sentence that names the argument: {text!r}"
        elif isinstance(result, str):
            return result
    texts = [f"{type(x).__name__}: {x}" if isinstance(x, Exception) else "" for x in results]
    different = [f"the backends differ: {a or 'a result'}, {b or 'a result'}" for a, b in pairwise(texts) if a != b]
    return next(iter(different), None)


def _outcome(backend: str, case: Case) -> Exception | str | None:
    """The exception, what is wrong with the result, or None."""
    arguments = {**_good(case["leading"]), "backend": backend}
    arguments |= {name: _value(spec) for name, spec in case["changes"].items()}
    try:
        out = _call_module(arguments) if case["module"] else udskd.dual_student_loss(**arguments)
        learning = [x for x in arguments.values() if isinstance(x, Tensor) and x.requires_grad]
        gradients: Iterator[Tensor | None] = iter(())
        if out.loss.requires_grad:
            gradients = iter(torch.autograd.grad(out.loss.sum(), learning, allow_unused=True))
    except Exception as error:
        return error
    rows = arguments["student_a"].shape[:-1]
    wide = any(x.dtype == torch.float64 for x in (arguments["teacher"], arguments["student_a"]) if x is not None)
    if {x.dtype for x in out} != {torch.float64 if wide else torch.float32}:
        return f"the results have the dtypes {[str(x.dtype) for x in out]}"
    if out.weight.shape != rows or out.loss.shape != (rows if arguments.get("reduction") == "none" else ()):
        return f"the results have the shapes {[list(x.shape) for x in out]}"
    wrong = [
        x
        for x, g in zip(learning, gradients, strict=False)
        if g is not None and (g.shape, g.dtype) != (x.shape, x.dtype)
    ]
    return f"gradients of another shape or dtype than {len(wrong)} tensors" if wrong else None


def _call_module(arguments: dict[str, Any]) -> udskd.DualStudentLossOutput:
    inputs = {name: x for name, x in arguments.items() if name in INPUTS}
    module = udskd.DualStudentLoss(**{name: x for name, x in arguments.items() if name not in INPUTS})
    return module(**inputs)  # type: ignore[no-any-return]


def _good(leading: list[int]) -> dict[str, Any]:
    """Arguments that are right, for logits [*leading, CLASSES]."""
    g = torch.Generator().manual_seed(1)
    t, a, b = (torch.randn(*leading, CLASSES, generator=g) for _ in range(3))
    return {"teacher": t, "student_a": a.requires_grad_(), "student_b": b, "target": torch.arange(ROWS).view(leading)}
