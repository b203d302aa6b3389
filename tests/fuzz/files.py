"""Damaged files of every kind that is read, in the place of the intact ones of workspace.py.

A damaged file is refused with one sentence that names it, or it gives what the intact one gives. One that carries no
checksum, or whose checksum is made anew (somebody who means harm), may give other values, but no other exception.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import struct
import sys
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import tomli_w
import torch
from torch import Tensor

import udskd
from tests.fuzz import children, workspace
from tests.fuzz.case import Case
from tests.helpers.damage import EXTREMES, Bytes, damage_bytes, damage_value
from udskd.config import toml
from udskd.config.schema import DataConfig, TeacherConfig
from udskd.data.dataset import ImageSet, UnreadableImage
from udskd.data.decode import read_pixels
from udskd.data.formats import FORMATS
from udskd.data.manifest import MAGIC as MANIFEST_MAGIC
from udskd.data.manifest import read_manifest
from udskd.data.packed import PREFIX, open_packs
from udskd.errors import UdskdError, printable
from udskd.models.checkpoints import STATE
from udskd.models.loading import load_network
from udskd.results.runs import group_runs, read_runs
from udskd.results.table import markdown, table
from udskd.training.storage.checkpoint import load_state
from udskd.training.storage.run_folder import RunFolder
from udskd.training.teacher_cache.folder import CacheFolder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SECONDS = 20.0
SPECIAL = ("folder", "fifo", "socket", "nowhere", "loop", "missing", "/dev/null", "/dev/zero", "unreadable")


@dataclass(frozen=True)
class Form:
    """A kind of file: where it is in the workspace, and what reads it."""

    file: str
    read: Callable[[Path], Any]
    """Reads the file at a path, whose folder is as in the workspace."""
    has_checksum: bool = False
    """Whether every change of the bytes must be refused, or have no effect."""


class Files:
    def draw(self, random: Random) -> Case:
        name = random.choice(list(FORMS))
        case = {"form": name, **draw_damage(FORMS[name].file, random)}
        return {**case, "sealed": case.get("sealed", False) and FORMS[name].has_checksum}

    def findings(self, cases: list[Case]) -> list[str | None]:
        workspace.template()
        return children.findings(cases, finding, SECONDS)

    def smaller(self, case: Case) -> Iterable[Case]:
        return []


def draw_damage(file: str, random: Random) -> Case:
    """Something that is no file, or a damaged content; "sealed": whether a checksum, if there is one, shows it."""
    if random.random() < 0.1:
        return {"special": random.choice(SPECIAL)}
    data = (workspace.template() / file).read_bytes()
    harm = _harm_state if data.startswith(STATE) else HARM.get(Path(file).suffix)
    if harm and random.random() < 0.5:
        return {"content": pack_content(harm(data, random)), "sealed": False}
    return {"content": pack_content(damage_bytes(data, random)), "sealed": True}


def place(case: Case, path: Path) -> None:
    """Put a damaged content, or something that is no file, at a path."""
    path.unlink()
    if "content" in case:
        path.write_bytes(zlib.decompress(b64decode(case["content"])))
        return
    kind = case["special"]
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with closing(socket.socket(socket.AF_UNIX)) as server, suppress(OSError):  # the path may be too long
            server.bind(str(path))
    elif kind == "unreadable":  # root can read it, and finds it empty
        path.touch(mode=0)
    elif kind != "missing":
        path.symlink_to(path.name if kind == "loop" else kind)


def pack_content(data: bytes) -> str:
    """A file's content as text, for a case."""
    return b64encode(zlib.compress(data, 9)).decode()


def finding(case: Case) -> str | None:
    """What is wrong with the outcome of a case, None for nothing."""
    form = FORMS[case["form"]]
    folder = Path(form.file).parent
    with workspace.copy(str(folder)) as copied:
        path = copied / Path(form.file).name
        intact = plain(form.read(path)) if case.get("sealed") else None
        place(case, path)
        before = sorted(copied.rglob("*"))
        try:
            value = plain(form.read(path))
        except (UdskdError, UnreadableImage) as error:
            return _wrong_sentence(str(error), path)
        if sorted(copied.rglob("*")) != before:
            return "reading has written a file"
        return "a damaged file is accepted with other content" if case.get("sealed") and value != intact else None


def _wrong_sentence(text: str, path: Path) -> str | None:
    if len(printable(text).splitlines()) != 1:  # as the command line prints it
        return f"not one sentence: {text!r}"
    if "none of the runs given is complete" in text:  # after a warning that names the run
        return None
    return None if path.name in text or str(path.parent) in text else f"does not name the file: {text!r}"


