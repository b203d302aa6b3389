"""The run folder: config.toml, environment.json, images.manifest, log.jsonl, checkpoints/, the trained networks, the
students' predictions, summary.json."""

from __future__ import annotations

import errno
import itertools
import json
import os
import platform
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

from udskd import __version__
from udskd.config import toml
from udskd.config.schema import Config
from udskd.config.validation import parse_json, reading
from udskd.data.manifest import FILE as MANIFEST
from udskd.data.manifest import Manifest, read_manifest, to_bytes
from udskd.errors import CheckpointError, ConfigError
from udskd.files import make_folder, open_to_append, read_regular, write_atomic
from udskd.process.streams import print_error
from udskd.results.run_files import LOG, SUMMARY, read_events, read_summary
from udskd.training.storage.checkpoint import previous


class RunFolder:
    """The files of one run. create() makes the folder, open() opens one that exists.

    Of several processes only rank 0 writes: with writes = False, the methods that write do nothing.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self.checkpoints = path / "checkpoints"
        self._unreadable: set[str] | None = None
        self._unreadable_lock = threading.Lock()
        self._lock_file: Any = None
        self._damage = ""

    def check_free(self) -> None:
        """ConfigError unless the path is free: nothing, an empty folder, or what a killed create() has left."""
        if (self.path / "config.toml").exists():
            resume = f"an unfinished run (udskd train --resume {self.path} continues it)"
            state = "a finished run" if self.complete else resume
            raise ConfigError(f"{self.path} already holds {state}: choose another --output")
        if self.path.exists() and not (self.path.is_dir() and all(map(_is_left_by_create, self.path.iterdir()))):
            raise ConfigError(f"{self.path} exists and is not an empty folder: choose another --output")

    def create(self, config: Config, images: Manifest | None) -> None:
        """Make the folder and write the config, the environment and the manifest of the images."""
        if not self.writes:
            return
        make_folder(self.checkpoints)
        write_atomic(self.path / "environment.json", _json(environment()))
        self._write_manifest(images)
        write_atomic(self.path / "config.toml", toml.dump(config).encode())
        self.lock()

    def lock(self) -> None:
        """Lock the folder until unlock() or the end of this process.

        Raises ConfigError if another process has locked it, CheckpointError if environment.json cannot be opened.
        """
        if fcntl is None or not self.writes:
            return
        file = self.path / "environment.json"
        try:
            self._lock_file = open_to_append(file)
        except OSError as error:
            if error.errno == errno.EROFS:  # nothing can be written, so nothing must be locked
                return
            raise CheckpointError(f"cannot write {file}: {error.strerror or error}") from error
        try:  # lockf: the system frees the lock however this process ends, and worker processes do not inherit it
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ConfigError(f"{self.path} is being trained by another process: stop that one first") from None
        except OSError:  # a file system without locks
            return

    def unlock(self) -> None:
        """Allow other processes to write."""
        if self._lock_file is not None:
            self._lock_file.close()

    @staticmethod
    def open(path: Path, writes: bool = True) -> RunFolder:
        """The folder of a run, finished or not. ConfigError if it is not one."""
        if not (path / "config.toml").exists():
            raise ConfigError(f"{path} is not a run folder: it has no config.toml")
        return RunFolder(path, writes)

    def resume(self, images: Manifest | None) -> None:
        """Add the environment to restarts.jsonl. It is not in the log, which must equal that of an undisturbed run."""
        if not self.writes:
            return
        make_folder(self.checkpoints)
        self._write_manifest(images)
        self._append("restarts.jsonl", {"time": round(time.time(), 3), **environment()})

    def manifest(self) -> Manifest | None:
        """The images that the run was started with; None if an earlier version started it.

        Raises CheckpointError if it is damaged.
        """
        return read_manifest(self.path / MANIFEST)

    def _write_manifest(self, images: Manifest | None) -> None:
        if images is not None:
            write_atomic(self.path / MANIFEST, to_bytes(images))

    def remove_state(self, name: str) -> None:
        """Remove the train state of a complete phase."""
        state = self.checkpoints / f"{name}.pt"
        try:
            for path in (state, previous(state)) if self.writes else ():
                path.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot remove {path}: {error.strerror or error}") from error

    @property
    def config(self) -> Config:
        """The options that the run was started with."""
        return toml.load(self.path / "config.toml")

    @property
    def begun(self) -> bool:
        """Whether the run has been started: the folder holds its config."""
        return (self.path / "config.toml").exists()

    @property
    def complete(self) -> bool:
        """Whether the run is complete: its summary is written."""
        return (self.path / SUMMARY).exists()

    def summary(self) -> dict[str, Any]:
        """The summary of a complete run."""
        if summary := read_summary(self.path):
            return summary
        raise CheckpointError(f"{self.path / SUMMARY} is not that of a complete run: remove it to continue the run")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the last file of a run, which makes the run complete."""
        if self.writes:
            write_atomic(self.path / SUMMARY, _json(summary))

    def log(self, event: str, **values: Any) -> None:
        """Append one line to log.jsonl."""
        if self.writes:
            self._append(LOG, {"event": event, "time": round(time.time(), 3), **values})

    def log_unreadable(self, image: str, name: str, reason: str) -> bool:
        """Log a training image that cannot be read, once in a run. Returns False if it is logged already.

        image: the relative name, which identifies it; name: the path, for the reader. Any thread may call this.
        """
        with self._unreadable_lock:
            if self._unreadable is None:  # earlier versions logged the path only
                self._unreadable = {event.get("image", event["name"]) for event in self.events("unreadable")}
            if not self._unreadable.isdisjoint((image, name)):
                return False
            self._unreadable.add(image)
            self.log("unreadable", image=image, name=name, reason=reason)
            return True

    def started_by(self, torchrun: str | None) -> bool:
        """Whether this torchrun (by its run id, which restarts share) started the run."""
        try:
            file = self.path / "environment.json"
            with reading(file, CheckpointError):
                starter = parse_json(read_regular(file), dict[str, Any]).get("torchrun")
        except (CheckpointError, FileNotFoundError):
            return False
        return self.begun and torchrun is not None and starter == torchrun

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of one name in the log, in order."""
        return [event for event in self._events() if event["event"] == name]

    def truncate_log(self, name: str, epochs: int) -> None:
        """Remove the events from the first `name` event beyond `epochs` on: a crash between a log line and the save of
        the train state leaves them, and the continued run logs them again."""
        self._unreadable = None
        if not self.writes:
            return
        kept = list(itertools.takewhile(lambda e: e["event"] != name or e["epoch"] <= epochs, self._events()))
        write_atomic(self.path / LOG, "".join(json.dumps(e) + "\n" for e in kept).encode())

    def _append(self, name: str, value: dict[str, Any]) -> None:
        try:
            with open_to_append(self.path / name) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - 1, 0))
                torn = file.read() not in (b"", b"\n")  # a crash cut the last line short: begin a new one
                file.write(b"\n" * torn + json.dumps(value).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())  # the train state that is saved next must not be ahead of the log
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path / name}: {error.strerror or error}") from error

    def _events(self) -> list[dict[str, Any]]:
        try:
            events, damage = read_events(self.path / LOG)
        except FileNotFoundError:
            return []
        if damage and self._damage != damage:
            self._damage = damage
            print_error(f"udskd: warning: {damage}")
        return events


def environment() -> dict[str, Any]:
    """The versions, command and machine that produced the numbers."""
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": " ".join(["udskd", *sys.argv[1:]]),
        "torchrun": os.environ.get("TORCHELASTIC_RUN_ID"),
        "udskd": __version__,
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": cuda,
    }


def _is_left_by_create(path: Path) -> bool:
    """Whether a file can be the remainder of a create() that was killed."""
    name = path.name.removesuffix(".tmp")
    return name in ("environment.json", MANIFEST, "config.toml") or (name == "checkpoints" and not any(path.iterdir()))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
