"""Parameter groups, schedule, and the arithmetic of one update."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from udskd.config.schema import StudentConfig, TrainingConfig
from udskd.models import zoo
from udskd.training.networks.optim import Schedule, parameter_groups, sgd
from udskd.training.networks.trainable import Network
from udskd.training.runtime.device import Runtime


def network(training: TrainingConfig, options: StudentConfig | None = None, name: str = "tiny_plain_2") -> Network:
    options = options or StudentConfig()
    return Network("student_a", zoo.build(name, 3, 8), options, training, Runtime.from_config(training), 10, 4)


def update(network: Network, step: int) -> None:
    network.set_lr(step)
    network.update(GradScaler("cpu", enabled=False))


def vector(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().clone().flatten() for p in module.parameters()])


def test_vectors_are_not_decayed() -> None:
    module = zoo.build("tiny_separable_2", 3, 8).module
    decayed, rest = parameter_groups(module, 0.1)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    names = {id(p): n for n, p in module.named_parameters()}
    assert all(".bias" not in names[id(p)] and p.ndim >= 2 for p in decayed["params"])
    assert {id(p) for g in (decayed, rest) for p in g["params"]} == set(names)


def test_the_schedule_warms_up_to_the_peak_and_ends_near_zero() -> None:
    schedule = Schedule.from_epochs(0.4, epochs=10, warmup_epochs=2, steps_per_epoch=5)
    rates = [schedule.lr(step) for step in range(50)]
    assert rates[:10] == pytest.approx([0.04 * (k + 1) for k in range(10)])
    assert rates[10] == pytest.approx(0.4)
    assert rates[30] == pytest.approx(0.2)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.002


def test_a_warm_up_longer_than_the_run_is_cut_to_half_of_it() -> None:
    schedule = Schedule.from_epochs(1.0, epochs=1, warmup_epochs=5, steps_per_epoch=8)
    assert max(schedule.lr(step) for step in range(8)) == schedule.lr(3) == 1.0
    assert Schedule.from_epochs(1.0, epochs=1, warmup_epochs=5, steps_per_epoch=1).lr(0) == 1.0


def test_each_student_has_its_own_rate_and_decay() -> None:
    training = TrainingConfig(lr=0.1, weight_decay=0.01, warmup_epochs=0, device="cpu")
    one, other = network(training), network(training, StudentConfig(lr=0.3, weight_decay=0.0))
    for n in (one, other):
        for p in n.module.parameters():
            p.grad = torch.ones_like(p)
        update(n, 0)
    assert [n.optimizer.param_groups[0]["lr"] for n in (one, other)] == [0.1, 0.3]
    assert [n.optimizer.param_groups[0]["weight_decay"] for n in (one, other)] == [0.01, 0.0]


@pytest.mark.parametrize("name", ["tiny_plain_3", "tiny_separable_3", "shufflenet_v2_x0_5"])
def test_the_fused_update_is_plain_sgds_also_in_channels_last(name: str) -> None:
    torch.manual_seed(0)
    module = zoo.build(name, 3, 32).module.to(memory_format=torch.channels_last)
    twin = zoo.build(name, 3, 32).module
    twin.load_state_dict(module.state_dict())
    ours = sgd(module, lr=0.1, momentum=0.9, weight_decay=0.01)
    plain = torch.optim.SGD(parameter_groups(twin, 0.01), lr=0.1, momentum=0.9, nesterov=True, foreach=False)
    for _ in range(3):
        module(torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)).square().mean().backward()
        for p, q in zip(module.parameters(), twin.parameters(), strict=True):
            assert p.grad is not None
            q.grad = p.grad.clone(memory_format=torch.contiguous_format)
        ours.step()
        plain.step()
        ours.zero_grad()
    for p, q in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_clipping_limits_the_norm_of_each_network_alone() -> None:
    training = TrainingConfig(lr=1.0, momentum=0.0, weight_decay=0.0, warmup_epochs=0, clip_grad_norm=0.5, device="cpu")
    small, large = network(training), network(training)
    moved = []
    for n, size in ((small, 1e-4), (large, 10.0)):
        before = vector(n.module)
        for p in n.module.parameters():
            p.grad = torch.full_like(p, size)
        update(n, 0)
        moved.append(float((vector(n.module) - before).norm()))
    count = zoo.parameter_count(small.module)
    assert moved == pytest.approx([1e-4 * math.sqrt(count), 0.5], rel=1e-3)


def test_a_scaled_gradient_is_unscaled_before_it_is_clipped() -> None:
    options = TrainingConfig(lr=1.0, momentum=0.0, weight_decay=0.0, warmup_epochs=0, clip_grad_norm=0.5, device="cpu")
    plain, scaled = network(options), network(options)
    scaled.module.load_state_dict(plain.module.state_dict())
    scaler = GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))  # the scaler is initialised by the first loss
    for n, factor in ((plain, 1.0), (scaled, 1024.0)):
        for p in n.module.parameters():
            p.grad = torch.full_like(p, 0.1 * factor)
        n.set_lr(0)
    plain.update(GradScaler("cpu", enabled=False))
    scaled.update(scaler)
    torch.testing.assert_close(vector(scaled.module), vector(plain.module))


def test_a_gradient_that_overflowed_changes_nothing() -> None:
    n = network(TrainingConfig(lr=1.0, weight_decay=0.1, warmup_epochs=0, clip_grad_norm=0.5, device="cpu"))
    before, scaler = vector(n.module), GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))
    for size in (torch.inf, 0.0):  # the second step continues with the momentum buffers of the first
        for p in n.module.parameters():
            p.grad = torch.full_like(p, size)
        n.set_lr(0)
        for group in n.optimizer.param_groups:
            group["weight_decay"] = 0.0
        n.update(scaler)
        scaler.update()
        assert torch.equal(vector(n.module), before)
        assert scaler.get_scale() == 512.0


def test_the_average_follows_weights_and_batch_norm_statistics() -> None:
    n = network(TrainingConfig(ema_decay=0.75, warmup_epochs=0, device="cpu"))
    assert n.ema is not None
    names = ["classifier.weight", "features.0.1.running_mean"]
    mean: dict[str, torch.Tensor] = {}
    for step in range(3):
        n.module(torch.randn(4, 3, 8, 8)).square().sum().backward()
        update(n, step)
        state = n.module.state_dict()
        for name in names:
            new = state[name].clone()
            mean[name] = new if step == 0 else 0.75 * mean[name] + 0.25 * new
    for name in names:
        torch.testing.assert_close(n.result.state_dict()[name], mean[name])
        assert not torch.equal(n.result.state_dict()[name], n.module.state_dict()[name])


def test_without_an_average_the_network_itself_is_the_result() -> None:
    n = network(TrainingConfig(device="cpu"))
    assert n.result is n.module
