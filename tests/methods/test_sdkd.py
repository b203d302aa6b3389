"""Student-driven distillation against its formula, written out with PyTorch's own functions on a student's copy."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from tests.test_stages import world_of_one
from udskd import models, recipe
from udskd.config import Config
from udskd.errors import ConfigError
from udskd.losses import dual_student_loss
from udskd.methods.base import COMPONENTS, STUDENTS, Answers, Needs, Setting, Shape, Shaped
from udskd.methods.sdkd import FusionBlock, ProxyTeacher, StudentDriven, _resized, feature_distance
from udskd.stages import Tapped

B, C, SIZE = 4, 3, 8
ROLES = ("teacher", *STUDENTS)
NETWORKS = {"teacher": "tiny_plain_4", "student_a": "tiny_plain_3", "student_b": "tiny_separable_2"}
OPTIONS = {  # weights that float32 holds exactly, where the ramp multiplies
    **{"loss.temperature": 3.0, "loss.peer_temperature": 2.0},
    **{"loss.ce_weight": 0.75, "loss.kd_weight": 0.8, "loss.peer_weight": 0.375},
    **{"sdkd.feature_weight": 1.5, "sdkd.stages": 2, "sdkd.ramp_epochs": 4.0, "training.epochs": 100},
}
RAMP = 0.5  # after two of the four epochs


class Run:
    """A method with its networks, and what these answer to a batch, as the training loop puts it."""

    def __init__(
        self,
        networks: Mapping[str, str] = NETWORKS,
        size: int = SIZE,
        dtype: torch.dtype = torch.float64,
        shapes: Callable[[Config], Iterable[Shape]] = lambda config: (),
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.config = recipe.with_values(Config(), {**OPTIONS, **{k.replace("__", "."): v for k, v in options.items()}})
        modules = {role: models.build(name, C, size).module.to(dtype) for role, name in networks.items()}
        modules["teacher"].eval()
        self.setting = Setting(C, size, modules)
        self.method = StudentDriven(self.config, tuple(shapes(self.config)))
        self.needs = self.method.needs(self.setting)
        parts = {name: part.to(dtype) for name, part in self.method.modules(self.setting).items()}
        self.proxies = {role: parts[f"fusion_{role[-1]}"] for role in STUDENTS}
        self.tapped: dict[str, Any] = {role: Tapped(modules[role], self.needs.layers[role]) for role in ROLES}
        self.images = torch.randn(B, 3, size, size, dtype=dtype)
        self.target = torch.randint(0, C, (B,))

    def stir(self) -> Run:
        """Fusion blocks that have learned something."""
        for proxy in self.proxies.values():
            for parameter in proxy.parameters():
                nn.init.normal_(parameter, std=0.5)
        return self

    def answers(self, **changes: Any) -> Answers:
        images = changes.pop("images", self.images)
        outs = {role: self.tapped[role](images) for role in STUDENTS}
        with torch.no_grad():
            teacher, taught = self.tapped["teacher"](images)
        features = {"teacher": taught, **{role: out[1] for role, out in outs.items()}}
        students = {role: out[0] for role, out in outs.items()}
        return Answers(
            teacher, **students, **{"target": self.target, "images": images, "features": features, **changes}
        )

    def parameters(self) -> list[nn.Parameter]:
        modules = (*(self.setting.networks[role] for role in STUDENTS), *self.proxies.values())
        return [p for module in modules for p in module.parameters()]


# --- the formula -----------------------------------------------------------------------------------------------------


def normalised(x: Tensor, norm: nn.Module) -> Tensor:
    """Batch-norm in training."""
    assert isinstance(norm, nn.BatchNorm2d)
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def fusion(block: FusionBlock, own: Tensor, teacher: Tensor) -> Tensor:
    (align, align_norm), (depthwise, norm_1, _, pointwise, norm_2) = block.align, block.mix
    aligned = normalised(torch.einsum("oi,bihw->bohw", align.weight[:, :, 0, 0], teacher), align_norm)  # type: ignore[index]
    factor = aligned.shape[-1] / own.shape[-1]
    if factor >= 1:
        aligned = F.avg_pool2d(aligned, int(factor))
    else:
        aligned = aligned.repeat_interleave(int(1 / factor), 2).repeat_interleave(int(1 / factor), 3)
    both = torch.cat([own, aligned], 1)
    x = F.conv2d(both, depthwise.weight, padding=1, groups=both.shape[1])  # type: ignore[arg-type]
    x = torch.einsum("oi,bihw->bohw", pointwise.weight[:, :, 0, 0], normalised(x, norm_1).relu())  # type: ignore[index]
    return own + block.scale.view(1, -1, 1, 1) * normalised(x, norm_2)


def proxy_by_hand(run: Run, role: str, taught: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    """The student's layers one after the other, from a copy that learns nothing."""
    student = copy.deepcopy(run.setting.networks[role]).requires_grad_(False)
    x, fused, names = run.images, list[Tensor](), run.needs.layers[role]
    for number, layer in enumerate(student.get_submodule("features").children()):
        x = layer(x)
        if f"features.{number}" in names:
            x = fusion(run.proxies[role].blocks[len(fused)], x, taught[len(fused)])  # type: ignore[index, arg-type]
            fused.append(x)
    logits: Tensor = student.get_submodule("classifier")(x.mean((2, 3)))
    return logits, fused


