"""A tiny image tree and tiny networks: a whole run in about a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.helpers.parallel import ForkServer
from tests.training.helpers.variants import options
from udskd.config.schema import Config, DataConfig, StudentConfig, TeacherConfig, TrainingConfig
from udskd.training import train

CLASSES = ("blue", "green", "red")


def write_tree(root: Path, train: int = 12, val: int = 6, size: int = 12, classes: tuple[str, ...] = CLASSES) -> Path:
    """ImageFolder tree of noisy images in which class i is bright in channel i."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 160, (size, size, 3))
                pixels[..., label % 3] += 60
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"))


def tiny_config(tree: Path, output: Path) -> Config:
    return Config(
        output=str(output),
        data=DataConfig(root=str(tree), image_size=8, workers=0),
        teacher=TeacherConfig(model="tiny_plain_4"),
        student_a=StudentConfig(model="tiny_plain_2"),
        student_b=StudentConfig(model="tiny_separable_2"),
        training=TrainingConfig(epochs=3, batch_size=12, lr=0.05, warmup_epochs=1, ema_decay=0.5, device="cpu"),
    )


@pytest.fixture
def config(tree: Path, tmp_path: Path) -> Config:
    return tiny_config(tree, tmp_path / "run")


@pytest.fixture(scope="session")
def teacher_weights(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of a teacher that has learnt something."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    train(options(tiny_config(tree, run), {"method": "kd", "training.epochs": 1, "teacher.epochs": 3}))
    return str(run / "teacher.safetensors")


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    fork_server = ForkServer()
    yield fork_server
    fork_server.close()
