"""A folder with a file of every kind that udskd reads, written by udskd itself from tiny networks and images."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from tests.training.conftest import tiny_config, write_tree
from udskd.config import schema, toml
from udskd.data.formats import FORMATS
from udskd.data.pack import pack
from udskd.models.checkpoints import load_weights
from udskd.training import train
from udskd.training.teacher_cache.writer import cache_teacher

EPOCHS = 2
OPTIONS: dict[str, Any] = {
    **{"method": "cud", "training.epochs": EPOCHS, "training.batch_size": 6, "training.save_every": 1e-9},
    **{"teacher.epochs": 1, "cud.stage_epochs": 1},
}


class _Stop(Exception):
    """Ends a run before its last files are written."""


@cache
def template() -> Path:
    """The folder, which is removed when this process exits."""
    place, owner = Path(tempfile.mkdtemp(prefix="udskd-fuzz-")), os.getpid()
    atexit.register(lambda: shutil.rmtree(place, ignore_errors=True) if os.getpid() == owner else None)
    before = Path.cwd()
    try:
        os.chdir(place)
        with redirect_stdout(StringIO()):
            _write()
    finally:
        os.chdir(before)
    return place


@contextmanager
def copy(name: str = ".") -> Iterator[Path]:
    """A copy of the folder, or of one folder or file in it, which is removed afterwards."""
    source = template() / name
    place = Path(tempfile.mkdtemp(prefix="udskd-case-"))
    try:
        if source.is_dir():
            yield Path(shutil.copytree(source, place / (source.name or "."), dirs_exist_ok=True))
        else:
            yield Path(shutil.copy(source, place / source.name))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _write() -> None:
    """The files, in the working folder."""
    tree, images = write_tree(Path("tree"), train=4, val=2), Path("images")
    config = schema.with_values(tiny_config(tree, Path("run")), OPTIONS)
    Path("recipe.toml").write_text(toml.dump(schema.with_values(config, {"output": "new", "training.epochs": 1})))
    train(config)
    with mock.patch("udskd.training.train.write_predictions", side_effect=_Stop), suppress(_Stop):
        train(schema.with_values(config, {"output": "begun"}))
    cached = {"teacher.checkpoint": "run/teacher.safetensors", "teacher.stage": "none", "method": "kd"}
    cache_teacher(schema.with_values(config, cached), Path("cache"), None)
    pack(tree, "packs", short_side=None)
    Path("weights").mkdir()
    weights, _ = load_weights(Path("run/teacher.safetensors"))
    torch.save(weights, "weights/zip.pt")
    torch.save(weights, "weights/old.pth", _use_new_zipfile_serialization=False)
    images.mkdir()
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8))
    for form in FORMATS:
        pixels.save(images / f"image{form.suffixes[0]}")
