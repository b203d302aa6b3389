"""The frozen network has the logits of the network that it was made from, which does not change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from udskd import dual_student_loss
from udskd.config.schema import TrainingConfig
from udskd.models import zoo
from udskd.training.networks.inference import FrozenNetwork, fold
from udskd.training.runtime.device import Runtime

NETWORKS = ["tiny_plain_4", "tiny_separable_4", "resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "alexnet"]
VGG = pytest.param("vgg11_bn", marks=pytest.mark.slow)  # 130 million weights


def with_statistics(name: str, size: int = 64) -> nn.Module:
    """A network whose batch-norms have statistics and weights other than their initial ones."""
    torch.manual_seed(0)
    module = zoo.build(name, 5, size, "auto").module.train()
    with torch.no_grad():
        for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
        for _ in range(3):
            module(torch.randn(8, 3, size, size))
    return module.eval()


def runtime(precision: str = "fp32") -> Runtime:
    return Runtime.from_config(TrainingConfig(device="cpu", precision=precision))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*NETWORKS, VGG])
def test_the_folded_network_has_the_logits_of_the_network(name: str) -> None:
    module, images = with_statistics(name), torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(FrozenNetwork(module, runtime())(images), module(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny_separable_4", "resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_no_batch_norm_is_left_behind_a_convolution(name: str) -> None:
    assert not [m for m in fold(with_statistics(name)).modules() if isinstance(m, nn.BatchNorm2d)]


def test_a_convolution_with_a_bias_is_folded() -> None:
    module, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(), torch.randn(2, 3, 8, 8)
    module[1].running_mean, module[1].running_var = torch.randn(4), torch.rand(4) + 0.5
    folded = fold(module)
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    torch.testing.assert_close(folded(x), module(x), rtol=1e-4, atol=1e-4)


def test_a_batch_norm_whose_convolution_is_used_elsewhere_too_stays() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return torch.cat([y, self.norm(y)], 1)

    module, x = Forked().eval(), torch.randn(2, 3, 4, 4)
    module.norm.running_mean = torch.randn(4)
    assert torch.equal(fold(module)(x), module(x))


def test_a_convolution_that_runs_twice_is_not_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(self.conv(x)))

    module, x = Twice().eval(), torch.randn(2, 3, 4, 4)
    module.norm.running_mean = torch.randn(3)
    assert torch.equal(fold(module)(x), module(x))


def test_a_network_that_cannot_be_traced_is_used_as_it_is() -> None:
    class Dynamic(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    module = Dynamic()
    assert fold(module) is module


def test_the_network_itself_stays_as_it_is() -> None:
    module = with_statistics("resnet18").train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    FrozenNetwork(module, runtime())(torch.randn(2, 3, 64, 64))
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_gives_logits_of_that_dtype(precision: str, dtype: torch.dtype) -> None:
    module, images = with_statistics("tiny_plain_4"), torch.randn(4, 3, 64, 64)
    logits = FrozenNetwork(module, runtime(precision))(images)
    assert logits.dtype == dtype
    with torch.no_grad():
        torch.testing.assert_close(logits.float(), module(images), rtol=0.05, atol=0.05)


def test_students_learn_from_its_logits() -> None:
    """The logits come from inference mode: autograd cannot save them."""
    logits = FrozenNetwork(with_statistics("tiny_plain_4"), runtime())(torch.randn(4, 3, 8, 8))
    a, b = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    dual_student_loss(logits, a, b, torch.tensor([0, 1, 2, 3])).loss.backward()
    assert a.grad is not None
    assert bool(a.grad.abs().sum() > 0)


def test_the_teacher_may_have_another_precision_than_the_students() -> None:
    module, images = with_statistics("tiny_plain_4"), torch.randn(4, 3, 64, 64)
    logits = {p: FrozenNetwork(module, runtime(), runtime().dtype_of(p))(images) for p in ("auto", "bf16")}
    assert (logits["auto"].dtype, logits["bf16"].dtype) == (torch.float32, torch.bfloat16)
