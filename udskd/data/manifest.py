"""The manifest of a run's images: their names and digests, which show later whether the images have changed."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from udskd.config.validation import parse_json, reading
from udskd.data.dataset import ImageSet, UnreadableImage, abbreviate
from udskd.data.workers import Poll, in_order, no_op
from udskd.errors import CheckpointError
from udskd.files import read_regular

FILE = "images.manifest"
MAGIC = b"udskd-images-1 "  # precedes the SHA-256 (hex) of the rest, a newline, and the manifest as compressed JSON
UNREADABLE = "unreadable"
_THREADS = 8  # more than the cores of many machines: reads of small files wait for the disk (unmeasured)
_CHUNK = 64


@dataclass(frozen=True)
class Listing:
    """The N images of one split, in order."""

    checksum: str
    """The kind of the digests, see content_digest()."""
    names: list[str]
    digests: list[str]
    marks: list[list[int]]
    """See ImageSet.mark."""


Manifest = dict[str, Listing]
"""By split."""


def list_images(
    sets: Mapping[str, ImageSet],
    known: Manifest | None = None,
    advance: Callable[[], object] = no_op,
    poll: Poll = no_op,
) -> Manifest:
    """The manifest of sets by split. It calls `advance` for every image and `poll`, which may raise, often.

    Without `known`, it takes the digests that a set stores, as packs do. With `known`, all digests are of its checksum,
    so that the two manifests can be compared, and an image whose mark is the one in `known` keeps its digest unread.
    """
    return {split: _list(images, (known or {}).get(split), advance, poll) for split, images in sets.items()}


def _list(images: ImageSet, known: Listing | None, advance: Callable[[], object], poll: Poll) -> Listing:
    checksum = images.checksum if known is None else known.checksum
    names = [images.relative_name(index) for index in range(len(images))]
    old = {} if known is None else dict(zip(known.names, zip(known.marks, known.digests, strict=True), strict=True))

    def chunk(begin: int) -> list[tuple[list[int], str]]:
        rows = range(begin, min(begin + _CHUNK, len(names)))
        if known is None:
            return [_first_seen(images, index) for index in rows]
        return [_identify(images, index, checksum, old.get(names[index])) for index in rows]

    found: list[tuple[list[int], str]] = []
    with closing(in_order(chunk, range(0, len(names), _CHUNK), _THREADS)) as chunks:
        for some in chunks:
            poll()
            found += some
            for _ in some:
                advance()
    return Listing(checksum, names, [digest for _, digest in found], [mark for mark, _ in found])


def _first_seen(images: ImageSet, index: int) -> tuple[list[int], str]:
    mark, recorded = list(images.mark(index)), images.recorded_digest(index)
    return (mark, recorded) if recorded is not None else _identify(images, index, images.checksum, None)


def _identify(
    images: ImageSet, index: int, checksum: str, known: tuple[list[int], str] | None
) -> tuple[list[int], str]:
    mark = list(images.mark(index))  # before the content, so that the next call finds a change in between
    if known is not None and mark and mark == known[0] and known[1] != UNREADABLE:
        return mark, known[1]
    try:
        return mark, images.digest(index, checksum)
    except UnreadableImage:
        return mark, UNREADABLE


def describe_changes(old: Manifest, new: Manifest) -> str:
    """How `new` differs from `old`: the numbers of images and the first names, or "" for no difference."""
    before, now = _digests(old), _digests(new)
    other = [name for name in before if name in now and now[name] != before[name]]
    kinds = {
        "added": [name for name in now if name not in before],
        "removed": [name for name in before if name not in now],
        "changed": [name for name in other if now[name] != UNREADABLE],
        "not readable any more": [name for name in other if now[name] == UNREADABLE],
    }
    parts = [f"{len(names)} {kind} ({abbreviate(names)})" for kind, names in kinds.items() if names]
    return ", ".join(parts) or ("" if list(before) == list(now) else "the same images in another order")


def content_hash(listing: Listing) -> str:
    """One digest of a split's names and contents in order, after the kind of the contents' digests."""
    digest = hashlib.sha256()
    for name, content in zip(listing.names, listing.digests, strict=True):
        digest.update(f"{name}\t{content}\n".encode("utf-8", "surrogateescape"))
    return f"{listing.checksum}:{digest.hexdigest()}"


def _digests(manifest: Manifest) -> dict[str, str]:
    return {
        f"{split}/{name}": digest
        for split, listing in manifest.items()
        for name, digest in zip(listing.names, listing.digests, strict=True)
    }


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in a file, or None if there is no such file. CheckpointError if the file is damaged."""
    advice = "put it back, or delete it to continue without knowing whether the images are still the same"
    try:
        with reading(path, CheckpointError, advice, damaged="lists the images and is damaged"):
            return from_bytes(read_regular(path))
    except FileNotFoundError:
        return None


def to_bytes(manifest: Manifest) -> bytes:
    """The content of a manifest's file."""
    values = {split: asdict(listing) for split, listing in manifest.items()}
    content = zlib.compress(json.dumps(values, separators=(",", ":")).encode(), level=1)
    return MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def from_bytes(data: bytes) -> Manifest:
    """The manifest that to_bytes() wrote. Raises ValueError for anything else, or if it is damaged."""
    head, _, content = data.partition(b"\n")
    if head != MAGIC + hashlib.sha256(content).hexdigest().encode():
        raise ValueError("its contents do not match their SHA-256")
    try:
        manifest: Manifest = parse_json(_decompress(content), Manifest)
        is_complete = all(len(one.names) == len(one.digests) == len(one.marks) for one in manifest.values())
    except (zlib.error, ValueError, RecursionError):
        is_complete = False
    if not is_complete:
        raise ValueError("it was not written by udskd")
    return manifest


def _decompress(content: bytes) -> bytes:
    """ValueError for more than 64 times the bytes, which no list has: half of a list are digests."""
    stream = zlib.decompressobj()
    data = stream.decompress(content, 64 * len(content))
    if not stream.eof:
        raise ValueError("it is cut short, or decompresses to too much")
    return data
