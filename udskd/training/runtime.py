"""Where and in which arithmetic the networks run."""

from __future__ import annotations

import contextlib
import platform
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from udskd import backends
from udskd.config import LossConfig, TrainingConfig
from udskd.errors import ConfigError


@dataclass(frozen=True)
class Runtime:
    """Device, precision and memory format of one run."""

    device: torch.device
    precision: Literal["fp32", "bf16"]
    memory_format: torch.memory_format

    @staticmethod
    def of(training: TrainingConfig) -> Runtime:
        """Resolve "auto". ConfigError if a device is asked for that this machine does not have."""
        name = training.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise ConfigError(
                f'training.device is "{name}", but PyTorch sees {count or "no"} CUDA device{"s" * (count > 1)}'
            )
        precision = training.precision
        if precision == "auto":
            precision = "bf16" if device.type == "cuda" else "fp32"
        return Runtime(device, precision, torch.channels_last if training.channels_last else torch.contiguous_format)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """bf16 where asked for; the loss stays outside, it raises its logits to fp32 itself."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def place(self, module: nn.Module) -> nn.Module:
        """The module on the device, in the memory format (which is for image tensors and 4-dimensional weights)."""
        return module.to(device=self.device).to(memory_format=self.memory_format)  # type: ignore[call-overload, no-any-return]

    def loss_backend(self, loss: LossConfig) -> str:
        """The implementation of the loss that runs here. ConfigError if the one asked for cannot."""
        try:
            return backends.choose(loss.backend, self.device)
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


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers, so that nearby seeds and the phases of a run share no random numbers."""
    value = 0x9E3779B97F4A7C15
    for part in parts:  # the finaliser of splitmix64
        value = (value ^ part) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 1
