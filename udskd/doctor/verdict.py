"""What limits training and what to change, as a function of the measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ENOUGH = 1.1
"""The loader should give this multiple of the networks' rate, because its own rate varies. Unmeasured."""
MIN_GAIN = 1.15
"""A change that multiplies the rate by less is not recommended. Unmeasured."""
MIN_FRACTION = 0.15
"""Reading and decoding that takes a smaller fraction of a CPU's time is not worth a change. Unmeasured."""

LoaderChoice = tuple[str, int]
"""A loader: "processes", "threads" or "resident", and its number of workers."""


@dataclass(frozen=True)
class Measurements:
    """Rates in images per second, and sizes in bytes."""

    loaders: Mapping[LoaderChoice, float]
    """The rates of the loaders that were tried."""
    chosen: LoaderChoice
    """The loader of the recipe."""
    core: float
    """The rate of one core that reads, decodes and cuts views."""
    cores: int
    on_cpu: bool
    """Whether the networks run on the same cores."""
    step: float | None = None
    """The rate of the training step on images on the device; None if it could not run."""
    disk: float | None = None
    """The rate of reading the files from the disk instead of the page cache; None if unknown."""
    fits_cache: bool = True
    """Whether all files fit into the free memory, so that only the first epoch reads the disk."""
    packed: float | None = None
    """The rate of one core that reads a pack at a short side of 256; None where packing changes nothing."""
    pack_bytes: float = 0.0
    resident_bytes: float = 0.0
    resident_free: float = 0.0
    """Free memory for a resident set, on the device that it would be on."""


@dataclass(frozen=True)
class Change:
    """A possible change, and the loader's images per second after it."""

    words: str
    rate: float


def verdict(found: Measurements) -> list[str]:
    """One to three sentences: what limits, by how much, what to change."""
    supply = found.loaders[found.chosen]
    if found.step is None:
        first = f"The loader gives {rate(supply)} images/s; what the networks take is not known."
        return [first, *_advice(found, None)]
    need = found.step
    if found.disk is not None and not found.fits_cache and found.disk < min(need * ENOUGH, supply):
        return _storage(found, need, found.disk)
    if supply < need * ENOUGH:
        tight = "The loader limits" if supply < need else "The loader is only just fast enough"
        first = f"{tight}: {_name(found.chosen)} it gives {rate(supply)} images/s, the networks take {rate(need)}"
        return [f"{first} ({supply / need:.0%}).", *_advice(found, need), *_first_epoch(found, need)]
    first = f"The networks limit: they take {rate(need)} images/s, the loader gives {rate(supply)}"
    return [
        f"{first} ({times(supply / need)} times as many).",
        *_network_limits(found, need),
        *_first_epoch(found, need),
    ]


def _storage(found: Measurements, need: float, disk: float) -> list[str]:
    first = f"Storage limits: it gives {rate(disk)} images/s, the networks take {rate(need)}, and the files do not fit "
    lines = [f"{first}into the free memory, where they would be read from in later epochs."]
    if found.packed is not None:
        lines.append(
            f"Pack them: udskd pack makes one file of about {size(found.pack_bytes)} at a short side of 256, which is "
            "read in long pieces and more likely fits."
        )
    else:
        lines.append("Copy them to a faster disk, or take a machine with more memory.")
    return lines


def _network_limits(found: Measurements, need: float) -> list[str]:
    if not found.on_cpu:
        return ["Nothing about the data needs to change; training.compile or smaller images would help."]
    share = _share(found.core, found, need)
    if share < MIN_FRACTION:
        return [f"Reading and decoding takes {percent(share)} of the cores' time, which is all that could be gained."]
    line = f"But they share {found.cores} cores with it: reading and decoding takes {percent(share)} of their time"
    if found.packed is None or found.packed < MIN_GAIN * found.core:
        return [f"{line}; smaller image files would take less."]
    return [f"{line}, about {_share(found.packed, found, need):.0%} from {_pack(found)}."]


def _share(core: float, found: Measurements, need: float) -> float:
    """The fraction of the cores' time for views, if views and networks take all of it."""
    views, networks = 1 / (core * found.cores), 1 / need
    return views / (views + networks)


def _first_epoch(found: Measurements, need: float) -> list[str]:
    if found.disk is None or found.disk >= need or not found.fits_cache:
        return []
    return [f"The first epoch is slower: {rate(found.disk)} images/s come from storage; later ones from memory."]


def _advice(found: Measurements, need: float | None) -> list[str]:
    """The first change that suffices; else the best one, and that it does not suffice."""
    supply = found.loaders[found.chosen]
    changes = [change for change in _changes(found) if change.rate > supply * MIN_GAIN]
    if not changes:
        return ["Nothing that was tried gives more: what is left is smaller image files, or more cores."]
    goal = float("inf") if need is None else need * ENOUGH
    enough = next((change for change in changes if change.rate >= goal), None)
    if enough is not None:
        return [f"Change: {enough.words}, for {about(enough.rate)}."]
    best = max(changes, key=lambda change: change.rate)
    first = f"Change: {best.words}, for {about(best.rate)}"
    return [f"{first}." if need is None else f"{first}, still short of what the networks take."]


def _changes(found: Measurements) -> list[Change]:
    """The possible changes, the simplest first: fewer workers first, and the recipe's mode before another one."""
    rates, chosen = found.loaders, found.chosen
    supply = rates[chosen]
    loaders = [loader for loader in rates if loader[0] != "resident"]
    others = [loader for loader in loaders if loader != chosen]
    others.sort(key=lambda loader: (loader[1], loader[0] != chosen[0]))
    changes = [Change(_options(loader), rates[loader]) for loader in others]
    best = max(loaders, key=lambda loader: rates[loader], default=chosen)
    if rates[best] <= supply * MIN_GAIN:
        best = chosen
    if found.packed is not None and found.packed > found.core:
        with_options = "" if best == chosen else f" with {_options(best)}"
        changes.append(Change(f"{_pack(found)}{with_options}", rates[best] * found.packed / found.core))
    resident = next((rate for (mode, _), rate in rates.items() if mode == "resident"), None)
    if resident is not None and found.resident_bytes <= found.resident_free:
        memory = f"about {size(found.resident_bytes)} of the {size(found.resident_free)} that it may have"
        changes.append(Change(f"data.loader = resident ({memory})", resident))
    return changes


def _pack(found: Measurements) -> str:
    return f"a pack at a short side of 256 (udskd pack, about {size(found.pack_bytes)})"


def _options(loader: LoaderChoice) -> str:
    return f"data.loader = {loader[0]}, data.workers = {loader[1]}"


def _name(loader: LoaderChoice) -> str:
    mode, count = loader
    if mode == "resident":
        return "with the images on the device"
    if count == 0:
        return "without workers"
    one = {"processes": "process", "threads": "thread"}
    return f"with {count} {mode}" if count > 1 else f"with one {one[mode]}"


# --- numbers in words -------------------------------------------------------------------------------------------------


def rate(value: float) -> str:
    """A rate in at least three digits, without a fraction from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:,.0f}"


def percent(share: float) -> str:
    return "less than 1%" if share < 0.01 else f"about {share:.0%}"


def about(value: float) -> str:
    """An estimated rate, in two digits."""
    return f"about {float(f'{value:.2g}'):,.0f} images/s" if value >= 10 else f"about {value:.2g} images/s"


def size(count: float) -> str:
    """Bytes, in decimal units."""
    unit, scale = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6)) if count >= s), ("kB", 1e3))
    return f"{count / scale:.3g} {unit}"
