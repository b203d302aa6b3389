"""Damage to files: of bytes in any format, and of values in trees of dicts and lists, such as JSON, TOML and pickles.

Every function draws from the random.Random that it receives, so that a seed repeats the damage.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

Bytes = Callable[[bytes, Random], bytes]
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
DEEP = 5_000  # levels of nesting; Python's recursion limit is 1,000


def flip(data: bytes, random: Random) -> bytes:
    """One bit is another."""
    place = random.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]


def flip_early(data: bytes, random: Random) -> bytes:
    """One bit of the first 256 bytes, where most formats have their header, is another."""
    return flip(data[:256], random) + data[256:]


def cut(data: bytes, random: Random) -> bytes:
    """The end is missing."""
    return data[: random.randrange(len(data))]


def cut_short(data: bytes, random: Random) -> bytes:
    """At most 64 bytes at the end are missing."""
    return data[: -random.randrange(1, min(len(data), 64) + 1)]


def zero(data: bytes, random: Random) -> bytes:
    """A run of bytes is zero, as after a loss of power."""
    start, end = _run(data, random)
    return data[:start] + bytes(end - start) + data[end:]


def noise(data: bytes, random: Random) -> bytes:
    """A run of bytes is random."""
    start, end = _run(data, random)
    return data[:start] + random.randbytes(end - start) + data[end:]


def delete(data: bytes, random: Random) -> bytes:
    """A run of bytes is missing."""
    start, end = _run(data, random)
    return data[:start] + data[end:]


def insert(data: bytes, random: Random) -> bytes:
    """There are up to 64 random bytes more somewhere."""
    place = random.randrange(len(data) + 1)
    return data[:place] + random.randbytes(random.randrange(1, 65)) + data[place:]


def splice(data: bytes, random: Random) -> bytes:
    """A run of bytes is overwritten with another run of the same file."""
    start, end = _run(data, random)
    other = random.randrange(len(data) - (end - start) + 1)
    return data[:start] + data[other : other + end - start] + data[end:]


def append(data: bytes, random: Random) -> bytes:
    """Bytes follow the end."""
    return data + random.choice((b"\0", b"\n", b"{}", data[:64], random.randbytes(16)))


def extreme_integer(data: bytes, random: Random) -> bytes:
    """1 to 8 bytes are an extreme integer, little-endian or big-endian."""
    width = random.choice((1, 2, 4, 8))
    number = random.choice([x for x in EXTREMES if x < 2 ** (8 * width)])
    place = random.randrange(max(1, min(len(data), random.choice((64, len(data)))) - width))
    return data[:place] + number.to_bytes(width, random.choice(("little", "big"))) + data[place + width :]


def extreme_digits(data: bytes, random: Random) -> bytes:
    """A number that is written in digits is another, if there is one."""
    numbers = list(re.finditer(rb"\d+", data))
    if not numbers:
        return extreme_integer(data, random)
    found = random.choice(numbers)
    other = random.choice((b"-1", b"0", b"9" * 5_000, b"1e400", b"NaN", *(str(x).encode() for x in EXTREMES)))
    return data[: found.start()] + other + data[found.end() :]


def foreign(data: bytes, random: Random) -> bytes:
    """The content of another kind of file."""
    deep = random.choice((b"[" * DEEP + b"]" * DEEP, b'{"a":' * DEEP + b"1" + b"}" * DEEP))
    others = (b"", b"\n", b"null", b"[]", b"{}", b"0", b'""', b"true", b"\0" * len(data), b"\xff\xfe\0", deep)
    return random.choice(others)


BYTES: tuple[Bytes, ...] = (
    *(flip, flip_early, cut, cut_short, zero, noise, delete, insert, splice, append, extreme_integer, extreme_digits),
    foreign,
)


def damage_bytes(data: bytes, random: Random) -> bytes:
    """Other bytes, by one of BYTES."""
    while True:
        damaged = random.choice(BYTES)(data, random) if data else random.randbytes(8)
        if damaged != data:
            return damaged


def nested(depth: int = DEEP, *, of: type = list) -> Any:
    """A list in a list in a list, or likewise dicts."""
    value: Any = of()
    for _ in range(depth):
        value = {"a": value} if of is dict else [value]
    return value


STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 2**64, 10**30, 0.0, 0.5, -1.0, 1e308),
    *(float("nan"), float("inf"), "", "x", "0", "nan", "../../x", "a\nb", "\0", "\x1b[31m", "é", "x" * 5_000),
    *([], [0], ["x"], [[]], [None], {}, {"x": 0}, {"x": {}}),
)


def damage_value(tree: Any, random: Random) -> Any:
    """A copy of a tree of dicts and lists in which one value is of another type, extreme, missing or additional."""
    tree = copy.deepcopy(tree)
    places = list(_places(tree))
    if not places:
        return copy.deepcopy(random.choice(STRANGE))
    holder, key = random.choice(places)
    how = random.randrange(5)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif how == 1:
        holder[random.choice((f"{key}x", "", "\0", "x" * 300))] = holder.pop(key)
    else:
        holder[key] = copy.deepcopy(random.choice([x for x in STRANGE if not _same(x, holder[key])]))
    return tree


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and isinstance(a, (type(None), bool, int, float, str)) and a == b


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (dict or list, key or index) in the tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from _places(value)


def _run(data: bytes, random: Random) -> tuple[int, int]:
    """Start and end of a run of 1 to 64 bytes."""
    start = random.randrange(len(data))
    return start, min(len(data), start + random.randrange(1, 65))