def ce(x: Tensor, target: Tensor) -> Tensor:
    return -(target * x.log_softmax(-1)).sum(-1)


def kl(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    """T² KL(p ‖ q) for each row."""
    terms = F.kl_div((q / temperature).log_softmax(-1), (p / temperature).softmax(-1), reduction="none")
    return temperature**2 * terms.sum(-1)


def distance(own: Iterable[Tensor], fused: Iterable[Tensor]) -> Tensor:
    def unit(x: Tensor) -> Tensor:
        length: Tensor = x.norm(dim=1, keepdim=True)
        return x / length.clamp(min=1e-4)

    pairs = zip(own, fused, strict=True)
    distances = [F.mse_loss(unit(x), unit(y.detach())) * x.shape[1] for x, y in pairs]
    return torch.stack(distances).mean()


def formula(run: Run, answers: Answers, weights: str = "none", scales: Mapping[str, float] | None = None) -> Tensor:
    assert answers.teacher is not None
    options = run.config.loss
    target = F.one_hot(answers.target, C).double() if answers.target.dim() == 1 else answers.target
    total = torch.zeros((), dtype=torch.float64)
    for role in STUDENTS:
        student, teacher = answers.student(role), answers.teacher * (scales or {}).get(role, 1.0)
        proxy, fused = proxy_by_hand(run, role, answers.features["teacher"])
        w = torch.ones(B, dtype=torch.float64)
        if weights == "wsl":
            w = 1 - torch.exp(-ce(student, target) / ce(answers.teacher, target)).detach()
        if weights == "entropy":
            w = 1 - ce(teacher, teacher.softmax(-1)) / math.log(C)
        for me, peer in ((student, proxy), (proxy, student)):
            terms = options.ce_weight * ce(me, target) + options.kd_weight * w * kl(teacher, me, 3.0)
            total = total + (terms + RAMP * options.peer_weight * kl(peer.detach(), me, 2.0)).mean()
        total = total + run.config.sdkd.feature_weight * distance(answers.features[role], fused)
    return total


def same_gradients(got: Tensor, want: Tensor, parameters: list[nn.Parameter]) -> None:
    torch.testing.assert_close(got, want)
    found, expected = (
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in (got, want)
    )
    for x, y in zip(found, expected, strict=True):
        assert (x is None) == (y is None)
        if x is not None and y is not None:
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("weights", ["auto", "wsl", "entropy"])
def test_the_loss_and_its_gradients_are_the_formulas(weights: str) -> None:
    run = Run(target__weight=weights).stir()
    run.method.at(2.0)
    answers = run.answers()
    same_gradients(run.method.loss(answers)["loss"], formula(run, answers, weights), run.parameters())


def test_layers_of_other_resolutions_are_pooled_or_repeated() -> None:
    layers: dict[str, Any] = {
        "sdkd__teacher_layers": "features.2,features.6",
        "sdkd__student_a_layers": "features.3,features.4",
    }
    run = Run(**layers).stir()
    run.method.at(2.0)
    answers = run.answers()
    same_gradients(run.method.loss(answers)["loss"], formula(run, answers), run.parameters())


def test_a_mixed_target_is_accepted() -> None:
    run = Run().stir()
    run.method.at(2.0)
    mixed = 0.7 * F.one_hot(run.target, C).double() + 0.3 * F.one_hot(run.target.roll(1), C)
    answers = run.answers(target=mixed)
    same_gradients(run.method.loss(answers)["loss"], formula(run, answers), run.parameters())


class Scaled(Shape):
    """Twice the logits for one student, three times for the other, and a loss of its own."""

    name = "scaled"
    per_student = True

    def __call__(self, logits: Tensor, role: str, answers: Answers) -> Shaped:
        return Shaped(logits * (2 if role == "student_a" else 3), torch.tensor(0.25, dtype=logits.dtype))


def test_a_student_and_its_proxy_learn_from_that_students_target_and_shapes_add_their_losses() -> None:
    run = Run(shapes=lambda config: [Scaled(config)]).stir()
    run.method.at(2.0)
    answers, scales = run.answers(), {"student_a": 2.0, "student_b": 3.0}
    terms = run.method.loss(answers)
    assert terms["scaled"] == 0.5
    same_gradients(terms["loss"], formula(run, answers, scales=scales) + 0.5, run.parameters())


def test_the_terms_are_the_students_and_detached() -> None:
    run = Run().stir()
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


# --- who learns from what --------------------------------------------------------------------------------------------


def test_a_student_learns_as_if_its_proxys_answers_were_constants() -> None:
    run = Run().stir()
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
    run = Run().stir()
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
    run = Run()
    for proxy in run.proxies.values():
        assert all(name.startswith("blocks.") for name in proxy.state_dict())
        assert {id(p) for p in proxy.parameters()} == {id(p) for block in proxy.blocks for p in block.parameters()}  # type: ignore[union-attr]
        assert len(proxy.blocks) == 2  # type: ignore[arg-type]


# --- the proxy and its student ---------------------------------------------------------------------------------------


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
    run = Run({**NETWORKS, "student_a": student}, size, torch.float32)
    without_dropout(run.setting.networks["student_a"]).train(training)
    answers = run.answers()
    logits, fused = run.proxies["student_a"](run.images, answers.features["teacher"])
    assert torch.equal(logits, answers.student_a)
    for mine, theirs in zip(fused, answers.features["student_a"], strict=True):
        assert torch.equal(mine, theirs)


def test_after_a_step_of_the_blocks_the_proxy_differs_and_the_student_does_not() -> None:
    run = Run()
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
    run = Run()
    answers = run.answers()
    with torch.no_grad():
        for parameter in run.setting.networks["student_a"].parameters():
            parameter.mul_(1.5).add_(0.1)
    logits, _ = run.proxies["student_a"](run.images, answers.features["teacher"])
    assert torch.equal(logits, run.answers().student_a)
    assert not torch.equal(logits, answers.student_a)


def test_the_proxy_leaves_the_students_batch_norm_and_hooks_alone() -> None:
    run = Run().stir()
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
    run = Run(sdkd__feature_weight=0.0).stir()
    run.method.at(0.0)
    answers = run.answers()
    run.method.loss(answers)  # the factor is on the device by now
    run.method.at(epoch)
    terms = run.method.loss(answers)
    without = Run(sdkd__feature_weight=0.0, loss__peer_weight=0.0).stir()
    rest = without.method.loss(answers)["loss"]
    proxies = [proxy_by_hand(run, role, answers.features["teacher"])[0] for role in STUDENTS]
    peers = sum(
        kl(x, y, 2.0).mean() + kl(y, x, 2.0).mean()
        for x, y in zip((answers.student_a, answers.student_b), proxies, strict=True)
    )
    torch.testing.assert_close(terms["loss"], rest + factor * 0.375 * peers)


def test_half_precision_is_the_proxys_too_where_the_student_answered_in_it() -> None:
    run = Run(dtype=torch.float32)
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
    run = Run(dtype=torch.float32).stir()
    answers = run.answers()
    halves = tuple(f.bfloat16() for f in answers.features["teacher"])
    other = run.answers(features={**answers.features, "teacher": halves})
    torch.testing.assert_close(run.method.loss(other)["loss"], run.method.loss(answers)["loss"], rtol=1e-2, atol=1e-2)


def test_compiled_students_are_compiled_once_beside_their_proxies() -> None:
    run, compiled = Run().stir(), [0]
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
    run = Run().stir()
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
    run = Run(names, 32, torch.float32, sdkd__stages=3)
    assert run.needs.layers == {
        "teacher": ("layer2", "layer3", "layer4"),
        "student_a": ("features.6", "features.13", "features.18"),
        "student_b": ("stage2", "stage3", "conv5"),
    }
    terms = run.method.loss(run.answers())
    torch.autograd.backward(terms["loss"])
    assert all(term.isfinite().all() for term in terms.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in run.parameters())


def test_without_rows_the_loss_is_nan_as_a_mean_is_and_the_gradients_are_0() -> None:
    run = Run().stir()
    answers = run.answers(images=run.images[:0], target=run.target[:0])
    loss = run.method.loss(answers)["loss"]
    torch.autograd.backward(loss)
    assert loss.isnan()
    assert all(p.grad is None or not p.grad.any() for p in run.parameters())


# --- parts -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    own=st.integers(1, 7), teacher=st.integers(1, 9), channels=st.integers(1, 3), dtype=st.sampled_from(["32", "64"])
)
def test_a_block_begins_as_the_identity_whatever_the_teachers_size(
    own: int, teacher: int, channels: int, dtype: str
) -> None:
    kind = getattr(torch, f"float{dtype}")
    block = FusionBlock(channels, 5).to(kind)
    x = torch.randn(2, channels, own, own, dtype=kind)
    assert torch.equal(block(x, torch.randn(2, 5, teacher, teacher, dtype=kind)), x)


