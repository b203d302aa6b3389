"""The baseline of udskd's training: a loop in plain PyTorch and torchvision that follows PyTorch's recommendations.

ImageFolder, PIL transforms, a DataLoader with persistent workers and pinned memory; the teacher in eval mode under
no_grad; the loss in PyTorch's functions; torch.optim.SGD; autocast for half precision; one loss.item() in each step.
With layout=torch.channels_last also the memory format that suits convolutions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tests.loss.helpers.eager import dual_student_loss
from udskd.config.schema import Config, DataConfig


def loader(
    config: DataConfig, indices: Sequence[int], batch_size: int, workers: int, device: torch.device | str
) -> DataLoader[Any]:
    """Batches of float32 [B, 3, S, S] and labels [B] of the images of root/train with these indices, shuffled."""
    views = transforms.Compose(
        [
            transforms.RandomResizedCrop(config.image_size, scale=config.crop_scale),
            transforms.RandomHorizontalFlip(config.flip),
            transforms.ToTensor(),
            transforms.Normalize(config.mean, config.std),
        ]
    )
    images = Subset(ImageFolder(str(Path(config.root) / "train"), views), indices)
    return DataLoader(
        images,
        batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=torch.device(device).type == "cuda",
        persistent_workers=workers > 0,
        drop_last=True,
    )


class PlainLoop:
    """Trains two students with a frozen teacher. It moves the given modules to the device and changes them."""

    def __init__(
        self,
        teacher: nn.Module,
        student_a: nn.Module,
        student_b: nn.Module,
        config: Config,
        device: torch.device | str,
        precision: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.device, self.precision, self.layout = torch.device(device), precision, layout
        for module in (teacher, student_a, student_b):
            module.to(self.device).to(memory_format=layout)  # type: ignore[call-overload]
        self.teacher = teacher.eval().requires_grad_(False)
        self.students = (student_a.train(), student_b.train())
        training, loss = config.training, config.loss
        self.optimizer = torch.optim.SGD(
            [p for student in self.students for p in student.parameters()],
            lr=training.lr,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            nesterov=training.momentum > 0,
        )
        self.options = {
            "temperature": loss.temperature,
            "ce_weight": loss.ce_weight,
            "kd_weight": loss.kd_weight,
            "peer_weight": loss.peer_weight,
            "uncertainty": loss.uncertainty,
        }

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32)

    def to_device(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(self.device, non_blocking=True, memory_format=self.layout)
        return images, labels.to(self.device, non_blocking=True)

    def teacher_logits(self, images: Tensor) -> Tensor:
        with torch.no_grad(), self.autocast():
            logits: Tensor = self.teacher(images)
        return logits

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        teacher = self.teacher_logits(images)
        with self.autocast():
            a, b = (student(images) for student in self.students)
        return self.loss_of(teacher, a, b, labels)

    def loss_of(self, teacher: Tensor, a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        return dual_student_loss(teacher.float(), a.float(), b.float(), labels, **self.options).loss  # type: ignore[arg-type]

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self, images: Tensor, labels: Tensor) -> float:
        """One step on a batch that is on the device; returns its loss."""
        loss = self.loss(images, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.update()
        return loss.item()

    def epoch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> int:
        """Trains on all batches; returns the number of images."""
        count = 0
        for images, labels in batches:
            self.step(*self.to_device(images, labels))
            count += len(images)
        return count
