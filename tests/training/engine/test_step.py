"""One step: in parts as in one, images that could not be read, and the rates it uses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from udskd.config.schema import StudentConfig, TrainingConfig
from udskd.models import zoo
from udskd.training.engine.step import Step
from udskd.training.engine.task import Inputs, Task
from udskd.training.networks.trainable import Network
from udskd.training.runtime.device import Runtime
from udskd.training.runtime.distributed import World

OPTIONS = TrainingConfig(lr=0.1, warmup_epochs=0, device="cpu")


@dataclass
class Classify(Task):
    """Cross-entropy of one network without batch-norm, which would see the parts."""

    title, event, phase = "test", "test", 0
    seen: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        model = zoo.build("tiny_plain_2", 3, 8)
        for name, module in list(model.module.named_modules()):
            if isinstance(module, torch.nn.BatchNorm2d):
                model.module.set_submodule(name, torch.nn.Identity())
        self.networks = [Network("student_a", model, StudentConfig(), OPTIONS, Runtime.from_config(OPTIONS), 10, 4)]

    def losses(self, inputs: Inputs) -> dict[str, Tensor]:
        self.seen.append(len(inputs.images))
        return {"loss": F.cross_entropy(self.networks[0].forward(inputs.images), inputs.target)}

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.networks[0].module.parameters()])


def batch(rows: int = 12) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(rows, 3, 8, 8, generator=generator)
    return Inputs(images, torch.randint(0, 3, (rows,), generator=generator))


def cut(inputs: Inputs, sizes: list[int]) -> list[Inputs]:
    pairs = zip(inputs.images.split(sizes), inputs.target.split(sizes), strict=True)
    return [Inputs(images, target) for images, target in pairs]


def run(parts: list[Inputs], rows: int, steps: int = 2) -> tuple[Classify, list[Any]]:
    task = Classify()
    step = Step(task, Runtime.from_config(OPTIONS), len(parts), rows, cuda_graph=False)
    terms = [step.run(inputs, part, k) for k in range(steps) for part, inputs in enumerate(parts)]
    return task, terms


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_parts_add_up_to_the_step_of_all_images_at_once(parts: int) -> None:
    whole, _ = run([batch()], 12)
    task, terms = run(cut(batch(), [12 // parts] * parts), 12 // parts)
    torch.testing.assert_close(task.weights(), whole.weights())
    assert task.seen == [12 // parts] * parts * 2
    assert len(terms) == 2 * parts


def test_the_networks_change_after_the_last_part_only() -> None:
    task = Classify()
    step, before = Step(task, Runtime.from_config(OPTIONS), 2, 6, cuda_graph=False), task.weights()
    first, last = cut(batch(), [6, 6])
    step.run(first, 0, 0)
    assert torch.equal(task.weights(), before)
    step.run(last, 1, 0)
    assert not torch.equal(task.weights(), before)


def test_images_that_could_not_be_read_count_as_no_gradient() -> None:
    images = batch()
    read = Inputs(images.images[:8], images.target[:8])
    short, _ = run([read], 12, steps=1)
    task = Classify()
    task.networks[0].set_lr(0)
    (F.cross_entropy(task.networks[0].forward(read.images), read.target) * 8 / 12).backward()
    task.networks[0].optimizer.step()
    torch.testing.assert_close(short.weights(), task.weights())


def test_a_part_without_images_is_left_out() -> None:
    with_empty, terms = run([*cut(batch(), [6, 6]), batch(0)], 6, steps=1)
    assert with_empty.seen == [6, 6]
    assert terms[-1] == {}
    assert not torch.equal(with_empty.weights(), Classify().weights())


def test_a_step_without_any_image_changes_nothing() -> None:
    task, _ = run([batch(0), batch(0)], 6)
    assert torch.equal(task.weights(), Classify().weights())


def test_each_step_has_the_rate_of_its_number() -> None:
    task = Classify()
    step, network = Step(task, Runtime.from_config(OPTIONS), 1, 12, cuda_graph=False), task.networks[0]
    for number in (0, 7, 39):
        step.run(batch(), 0, number)
        assert network.optimizer.param_groups[0]["lr"] == network.schedule.lr(number)


def test_the_terms_of_a_step_keep_nothing_of_autograd_alive() -> None:
    _, terms = run([batch()], 12, steps=1)
    assert not any(value.requires_grad for value in terms[0].values())


def test_images_that_only_other_processes_could_read_leave_no_trace_here() -> None:
    """This process takes part with blank images, which batch-norm must not remember."""
    torch.manual_seed(0)
    task, runtime = Classify(), replace(Runtime.from_config(OPTIONS), world=World(ranks=2, control=object()))
    module = task.networks[0].module
    module.add_module("norm", torch.nn.BatchNorm2d(3))
    module.register_forward_pre_hook(lambda owner, inputs: (owner.norm(inputs[0]),))
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    assert Step(task, runtime, 2, 6, cuda_graph=False).run(batch(0), 0, 0) == {}
    assert task.seen == [6]
    assert all(not p.grad.any() for p in module.parameters() if p.grad is not None)
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
