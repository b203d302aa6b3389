"""The device, arithmetic and memory format in which the networks run."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from udskd.config.schema import LossConfig, TrainingConfig
from udskd.data import Batch, prefetch_to_device
from udskd.data.hashing import derive_seed
from udskd.errors import ConfigError
from udskd.loss import dispatch
from udskd.training.runtime.distributed import World

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """Device, precision and memory format of one run, and the processes that share it."""

    device: torch.device
    precision: Literal["fp32", "bf16", "fp16"]
    memory_format: torch.memory_format
    world: World = field(default_factory=World)
    sync_batchnorm: bool = False

    @staticmethod
    def from_config(training: TrainingConfig, world: World | None = None) -> Runtime:
        """Resolve "auto". Of several processes, each takes the GPU with the number of its local rank.

        Raises ConfigError if this machine lacks the device, or the device does not support an option.
        """
        world, name = world or World(), training.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        kind, _, number = name.partition(":")
        if kind == "cuda" and not world.is_single:
            if number:
                raise ConfigError(f'training.device is "{name}", but several processes cannot share it: use "cuda"')
            number = str(world.local_rank)
        if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
            wanted, count = f"{kind}:{number}" if number else kind, torch.cuda.device_count()
            raise ConfigError(
                f'training.device is "{wanted}", but PyTorch sees {count or "no"} CUDA device{"s" * (count > 1)}'
            )
        device = torch.device(kind, int(number)) if number else torch.device(kind)
        _check(training, device, world)
        if device.type == "cuda":
            device = torch.device("cuda", device.index or 0)
            torch.cuda.set_device(device)  # CUDA graphs and collectives use the current device
            torch.backends.cudnn.benchmark = True  # all batches have one shape
        precision = training.precision
        if precision == "auto":
            precision = "bf16" if device.type == "cuda" else "fp32"
        layout = torch.channels_last if training.channels_last else torch.contiguous_format
        return Runtime(device, precision, layout, world, training.sync_batchnorm)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the networks' arithmetic."""
        return DTYPES[self.precision]

    def dtype_of(self, precision: str) -> torch.dtype:
        """The dtype of a precision; "auto" is the networks' own."""
        return self.dtype if precision == "auto" else DTYPES[precision]

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Autocast to the run's precision. The loss runs outside of it and converts its logits to fp32."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.precision != "fp32")

    def with_sync_batchnorm(self, module: nn.Module) -> nn.Module:
        """The module with batch-norm over the images of all processes (training.sync_batchnorm). It replaces layers:
        call it before anything else refers to one."""
        if self.world.is_single or not self.sync_batchnorm:
            return module
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return converted

    def data_parallel(self, module: nn.Module, image_size: int) -> DistributedDataParallel:
        """The module with its gradients averaged over the processes and batch-norm's statistics from rank 0."""
        devices = [self.device.index] if self.device.type == "cuda" else None
        parallel = DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)
        self._fix_buckets(parallel, image_size)
        return parallel

    def _fix_buckets(self, parallel: DistributedDataParallel, image_size: int) -> None:
        """Run one forward and backward pass that changes nothing.

        After its first pass, DDP sorts the gradients into other buckets, and the place of a value decides the order of
        its sum over three or more processes: the first step of a continued run would differ from the same step of a run
        that never stopped.
        """
        module = parallel.module
        kept = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        images = torch.zeros((2, 3, image_size, image_size), device=self.device)
        module.train()
        with self.autocast():
            out = parallel(images.to(memory_format=self.memory_format))
        logits, *_ = out if isinstance(out, tuple) else (out,)
        logits.float().sum().backward()
        module.zero_grad(set_to_none=True)
        module.load_state_dict(kept)

    def seed(self, *parts: int) -> None:
        """Seed the random generators (dropout) of the CPU and the device from these numbers and the rank."""
        seed = derive_seed(*parts, self.world.rank)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)

    def place(self, module: nn.Module) -> nn.Module:
        """The module on the device; its 4-dimensional weights are in the memory format."""
        return module.to(device=self.device).to(memory_format=self.memory_format)  # type: ignore[call-overload, no-any-return]

    def prefetch(self, batches: Iterable[Batch]) -> Generator[Batch]:
        """The batches on the device, copied ahead of their use. A batch is valid until the next one is requested."""
        return prefetch_to_device(batches, self.device)

    def copy_async(self, values: Tensor) -> Tensor:
        """A small tensor of the host, copied to the device without waiting."""
        if self.device.type == "cuda":
            values = values.pin_memory()
        return values.to(self.device, non_blocking=True)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def loss_backend(self, loss: LossConfig) -> str:
        """The implementation of the loss that runs on this device. ConfigError if loss.backend cannot."""
        try:
            return dispatch.choose(loss.backend, self.device)
        except ValueError as error:
            raise ConfigError(f'loss.backend is "{loss.backend}", but {error}') from None

    def describe(self) -> str:
        """One line for the log."""
        name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else platform.processor() or platform.machine()
        )
        layout = "channels_last" if self.memory_format == torch.channels_last else "contiguous"
        return f"{self.device} ({name}), {self.precision}, {layout}"


def _check(training: TrainingConfig, device: torch.device, world: World) -> None:
    if training.sync_batchnorm and device.type != "cuda":
        raise ConfigError("training.sync_batchnorm needs CUDA devices: PyTorch has it for nothing else")
    if not training.cuda_graph:
        return
    against = {
        "a CUDA device": device.type != "cuda",
        "a single process": not world.is_single,
        "training.accumulate = 1": training.accumulate > 1,
        'another precision than "fp16"': training.precision == "fp16",
    }
    for need, missing in against.items():
        if missing:
            raise ConfigError(f"training.cuda_graph needs {need}")
