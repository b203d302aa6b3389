"""Random shapes, strides, dtypes, options and values from hypothesis. Finite values are compared with the oracle of
eager.py, infinities and NaN with the reference backend, both in float64 of the same rounded inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import udskd
from tests.loss.helpers import eager
from tests.loss.helpers.inputs import DTYPES, LossInputs, backends, device_of

NATIVE = backends("cpu", "emulated", "cuda")
NAMES = ("loss", "ce_a", "ce_b", "kd_a", "kd_b", "peer_a", "peer_b", "weight", "entropy")
LAYOUTS = ("plain", "transposed", "sliced", "padded rows", "every other row", "backwards", "expanded")
INFINITIES = ("few -inf", "many -inf", "all but one -inf")
VALUES = {
    "finite": ("plain", "offset", "one-hot", "equal"),
    "infinities": ("plain", "offset", "one-hot", "equal", *INFINITIES),
    "poisoned": ("plain", "offset", "few -inf", "many -inf", "nan", "+inf", "all -inf"),
}


@dataclass(frozen=True)
class Case:
    problem: LossInputs
    learning: tuple[int, ...]
    options: dict[str, Any]


def laid(x: Tensor, layout: str) -> Tensor:
    """x in a memory layout; "expanded" repeats its first row."""
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "sliced":
        return torch.stack([x, -x], -1).flatten(1)[:, ::2]
    if layout == "padded rows":
        return torch.cat([x, x.new_full((len(x), 3), torch.nan)], 1)[:, : x.shape[1]]
    if layout == "every other row":
        return torch.stack([x, x.new_full(x.shape, torch.nan)], 1).flatten(0, 1)[::2]
    if layout == "backwards":  # PyTorch has no negative strides; an unaligned start instead
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    return x[:1].expand(x.shape) if layout == "expanded" and len(x) else x.clone()


def logits(shape: tuple[int, int], scale: float, values: str, g: torch.Generator) -> Tensor:
    x = torch.randn(shape, generator=g, dtype=torch.float64).clamp(-5, 5) * scale
    row, place = (int(torch.randint(0, max(n, 1), (), generator=g)) for n in shape)
    if values in INFINITIES:
        share = {"few -inf": 0.05, "many -inf": 0.5, "all but one -inf": 1.0}[values]
        out = torch.rand(shape, generator=g) < share
        out[:, place] = False
        x = x.masked_fill(out, -math.inf)
    elif values == "offset":
        x = x + (1e4 if row % 2 else -1e4)
    elif values == "one-hot":
        x = torch.zeros(shape, dtype=torch.float64)
        x[:, place] = 3e4  # no mass elsewhere at any temperature, neither in float32 nor in float64
    elif values == "equal":
        x = x * 0
    elif values != "plain" and len(x):
        x[row, place if values != "all -inf" else slice(None)] = {"nan": math.nan, "+inf": math.inf}.get(
            values, -math.inf
        )
    return x


@st.composite
def cases(draw: st.DrawFn, values: str) -> Case:
    shape = (
        draw(st.integers(0, 9)),
        draw(st.one_of(st.integers(2, 70), st.sampled_from([511, 1024, 2047, 2048, 2049]))),
    )
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    dtype, scale = draw(st.sampled_from(DTYPES)), draw(st.sampled_from([0.01, 1.0, 3.0]))
    dtypes = (draw(st.sampled_from((dtype, *DTYPES))), dtype, dtype)
    there = (draw(st.booleans()), True, draw(st.booleans()))
    learning = tuple(k for k in range(3) if there[k] and draw(st.booleans() if k == 0 else st.just(True)))
    made: list[Tensor | None] = []
    for k in range(3):
        x = logits(shape, scale, draw(st.sampled_from(VALUES[values])), g).to(dtypes[k])
        made.append(laid(x, draw(st.sampled_from(LAYOUTS))).requires_grad_(k in learning) if there[k] else None)
    options = {
        "temperature": draw(st.sampled_from([0.5, 1.0, 2.0, 3.0, 4.0, 7.3, 20.0])),
        "peer_temperature": draw(st.sampled_from([None, 1.0, 5.0])),
        "ce_weight": draw(st.sampled_from([1.0, 0.3])),
        "kd_weight": draw(st.sampled_from([0.9, 0.0])),
        "peer_weight": draw(st.sampled_from([0.5, 0.0])),
        "uncertainty": draw(st.sampled_from(["entropy", "max_prob", "margin", "none"])),
        "trust": draw(st.sampled_from(["confident", "uncertain"])),
        "uncertainty_temperature": draw(st.sampled_from([1.0, 3.0])),
        "detach_peer": draw(st.booleans()),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
    }
    target = torch.randint(0, shape[1], (shape[0],), generator=g)
    terms = there[0] * options["kd_weight"] + there[2] * options["peer_weight"]
    kind = draw(st.sampled_from([None, "hard", "ignored", "soft"] if terms else ["hard", "ignored", "soft"]))
    if kind == "ignored":
        target[torch.rand(shape[0], generator=g) < 0.4] = -100
    if kind == "soft":
        target = torch.rand(shape, generator=g, dtype=torch.float64) + 0.01
        target = laid((target / target.sum(-1, keepdim=True)).to(dtype), draw(st.sampled_from(LAYOUTS)))
    problem = LossInputs(*made, target if kind else None)  # type: ignore[arg-type]
    weight = weights(problem, options)
    if values != "finite" and (weight < 1e-3).any():  # whether 0 times an infinite divergence is NaN is up to rounding
        options["uncertainty"] = "none"
    options["normalize_weights"] = draw(st.booleans()) and bool(weight.nanmean() > 0.1)
    return Case(problem, learning, options)


def weights(problem: LossInputs, options: dict[str, Any]) -> Tensor:
    """The teacher's weights, before they are normalised, of the rows that are not ignored."""
    names = ("uncertainty", "trust", "uncertainty_temperature")
    chosen = {name: options[name] for name in names} | {"reduction": "none"}
    weight = udskd.dual_student_loss(*problem.inputs[:3], backend="reference", **chosen).weight
    hard = problem.target is not None and problem.target.dim() == 1
    return weight[problem.target != -100] if hard else weight