def plain(value: Any) -> Any:
    """Values that can be compared: tensors and arrays as bytes."""
    if isinstance(value, dict):
        return {key: plain(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(x) for x in value]
    if isinstance(value, Tensor):
        return (
            str(value.dtype),
            list(value.shape),
            value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    return repr(value)


def _read_weights(path: Path) -> Any:
    loaded = udskd.load(path)
    size = loaded.image_size if loaded.image_size < 100 else 8
    logits = loaded.module(torch.zeros(1, 3, size, size))
    return loaded.classes, loaded.image_size, loaded.mean, loaded.std, loaded.eval_crop, loaded.stem, logits


def _read_plain_weights(path: Path) -> Any:
    options, data = TeacherConfig(model="tiny_plain_4"), DataConfig(image_size=8)
    return dict(load_network(path, options, ("blue", "green", "red"), data).module.state_dict())


def _read_packs(path: Path) -> Any:
    return [_read_set(images) for images in open_packs(path.parent)]


def _read_set(images: ImageSet) -> Any:
    return images.classes, images.labels, [(images.relative_name(k), images.pixels(k)) for k in range(len(images))]


def _read_cache(path: Path) -> Any:
    folder = CacheFolder.open(path.parent)
    if folder is None:
        raise UdskdError(f"no cache in {path.parent}")
    folder.check_dependencies(dict(folder.dependencies), "")
    folder.check_epochs(workspace.EPOCHS)
    return [
        folder.dependencies,
        [np.asarray(folder.read_epoch(epoch, verify=True)) for epoch in range(workspace.EPOCHS)],
    ]


def _read_run(path: Path) -> Any:
    groups = group_runs(read_runs([path.parent]))
    return markdown(table(groups))


def _read_run_folder(path: Path) -> Any:
    folder = RunFolder.open(path.parent)
    images = folder.events("unreadable")
    return folder.summary(), folder.config, folder.manifest(), images, folder.started_by("x")


def _harm_json(data: bytes, random: Random) -> bytes:
    return json.dumps(damage_value(json.loads(data), random)).encode()


def _harm_lines(data: bytes, random: Random) -> bytes:
    lines = data.splitlines(keepends=True)
    number = random.randrange(len(lines))
    return b"".join([*lines[:number], _harm_json(lines[number], random) + b"\n", *lines[number + 1 :]])


def _harm_toml(data: bytes, random: Random) -> bytes:
    table = tomllib.loads(data.decode())
    while True:
        with suppress(TypeError, ValueError):  # TOML has no null
            return tomli_w.dumps(damage_value(table, random)).encode()


def _harm_manifest(data: bytes, random: Random) -> bytes:
    content = zlib.compress(_harm_json(zlib.decompress(data.partition(b"\n")[2]), random))
    return MANIFEST_MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def _harm_state(data: bytes, random: Random) -> bytes:
    buffer = io.BytesIO()
    torch.save(damage_value(torch.load(io.BytesIO(data.partition(b"\n")[2]), weights_only=True), random), buffer)
    return STATE + hashlib.sha256(buffer.getvalue()).hexdigest().encode() + b"\n" + buffer.getvalue()


def _harm_pickle(data: bytes, random: Random) -> bytes:
    buffer, is_zip = io.BytesIO(), data.startswith(b"PK")
    value = damage_value(torch.load(io.BytesIO(data), weights_only=True), random)
    torch.save(value, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


def _harm_safetensors(data: bytes, random: Random) -> bytes:
    """Another header; udskd's metadata have their checksum."""
    length = int.from_bytes(data[:8], "little")
    header = damage_value(json.loads(data[8 : 8 + length]), random)
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if isinstance(metadata, dict) and "metadata_sha256" in metadata:
        entries = sorted((name, value) for name, value in metadata.items() if name != "metadata_sha256")
        metadata["metadata_sha256"] = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _harm_pack(data: bytes, random: Random) -> bytes:
    """Another object or entry in the index, or other lengths, and the SHA-256 of that index."""
    magic, version, _, json_bytes, count, name_bytes, _ = PREFIX.unpack(data[: PREFIX.size])
    end = PREFIX.size + json_bytes + 36 * count + name_bytes
    head, rest = data[PREFIX.size : PREFIX.size + json_bytes], data[PREFIX.size + json_bytes : end]
    lengths = [json_bytes, count, name_bytes]
    if random.random() < 0.4:
        head = _harm_json(head, random)
        lengths[0] = len(head)
    elif random.random() < 0.6:
        place, width = random.randrange(max(1, len(rest) - 8)), random.choice((4, 8))
        number = random.choice([x for x in EXTREMES if x < 2 ** (8 * width)])
        rest = rest[:place] + number.to_bytes(width, "little") + rest[place + width :]
    else:
        lengths[random.randrange(3)] = random.choice(EXTREMES)
    index = head + rest
    body = index + data[end:]
    with suppress(struct.error):
        prefix = PREFIX.pack(magic, version, hashlib.sha256(index).digest(), *lengths, PREFIX.size + len(body))
        return prefix + body
    return data[:-1]


HARM: dict[str, Bytes] = {
    **{".json": _harm_json, ".jsonl": _harm_lines, ".toml": _harm_toml, ".safetensors": _harm_safetensors},
    **{".pt": _harm_pickle, ".pth": _harm_pickle, ".pack": _harm_pack, ".manifest": _harm_manifest},
}
"""By suffix: damage that is specific to a format, and keeps its checksums right."""
FORMS: dict[str, Form] = {
    "recipe": Form("recipe.toml", toml.load),
    "weights": Form("run/student_a.safetensors", _read_weights, has_checksum=True),
    "zipped weights": Form("weights/zip.pt", _read_plain_weights),
    "old weights": Form("weights/old.pth", _read_plain_weights),
    "state": Form("begun/checkpoints/students.pt", load_state, has_checksum=True),
    "pack": Form("packs/train.pack", _read_packs, has_checksum=True),
    "pack of val": Form("packs/val.pack", _read_packs, has_checksum=True),
    "cache": Form("cache/cache.json", _read_cache),
    "cached epoch": Form("cache/epoch-0000.npy", _read_cache, has_checksum=True),
    "summary": Form("run/summary.json", _read_run),
    "log": Form("run/log.jsonl", _read_run),
    "config": Form("run/config.toml", _read_run),
    "predictions": Form("run/predictions.safetensors", _read_run),
    "manifest": Form("run/images.manifest", read_manifest, has_checksum=True),
    "log of a run": Form("run/log.jsonl", _read_run_folder),
    "summary of a run": Form("run/summary.json", _read_run_folder),
    "environment": Form("run/environment.json", _read_run_folder),
    **{f.name: Form(f"images/image{f.suffixes[0]}", lambda path: read_pixels(str(path))) for f in FORMATS},
}
