"""The proxy and its student, in every mode in which a training loop runs them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.methods.helpers.proxies import NETWORKS, MethodRun, kl, proxy_by_hand
from tests.models.test_features import world_of_one
from udskd.config.schema import STUDENTS


def without_dropout(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return module


@pytest.mark.parametrize(
    ("student", "size", "training"),
    [("tiny_plain_3", 8, True), ("tiny_plain_3", 8, False), ("tiny_separable_2", 9, True), ("mobilenet_v2", 16, True)],
)
def test_the_proxy_begins_as_its_student_to_the_last_bit(student: str, size: int, training: bool) -> None:
    run = MethodRun({**NETWORKS, "student_a": student}, size, torch.float32)
    without_dropout(run.setting.networks["student_a"]).train(training)
    answers = run.answers()
    logits, fused = run.proxies["student_a"](run.images, answers.features["teacher"])
    assert torch.equal(logits, answers.student_a)
    for mine, theirs in zip(fused, answers.features["student_a"], strict=True):
        assert torch.equal(mine, theirs)


def test_after_a_step_of_the_blocks_the_proxy_differs_and_the_student_does_not() -> None:
    run = MethodRun()
    student = run.setting.networks["student_a"]
    before = copy.deepcopy(student.state_dict())
    answers = run.answers()
    statistics = {name: b.clone() for name, b in student.named_buffers()}
    torch.autograd.backward(run.method.loss(answers)["loss"])
    torch.optim.SGD(run.proxies["student_a"].parameters(), 0.1).step()
    logits, _ = run.proxies["student_a"](run.images, answers.features["teacher"])
    assert (logits - answers.student_a).abs().max() > 1e-4
    assert all(torch.equal(p, before[name]) for name, p in student.named_parameters())
    assert all(torch.equal(b, statistics[name]) for name, b in student.named_buffers())


def test_the_proxy_follows_its_student() -> None:
    run = MethodRun()
    answers = run.answers()
    with torch.no_grad():
        for parameter in run.setting.networks["student_a"].parameters():
            parameter.mul_(1.5).add_(0.1)
    logits, _ = run.proxies["student_a"](run.images, answers.features["teacher"])
    assert torch.equal(logits, run.answers().student_a)
    assert not torch.equal(logits, answers.student_a)


def test_the_proxy_leaves_the_students_batch_norm_and_hooks_alone() -> None:
    run = MethodRun().stir()
    answers, student = run.answers(), run.setting.networks["student_a"]
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    hooks = [len(layer._forward_hooks) for layer in student.modules()]
    run.proxies["student_a"](run.images, answers.features["teacher"])
    with pytest.raises(RuntimeError):
        run.proxies["student_a"](run.images[:, :2], answers.features["teacher"])
    with pytest.raises(RuntimeError):
        run.proxies["student_a"](run.images, tuple(f[:, :1] for f in answers.features["teacher"]))
    assert all(torch.equal(buffer, before[name]) for name, buffer in student.named_buffers())
    assert any(name.endswith("num_batches_tracked") for name in before)
    assert [len(layer._forward_hooks) for layer in student.modules()] == hooks
    assert torch.equal(run.answers().student_a, answers.student_a)


# --- the loop's ways -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epoch", "factor"), [(0.0, 0.0), (1.0, 0.25), (4.0, 1.0), (50.0, 1.0)])
def test_the_proxys_weight_grows_from_0(epoch: float, factor: float) -> None:
    run = MethodRun(sdkd__feature_weight=0.0).stir()
    run.method.at(0.0)
    answers = run.answers()
    run.method.loss(answers)  # the factor is on the device by now
    run.method.at(epoch)
    terms = run.method.loss(answers)
    without = MethodRun(sdkd__feature_weight=0.0, loss__peer_weight=0.0).stir()
    rest = without.method.loss(answers)["loss"]
    proxies = [proxy_by_hand(run, role, answers.features["teacher"])[0] for role in STUDENTS]
    peers = sum(
        kl(x, y, 2.0).mean() + kl(y, x, 2.0).mean()
        for x, y in zip((answers.student_a, answers.student_b), proxies, strict=True)
    )
    torch.testing.assert_close(terms["loss"], rest + factor * 0.375 * peers)


def test_half_precision_is_the_proxys_too_where_the_student_answered_in_it() -> None:
    run = MethodRun(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = run.answers()
        terms = run.method.loss(inside)
        _, fused = run.proxies["student_a"](run.images, inside.features["teacher"])
    outside = run.method.loss(inside)
    assert inside.student_a.dtype == torch.bfloat16
    assert [f.dtype for f in fused] == [f.dtype for f in inside.features["student_a"]]
    for found in (terms, outside):
        assert torch.equal(found["proxy_ce_a"], found["ce_a"])
        assert torch.equal(found["feature_b"], torch.zeros(()))
        assert found["loss"].dtype == torch.float32
    torch.autograd.backward(outside["loss"])
    assert all(p.grad is not None and p.grad.isfinite().all() for p in run.parameters())


def test_the_teacher_may_answer_in_another_precision_than_the_students() -> None:
    run = MethodRun(dtype=torch.float32).stir()
    answers = run.answers()
    halves = tuple(f.bfloat16() for f in answers.features["teacher"])
    other = run.answers(features={**answers.features, "teacher": halves})
    torch.testing.assert_close(run.method.loss(other)["loss"], run.method.loss(answers)["loss"], rtol=1e-2, atol=1e-2)


def test_compiled_students_are_compiled_once_beside_their_proxies() -> None:
    run, compiled = MethodRun().stir(), [0]
    answers = run.answers()
    want = run.method.loss(answers)["loss"]

    def counting(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        compiled[0] += 1
        return graph.forward

    torch._dynamo.reset()
    run.tapped = {role: torch.compile(t, backend=counting) for role, t in run.tapped.items()}
    for _ in range(3):
        loss = run.method.loss(run.answers())["loss"]
        torch.testing.assert_close(loss, want)
        torch.autograd.backward(loss)
    assert compiled[0] == 3


def test_students_in_parallel_have_the_same_gradients(tmp_path: Path) -> None:
    run = MethodRun().stir()
    want = run.method.loss(run.answers())["loss"]
    expected = torch.autograd.grad(want, run.parameters())
    with world_of_one(tmp_path):
        run.tapped |= {role: DistributedDataParallel(run.tapped[role]) for role in STUDENTS}
        loss = run.method.loss(run.answers())["loss"]
        torch.autograd.backward(loss)
    for parameter, gradient in zip(run.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_networks_from_torchvision_work_together() -> None:
    names = {"teacher": "resnet18", "student_a": "mobilenet_v2", "student_b": "shufflenet_v2_x1_0"}
    run = MethodRun(names, 32, torch.float32, sdkd__stages=3)
    assert run.needs.layers == {
        "teacher": ("layer2", "layer3", "layer4"),
        "student_a": ("features.6", "features.13", "features.18"),
        "student_b": ("stage2", "stage3", "conv5"),
    }
    terms = run.method.loss(run.answers())
    torch.autograd.backward(terms["loss"])
    assert all(term.isfinite().all() for term in terms.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in run.parameters())
