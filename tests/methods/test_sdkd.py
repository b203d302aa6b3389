"""Student-driven distillation against its formula, written out with PyTorch's own functions on a student's copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.methods.helpers.proxies import (
    RAMP,
    C,
    MethodRun,
    Scaled,
    distance,
    formula,
    kl,
    proxy_by_hand,
    same_gradients,
)
from udskd.config.schema import ROLES, STUDENTS
from udskd.loss.functional import dual_student_loss
from udskd.methods.base import COMPONENTS
from udskd.methods.sdkd import feature_distance


@pytest.mark.parametrize("weights", ["auto", "wsl", "entropy"])
def test_the_loss_and_its_gradients_are_the_formulas(weights: str) -> None:
    run = MethodRun(target__weight=weights).stir()
    run.method.at(2.0)
    answers = run.answers()
    same_gradients(run.method.loss(answers)["loss"], formula(run, answers, weights), run.parameters())


def test_layers_of_other_resolutions_are_pooled_or_repeated() -> None:
    layers: dict[str, Any] = {
        "sdkd__teacher_layers": "features.2,features.6",
        "sdkd__student_a_layers": "features.3,features.4",
    }
    run = MethodRun(**layers).stir()
    run.method.at(2.0)
    answers = run.answers()
    same_gradients(run.method.loss(answers)["loss"], formula(run, answers), run.parameters())


def test_a_mixed_target_is_accepted() -> None:
    run = MethodRun().stir()
    run.method.at(2.0)
    mixed = 0.7 * F.one_hot(run.target, C).double() + 0.3 * F.one_hot(run.target.roll(1), C)
    answers = run.answers(target=mixed)
    same_gradients(run.method.loss(answers)["loss"], formula(run, answers), run.parameters())


def test_a_student_and_its_proxy_learn_from_that_students_target_and_shapes_add_their_losses() -> None:
    run = MethodRun(shapes=lambda config: [Scaled(config)]).stir()
    run.method.at(2.0)
    answers, scales = run.answers(), {"student_a": 2.0, "student_b": 3.0}
    terms = run.method.loss(answers)
    assert terms["scaled"] == 0.5
    same_gradients(terms["loss"], formula(run, answers, scales=scales) + 0.5, run.parameters())


def test_the_terms_are_the_students_and_detached() -> None:
    run = MethodRun().stir()
    run.method.at(2.0)
    answers = run.answers()
    assert answers.teacher is not None
    terms = run.method.loss(answers)
    more = ("proxy_ce_a", "proxy_ce_b", "feature_a", "feature_b")
    assert set(terms) == {"loss", *COMPONENTS, "weight", "entropy", *more}
    assert not any(terms[name].requires_grad for name in terms if name != "loss")
    for role, x in (("student_a", "a"), ("student_b", "b")):
        student, (proxy, fused) = answers.student(role), proxy_by_hand(run, role, answers.features["teacher"])
        torch.testing.assert_close(terms[f"ce_{x}"], F.cross_entropy(student, run.target))
        torch.testing.assert_close(terms[f"kd_{x}"], kl(answers.teacher, student, 3.0).mean())
        torch.testing.assert_close(terms[f"peer_{x}"], kl(proxy, student, 2.0).mean())
        torch.testing.assert_close(terms[f"proxy_ce_{x}"], F.cross_entropy(proxy, run.target))
        torch.testing.assert_close(terms[f"feature_{x}"], distance(answers.features[role], fused))
    assert torch.equal(terms["weight"], torch.ones_like(terms["weight"]))
    p = answers.teacher.softmax(-1)
    torch.testing.assert_close(terms["entropy"], -(p * p.log()).sum(-1))


def test_without_rows_the_loss_is_nan_as_a_mean_is_and_the_gradients_are_0() -> None:
    run = MethodRun().stir()
    answers = run.answers(images=run.images[:0], target=run.target[:0])
    loss = run.method.loss(answers)["loss"]
    torch.autograd.backward(loss)
    assert loss.isnan()
    assert all(p.grad is None or not p.grad.any() for p in run.parameters())


# --- gradients ----------------------------------------------------------------------------------------------------


def test_a_students_gradient_takes_the_proxys_outputs_as_constants() -> None:
    run = MethodRun().stir()
    run.method.at(2.0)
    answers = run.answers()
    parts = []
    for role in STUDENTS:
        logits, fused = run.proxies[role](run.images, answers.features["teacher"])
        options = {**run.method.arguments, "peer_weight": RAMP * 0.375}
        out = dual_student_loss(answers.teacher, answers.student(role), logits.detach(), run.target, **options)
        parts.append(out.loss + 1.5 * feature_distance(answers.features[role], [f.detach() for f in fused]))
    students = [p for role in STUDENTS for p in run.setting.networks[role].parameters()]
    loss = run.method.loss(answers)["loss"]
    got, want = (torch.autograd.grad(x, students, retain_graph=True) for x in (loss, parts[0] + parts[1]))
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


def test_of_teacher_and_proxy_the_fusion_blocks_alone_learn() -> None:
    run = MethodRun().stir()
    answers = run.answers()
    run.method.at(2.0)
    student = run.setting.networks["student_a"]
    logits, fused = run.proxies["student_a"](run.images, answers.features["teacher"])
    torch.autograd.backward(logits.sum() + fused[0].square().sum())
    assert all(p.grad is None for role in ROLES for p in run.setting.networks[role].parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in run.proxies["student_a"].parameters())
    assert all(p.grad is None for p in run.proxies["student_b"].parameters())
    assert all(p.requires_grad for p in student.parameters())


def test_a_proxys_parameters_and_buffers_are_its_blocks_alone() -> None:
    run = MethodRun()
    for proxy in run.proxies.values():
        assert all(name.startswith("blocks.") for name in proxy.state_dict())
        assert {id(p) for p in proxy.parameters()} == {id(p) for block in proxy.blocks for p in block.parameters()}  # type: ignore[union-attr]
        assert len(proxy.blocks) == 2  # type: ignore[arg-type]
