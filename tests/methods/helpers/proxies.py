"""Student-driven distillation's networks and its formula, written out with PyTorch's own functions, for its tests."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from udskd.config import schema
from udskd.config.schema import ROLES, STUDENTS, Config
from udskd.methods.base import Answers, Setting, Shape, Shaped
from udskd.methods.sdkd import FusionBlock, StudentDriven
from udskd.models import zoo
from udskd.models.features import FeatureExtractor

B, C, SIZE = 4, 3, 8
NETWORKS = {"teacher": "tiny_plain_4", "student_a": "tiny_plain_3", "student_b": "tiny_separable_2"}
OPTIONS = {  # weights that float32 holds exactly, where the ramp multiplies
    **{"loss.temperature": 3.0, "loss.peer_temperature": 2.0},
    **{"loss.ce_weight": 0.75, "loss.kd_weight": 0.8, "loss.peer_weight": 0.375},
    **{"sdkd.feature_weight": 1.5, "sdkd.stages": 2, "sdkd.ramp_epochs": 4.0, "training.epochs": 100},
}
RAMP = 0.5  # after two of the four epochs


class MethodRun:
    """A method with its networks, and their outputs for a batch, as the training loop computes them."""

    def __init__(
        self,
        networks: Mapping[str, str] = NETWORKS,
        size: int = SIZE,
        dtype: torch.dtype = torch.float64,
        shapes: Callable[[Config], Iterable[Shape]] = lambda config: (),
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.config = schema.with_values(Config(), {**OPTIONS, **{k.replace("__", "."): v for k, v in options.items()}})
        modules = {role: zoo.build(name, C, size).module.to(dtype) for role, name in networks.items()}
        modules["teacher"].eval()
        self.setting = Setting(C, size, modules)
        self.method = StudentDriven(self.config, tuple(shapes(self.config)))
        self.needs = self.method.needs(self.setting)
        parts = {name: part.to(dtype) for name, part in self.method.modules(self.setting).items()}
        self.proxies = {role: parts[f"fusion_{role[-1]}"] for role in STUDENTS}
        self.tapped: dict[str, Any] = {role: FeatureExtractor(modules[role], self.needs.layers[role]) for role in ROLES}
        self.images = torch.randn(B, 3, size, size, dtype=dtype)
        self.target = torch.randint(0, C, (B,))

    def stir(self) -> MethodRun:
        """Fusion blocks with random weights, as after training."""
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


class Scaled(Shape):
    """Twice the logits for one student, three times for the other, and a loss of its own."""

    name = "scaled"
    per_student = True

    def __call__(self, logits: Tensor, role: str, answers: Answers) -> Shaped:
        return Shaped(logits * (2 if role == "student_a" else 3), torch.tensor(0.25, dtype=logits.dtype))


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


def proxy_by_hand(run: MethodRun, role: str, taught: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    """The student's layers one after the other, from a copy without gradients."""
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


def formula(
    run: MethodRun, answers: Answers, weights: str = "none", scales: Mapping[str, float] | None = None
) -> Tensor:
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
