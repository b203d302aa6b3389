"""Each method against its formula, written out with PyTorch's own functions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from udskd import methods
from udskd.config.schema import Config, LossConfig
from udskd.errors import ConfigError
from udskd.methods import Answers, Method

OPTIONS = LossConfig(temperature=3.0, peer_temperature=2.0, ce_weight=0.7, kd_weight=0.8, peer_weight=0.4)
B, C = 6, 5


def build(name: str, loss: LossConfig = OPTIONS) -> Method:
    return methods.build(Config(method=name, loss=loss))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    t, a, b = (3 * torch.randn(B, C, dtype=torch.float64, generator=generator) for _ in range(3))
    return t, a.requires_grad_(), b.requires_grad_(), torch.randint(0, C, (B,), generator=generator)


def kl(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    """T² KL(p ‖ q) for each row."""
    terms = F.kl_div((q / temperature).log_softmax(-1), (p / temperature).softmax(-1), reduction="none")
    return temperature**2 * terms.sum(-1)


def certainty(t: Tensor) -> Tensor:
    p = t.softmax(-1)
    return 1 + (p * p.log()).sum(-1) / math.log(C)


def expected(name: str, t: Tensor, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    loss = torch.zeros((), dtype=torch.float64)
    weight = certainty(t) if name == "udskd" else torch.ones(B, dtype=torch.float64)
    for own, peer in ((a, b), (b, a)):
        loss = loss + 0.7 * F.cross_entropy(own, y)
        if name in ("kd", "udskd"):
            loss = loss + 0.8 * (weight * kl(t, own, 3.0)).mean()
        if name in ("dml", "udskd"):
            loss = loss + 0.4 * kl(peer.detach(), own, 2.0).mean()
    return loss


@pytest.mark.parametrize("name", ["ce", "kd", "dml", "udskd"])
def test_the_loss_and_its_gradients_are_the_formulas(name: str, batch: tuple[Tensor, ...]) -> None:
    t, a, b, y = batch
    method = build(name)
    loss = method.loss(Answers(t if method.uses_teacher else None, a, b, y))["loss"]
    want = expected(name, t, a, b, y)
    torch.testing.assert_close(loss, want)
    for got, expect in zip(torch.autograd.grad(loss, (a, b)), torch.autograd.grad(want, (a, b)), strict=True):
        torch.testing.assert_close(got, expect)


@pytest.mark.parametrize("name", ["ce", "kd", "dml", "udskd", "cud"])
def test_the_components_add_up_and_are_detached(name: str, batch: tuple[Tensor, ...]) -> None:
    t, a, b, y = batch
    method = build(name)
    terms = method.loss(Answers(t, a, b, y))
    total = sum(w * (terms[f"{part}_a"] + terms[f"{part}_b"]) for part, w in (("ce", 0.7), ("kd", 0.8), ("peer", 0.4)))
    torch.testing.assert_close(terms["loss"].detach(), total)
    assert not any(terms[c].requires_grad for c in methods.COMPONENTS)
    assert ("weight" in terms) == ("entropy" in terms) == method.uses_teacher


def test_the_weight_of_udskd_is_the_teachers_certainty(batch: tuple[Tensor, ...]) -> None:
    t, a, b, y = batch
    terms = build("udskd").loss(Answers(t, a, b, y))
    torch.testing.assert_close(terms["weight"], certainty(t))
    torch.testing.assert_close(terms["entropy"], (1 - certainty(t)) * math.log(C))


def test_without_uncertainty_and_peer_udskd_is_kd(batch: tuple[Tensor, ...]) -> None:
    t, a, b, y = batch
    plain = LossConfig(uncertainty="none", peer_weight=0.0)
    losses = (
        build(name, loss).loss(Answers(t, a, b, y))["loss"] for name, loss in (("udskd", plain), ("kd", LossConfig()))
    )
    torch.testing.assert_close(*losses)


def test_a_mixed_target_is_accepted(batch: tuple[Tensor, ...]) -> None:
    _, a, b, y = batch
    mixed = 0.3 * F.one_hot(y, C).double() + 0.7 / C
    loss = build("ce", LossConfig()).loss(Answers(None, a, b, mixed))["loss"]
    torch.testing.assert_close(loss, F.cross_entropy(a, mixed) + F.cross_entropy(b, mixed))


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r'"udksd" \(did you mean "udskd"\?\); known are ce, kd, dml, udskd, cud'):
        methods.get("udksd")