def test_a_block_whose_scale_has_moved_uses_the_teachers_features() -> None:
    block, (x, t, other) = FusionBlock(3, 5), (torch.randn(2, n, 4, 4) for n in (3, 5, 5))
    nn.init.ones_(block.scale)
    assert not torch.allclose(block(x, t), block(x, other))


def test_a_smaller_map_is_repeated_and_not_mixed() -> None:
    x = torch.randn(2, 3, 3, 3)
    assert torch.equal(_resized(x, torch.Size((4, 4))), x[:, :, [0, 0, 1, 2]][..., [0, 0, 1, 2]])


@pytest.mark.parametrize("zero", ["own", "fused", "both"])
def test_the_distance_is_finite_with_its_gradient_where_features_are_0(zero: str) -> None:
    own, fused = (torch.randn(2, 3, 4, 4) for _ in range(2))
    for name, x in (("own", own), ("fused", fused)):
        if zero in (name, "both"):
            x[:, :, 1] = 0
    own.requires_grad_()
    value = feature_distance([own], [fused])
    (gradient,) = torch.autograd.grad(value, own)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 2e4


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0.01, 100), width=st.integers(1, 6))
def test_the_distance_does_not_see_the_length_of_a_vector_and_is_at_most_4(scale: float, width: int) -> None:
    own, fused = (torch.randn(2, width, 3, 3, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(feature_distance([own], [own * scale]), torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(feature_distance([own], [-own * scale]), torch.full((), 4.0, dtype=torch.float64))
    assert 0 <= feature_distance([own], [fused]) <= 4


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sdkd__teacher_layers": "features.7"}, ["sdkd.teacher_layers", '"features.7"', "did you mean"]),
        ({"sdkd__student_b_layers": "features.4,features.2"}, ["sdkd.student_b_layers", "order"]),
        ({"sdkd__student_a_layers": "features.4"}, ["sdkd.teacher_layers and sdkd.student_a_layers", "2 and 1"]),
        ({"sdkd__stages": 4}, ["sdkd.stages", "1 to 3", "features.2 (8 px)"]),
        ({"sdkd__student_a_layers": "classifier"}, ["sdkd.student_a_layers", "[B, C, H, W]"]),
        ({"loss__detach_peer": False}, ["loss.detach_peer must be true", '"sdkd"']),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_sentence(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        Run(**options)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), error.value


def test_a_proxy_wants_a_block_for_each_layer() -> None:
    with pytest.raises(ValueError, match=r"blocks .* 2 layers, got 1"):
        ProxyTeacher(nn.Identity(), ["x", "y"], [FusionBlock(1, 1)])


def test_the_needs_of_a_shape_are_asked_for_as_well() -> None:
    class Asking(Scaled):
        needs = Needs(responses=3, source="dropout")

    needs = Run(shapes=lambda config: [Asking(config)]).needs
    assert (needs.responses, needs.source) == (3, "dropout")
    assert set(needs.layers) == set(ROLES)


def test_the_blocks_have_a_learning_rate_of_their_own() -> None:
    assert Run(sdkd__lr=0.03).method.lr == 0.03