def evaluate(loss: Any, case: Case, problem: LossInputs, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs, and the gradients under an upstream gradient of 1.5, on the CPU."""
    out = loss(*problem.inputs, **(case.options | options))
    leaves = [x for k, x in enumerate(problem.inputs[:3]) if k in case.learning and x is not None]
    gradients: list[Tensor] = []
    if leaves and out.loss.requires_grad:
        given = torch.autograd.grad(out.loss, leaves, torch.full_like(out.loss, 1.5), allow_unused=True)
        gradients = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, given, strict=True)]
    gradients = gradients or [torch.zeros_like(x) for x in leaves]
    return [x.detach().cpu() for x in out], [x.cpu() for x in gradients]


def moved(case: Case, device: str) -> LossInputs:
    """The inputs on a device, with the same strides."""

    def there(x: Tensor | None) -> Tensor | None:
        if x is None or device == "cpu":
            return x
        memory = torch.empty(0, dtype=x.dtype).set_(x.detach().untyped_storage()).to(device)
        return memory.as_strided(x.shape, x.stride(), x.storage_offset()).requires_grad_(x.requires_grad)

    return LossInputs(*(there(x) for x in case.problem.inputs))  # type: ignore[arg-type]


def exactly(case: Case) -> LossInputs:
    """The same numbers in float64."""
    inputs = [None if x is None else x.detach() for x in case.problem.inputs]
    wide = [x.double() if x is not None and x.is_floating_point() else x for x in inputs]
    return LossInputs(*(x if x is None or k == 3 else x.requires_grad_(k in case.learning) for k, x in enumerate(wide)))  # type: ignore[arg-type]


def assert_close(ours: Tensor, exact: Tensor, allowed: float, name: str) -> None:
    eps, smallest = torch.finfo(ours.dtype).eps, torch.finfo(ours.dtype).eps * torch.finfo(ours.dtype).tiny
    torch.testing.assert_close(
        ours.double(),
        exact,
        rtol=allowed + 2 * eps,
        atol=allowed + smallest,
        equal_nan=True,
        msg=lambda m: f"{name}: {m}",
    )


def spread(problem: LossInputs) -> float:
    """The largest difference between finite logits of a network."""
    finite = (x.detach()[x.isfinite()] for x in problem.logits)
    return max((x.max() - x.min()).item() if x.numel() else 0.0 for x in finite)


def poisoned(problem: LossInputs) -> Tensor:
    """The rows that are NaN because of a network's logits."""
    return torch.stack([~x.amax(-1).isfinite() for x in problem.logits]).any(0)


def assert_agrees(backend: str, case: Case, loss: Any) -> None:
    """Equal NaN and infinities; other numbers close to float64's, for the arithmetic and for how large they may be."""
    problem, wide = case.problem, exactly(case)
    ours = evaluate(udskd.dual_student_loss, case, moved(case, device_of(backend)), backend=backend)
    exact = evaluate(loss, case, wide)
    each, _ = evaluate(loss, case, wide, reduction="none")
    hot = max(case.options["temperature"], case.options["peer_temperature"] or 0.0, 1.0)
    allowed = (5e-6 if ours[0][0].dtype == torch.float32 else 1e-11) * (hot * (hot + spread(wide)) + 1)
    for name, x, e in zip(NAMES, ours[0], exact[0], strict=True):
        assert_close(x, e, allowed, name)
    for k, x, e in zip(case.learning, ours[1], exact[1], strict=True):
        assert x.dtype == problem.inputs[k].dtype  # type: ignore[union-attr]
        # What flows into the first argument of an infinite divergence has no meaning.
        clear = ~each[0].isnan() if k and case.options["detach_peer"] else each[0].isfinite()
        assert_close(x[clear], e[clear], allowed, f"gradient of {k}")
        broken = poisoned(wide) & each[0].isnan()
        assert torch.equal(x[broken].isnan().any(-1), e[broken].isnan().any(-1))


plain = partial(udskd.dual_student_loss, backend="reference")


@pytest.mark.parametrize("backend", NATIVE)
@given(case=cases("finite"))
def test_any_finite_input_agrees_with_the_oracle(backend: str, case: Case) -> None:
    assert_agrees(backend, case, eager.dual_student_loss)


@pytest.mark.parametrize("backend", NATIVE)
@given(case=cases("infinities"))
def test_any_excluded_classes_agree_with_plain_pytorch(backend: str, case: Case) -> None:
    assert_agrees(backend, case, plain)


@pytest.mark.parametrize("backend", NATIVE)
@given(case=cases("poisoned"))
def test_any_poisoned_rows_agree_with_plain_pytorch(backend: str, case: Case) -> None:
    assert_agrees(backend, case, plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("term", ["ce", "kd", "peer"])
@pytest.mark.parametrize("backend", NATIVE)
def test_nan_is_not_hidden_by_a_class_that_is_excluded_elsewhere_in_the_row(
    backend: Any, term: str, dtype: torch.dtype
) -> None:
    broken, excluding = torch.zeros(2, 1, 40, dtype=dtype, device=device_of(backend))
    broken[0, 0], excluding[0, 1] = math.nan, -math.inf
    if term == "ce":
        both = torch.where(broken.isnan(), broken, excluding)
        label = torch.tensor([2], device=device_of(backend))
        out = udskd.dual_student_loss(None, both, None, label, label_smoothing=0.1, backend=backend)
        assert out.ce_a.isnan()
    elif term == "kd":
        out = udskd.dual_student_loss(broken, excluding, uncertainty="none", backend=backend)
        assert out.kd_a.isnan()
    else:
        out = udskd.dual_student_loss(None, excluding, broken, backend=backend)
        assert out.peer_a.isnan()
        assert out.peer_b.isnan()
