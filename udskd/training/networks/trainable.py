"""What an optimiser updates: a network with its schedule, average and best result, or a module of a method."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from udskd.config.schema import ROLES, StudentConfig, TeacherConfig, TrainingConfig
from udskd.data.hashing import derive_seed
from udskd.models import zoo
from udskd.models.features import FeatureExtractor
from udskd.training.networks.ema import ExponentialMovingAverage
from udskd.training.networks.optim import Schedule, sgd
from udskd.training.runtime.device import Runtime


class Trainable:
    """A module with its optimiser and the schedule of its learning rate."""

    def __init__(
        self,
        role: str,
        module: nn.Module,
        lr: float,
        weight_decay: float,
        training: TrainingConfig,
        runtime: Runtime,
        epochs: int,
        steps_per_epoch: int,
    ) -> None:
        self.role, self.module = role, module
        self.schedule = Schedule.from_epochs(
            lr, epochs=epochs, warmup_epochs=training.warmup_epochs, steps_per_epoch=steps_per_epoch
        )
        # A CUDA graph reads its learning rate from the device.
        self._lr = torch.zeros((), device=runtime.device) if training.cuda_graph else None
        rate = lr if self._lr is None else self._lr
        self.optimizer = sgd(module, lr=rate, momentum=training.momentum, weight_decay=weight_decay)
        self.clip = training.clip_grad_norm

    def no_sync(self) -> contextlib.AbstractContextManager[object]:
        """A context in which gradients accumulate on this rank and are not averaged over the ranks."""
        return contextlib.nullcontext()

    def set_lr(self, step: int) -> None:
        """Set the learning rate of a step, which is counted from 0 over all epochs."""
        if self._lr is not None:
            self._lr.fill_(self.schedule.lr(step))
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr(step)

    def update(self, scaler: GradScaler) -> None:
        """Clip the gradients and update the weights, without host synchronisation.

        If the scaled loss overflowed, the weights stay as they are.
        """
        if self.clip:
            scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        scaler.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """The state that --resume needs. The schedule has none: it is a function of the step."""
        return {"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what state() returned."""
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self._lr


class Network(Trainable):
    """A network in training. Students share nothing but the loss."""

    def __init__(
        self,
        role: str,
        model: zoo.Model,
        options: TeacherConfig | StudentConfig,
        training: TrainingConfig,
        runtime: Runtime,
        epochs: int,
        steps_per_epoch: int,
        layers: tuple[str, ...] = (),
    ) -> None:
        """With layers, forward(images) returns the logits and a tuple of these layers' outputs."""
        self.model = model
        module = runtime.with_sync_batchnorm(runtime.place(model.module))
        trained = FeatureExtractor(module, layers) if layers else module
        self._parallel = None if runtime.world.is_single else runtime.data_parallel(trained, model.image_size)
        forward = self._parallel or trained
        self.forward: Any = torch.compile(forward) if training.compile else forward
        lr = training.lr if options.lr is None else options.lr
        decay = training.weight_decay if options.weight_decay is None else options.weight_decay
        super().__init__(role, module, lr, decay, training, runtime, epochs, steps_per_epoch)
        self.ema = ExponentialMovingAverage(self.module, training.ema_decay) if training.ema_decay else None
        self.best: dict[str, float] = {}

    @property
    def result(self) -> nn.Module:
        """The module that is evaluated and saved: the average of the weights if there is one, else the network."""
        return self.module if self.ema is None else self.ema.module

    def no_sync(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if self._parallel is None else self._parallel.no_sync()

    def update(self, scaler: GradScaler) -> None:
        """Clip the gradients, update the weights and their average."""
        super().update(scaler)
        if self.ema is not None:
            self.ema.update(self.module)

    def is_best(self, metrics: dict[str, float], epoch: int) -> bool:
        """Whether this is the best top-1 so far, which is then kept as such."""
        if metrics["top1"] <= self.best.get("top1", -1.0):
            return False
        self.best = {"top1": metrics["top1"], "epoch": epoch}
        return True

    def state(self) -> dict[str, Any]:
        ema = None if self.ema is None else self.ema.state()
        return {**super().state(), "average": ema, "best": self.best}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        if self.ema is not None:
            self.ema.load_state(state["average"])
        self.best = dict(state["best"])


class MethodModule(Trainable):
    """A module that a method trains beside the networks. It may have parameters, or buffers only."""

    def __init__(
        self,
        role: str,
        module: nn.Module,
        lr: float,
        training: TrainingConfig,
        runtime: Runtime,
        epochs: int,
        steps_per_epoch: int,
    ) -> None:
        self._world = runtime.world
        module = runtime.with_sync_batchnorm(runtime.place(module))
        super().__init__(role, module, lr, training.weight_decay, training, runtime, epochs, steps_per_epoch)

    def update(self, scaler: GradScaler) -> None:
        """Average gradients and buffers over the ranks, then clip and update.

        DistributedDataParallel cannot do this: it expects one forward pass of a module for each backward pass.
        """
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        self._world.average([*gradients, *(b for b in self.module.buffers() if b.is_floating_point())])
        if gradients:
            super().update(scaler)


def build_model(
    role: str, options: TeacherConfig | StudentConfig, num_classes: int, image_size: int, seed: int
) -> zoo.Model:
    """The network of a role. Its weights depend on the seed and the role only, not on what was built before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, ROLES.index(role)))
        return zoo.build(options.model, num_classes, image_size, options.stem, options.options)
