"""The run folder: config.toml, environment.json, log.jsonl, checkpoints/, the trained networks, summary.json."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from udskd import recipe
from udskd._version import __version__
from udskd.config import Config
from udskd.errors import CheckpointError, ConfigError
from udskd.training.checkpoint import write_atomic


class RunFolder:
    """One run's files. create() makes it, open() finds one that exists."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    def check_free(self) -> None:
        """ConfigError unless there is nothing at the path, or an empty folder."""
        if (self.path / "config.toml").exists():
            resume = f"an unfinished run (udskd train --resume {self.path} continues it)"
            state = "a finished run" if self.complete else resume
            raise ConfigError(f"{self.path} already holds {state}: choose another --output")
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ConfigError(f"{self.path} exists and is not an empty folder: choose another --output")

    def create(self, config: Config) -> None:
        """Make the folder, with the config and the environment in it."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make the run folder {self.path}: {error.strerror or error}") from error
        write_atomic(self.path / "environment.json", _json(environment()))
        write_atomic(self.path / "config.toml", recipe.dump(config).encode())

    @staticmethod
    def open(path: Path) -> RunFolder:
        """The folder of a run, finished or not. ConfigError if it is not one."""
        if not (path / "config.toml").is_file():
            raise ConfigError(f"{path} is not a run folder: it has no config.toml")
        folder = RunFolder(path)
        folder.checkpoints.mkdir(exist_ok=True)
        return folder

    @property
    def config(self) -> Config:
        """The options that the run was started with."""
        return recipe.load(self.path / "config.toml")

    @property
    def complete(self) -> bool:
        """Whether the run has ended and its summary is written."""
        return (self.path / "summary.json").exists()

    def summary(self) -> dict[str, Any]:
        """The summary of a complete run."""
        try:
            summary: dict[str, Any] = json.loads((self.path / "summary.json").read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path / 'summary.json'} cannot be read: {error}") from None
        return summary

    def write_summary(self, summary: dict[str, Any]) -> None:
        """The last file of a run: its presence makes the run complete."""
        write_atomic(self.path / "summary.json", _json(summary))

    def log(self, event: str, **values: Any) -> None:
        """Append one line to log.jsonl."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values})
        try:
            with open(self.path / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path / 'log.jsonl'}: {error.strerror or error}") from error

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log's events of one name, in order; a line torn by a crash is left out."""
        return [event for event in self._events() if event["event"] == name]

    def rewind(self, name: str, epochs: int) -> None:
        """Forget logged epochs beyond the saved ones, which a crash between log line and checkpoint leaves."""
        kept = [e for e in self._events() if not (e["event"] == name and e["epoch"] > epochs)]
        write_atomic(self.path / "log.jsonl", "".join(json.dumps(e) + "\n" for e in kept).encode())

    def _events(self) -> list[dict[str, Any]]:
        path = self.path / "log.jsonl"
        events = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
        return events


def environment() -> dict[str, Any]:
    """What a reader needs to know about where the numbers came from."""
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": " ".join(["udskd", *sys.argv[1:]]),
        "udskd": __version__,
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": cuda,
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
