"""`udskd doctor data`: what limits the speed of training on the user's images, and what to change."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

import torch

from udskd import methods
from udskd.config import schema
from udskd.config.schema import Config, DataConfig
from udskd.data import FolderSet, ImageSet, open_sets
from udskd.data.packed import PackedSet
from udskd.data.resident import LEFT_IN_RAM, LEFT_ON_GPU, available_memory, check_fits
from udskd.data.workers import choose_loader
from udskd.doctor.costs import SHORT_SIDE, Costs, byte_ranges, mean_costs, measure_reading
from udskd.doctor.rates import Sample, loader_rate, sample
from udskd.doctor.step_benchmark import StepBenchmark, seconds
from udskd.doctor.verdict import LoaderChoice, Measurements, rate, size, verdict
from udskd.errors import ConfigError, DataError, printable
from udskd.training.runtime.device import Runtime

IMAGES = 300
"""Images of the sample."""
ROWS = 32
"""Images of a batch where the loader alone is measured: they hardly change its rate, and short batches end sooner."""
PROBE = 8
"""Images of the first, small step on a CPU, which estimates whether a whole step takes too long."""
WINDOW = 1.0
"""Seconds of each loader's measurement."""
COSTS = 4.0
"""Seconds of the measurement of single images."""
STEP = 8.0
"""Seconds of the measurement of the training step."""


def data(config: Config) -> int:
    """Measure reading, decoding, views, loaders and the training step of a recipe, each alone, on a sample of its
    training images. Print the rates, what limits, and what to change. Returns the exit code 0.

    No file is written. Raises ConfigError and DataError as `udskd train` does.
    """
    methods.check(config)
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ConfigError("udskd doctor is for one process: start it without torchrun")
    runtime, (images, val) = Runtime.from_config(config.training), open_sets(config.data)
    some, classes = sample(images, IMAGES), len(images.classes)
    print(f"{printable(config.data.root)}: {len(images)} training images of {classes} classes, a sample of {len(some)}")
    print(f"{runtime.describe()}; {cores()} cores, {torch.get_num_threads()} threads\n")
    print(f"{'':<58}images/s", flush=True)
    found = _measure(config, images, val, some, runtime)
    if unreadable := some.unreadable_line():
        print(printable(unreadable))
    print("\n" + "\n".join(verdict(found)))
    return 0


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_memory(device: torch.device) -> float:
    """Bytes of a device's memory that a resident set may use."""
    if device.type == "cpu":
        return max(0.0, available_memory() - LEFT_IN_RAM)
    free, total = torch.cuda.mem_get_info(device)
    return max(0.0, free - min(LEFT_ON_GPU, total // 3))


# --- the parts --------------------------------------------------------------------------------------------------------


def _measure(config: Config, images: ImageSet, val: ImageSet, some: Sample, runtime: Runtime) -> Measurements:
    chosen, on_cpu = recipe_loader(config.data, images), runtime.device.type == "cpu"
    disk = _storage(some, max(1, chosen[1]))
    cost = _one_core(some, config.data)
    resident = cost.pixel_bytes * len(images) + 3.0 * config.data.image_size**2 * len(val)
    if chosen[0] == "resident":
        check_fits(int(resident), f"the {len(images)} images of the training set", runtime.device)
    usable = usable_memory(runtime.device)
    if not on_cpu:
        _copy(config.data, runtime)
    loaders = [chosen, *alternatives(chosen[1]), *([("resident", chosen[1])] if resident <= usable else [])]
    rates = {
        each: value
        for each in dict.fromkeys(loaders)
        if (value := _loader_rate(some, config.data, each, chosen, cost, runtime)) is not None
    }
    return Measurements(
        loaders=rates,
        chosen=chosen,
        core=cost.core,
        cores=cores(),
        on_cpu=on_cpu,
        step=_step(config, some, runtime),
        disk=disk,
        fits_cache=cost.file_bytes * len(images) < available_memory(),
        packed=1 / cost.packed if cost.packed else None,
        pack_bytes=cost.packed_bytes * len(images),
        resident_bytes=resident,
        resident_free=usable,
    )


def could_be_packed(images: ImageSet) -> bool:
    """Whether `udskd pack` could make smaller images of a set."""
    if isinstance(images, PackedSet):
        short_side = images.header["short_side"]
        return short_side is None or short_side > SHORT_SIDE
    return isinstance(images, FolderSet)


def recipe_loader(config: DataConfig, images: ImageSet) -> LoaderChoice:
    """The loader of a recipe."""
    return choose_loader(config.loader, config.workers, images), config.workers


def alternatives(workers: int) -> Iterable[LoaderChoice]:
    """The other loaders to try: threads and processes, as many as in the recipe and as many as there are cores."""
    counts = sorted({min(max(1, workers), cores()), cores()})
    return [(mode, count) for mode in ("threads", "processes") for count in counts]


def _row(name: str, value: float, note: str = "") -> None:
    print(f"{name:<54}{rate(value):>12}{'   ' + note if note else ''}", flush=True)


def _storage(some: Sample, threads: int) -> float | None:
    ranges = byte_ranges(some)
    if not ranges:
        return None
    cold, warm = (measure_reading(ranges, threads, cold) for cold in (True, False))
    parallel = f"{threads} at a time" if threads > 1 else "one at a time"
    _row(f"reading from the disk, {parallel}", cold.images, f"{cold.bytes / 1e6:.0f} MB/s")
    _row(f"reading from the page cache, {parallel}", warm.images, f"{warm.bytes / 1e6:.0f} MB/s")
    return cold.images


def _one_core(some: Sample, config: DataConfig) -> Costs:
    cost = mean_costs(some, config, COSTS, could_be_packed(some.images))
    file = f"{size(cost.file_bytes)} of file, " if cost.file_bytes else ""
    _row("decoding, one core", 1 / cost.decode, f"{file}{size(cost.pixel_bytes)} of pixels each")
    _row(f"views at {config.image_size} px, one core", 1 / cost.view)
    _row("reading, decoding and views, one core", cost.core)
    if cost.packed:
        name = f"the same from a pack at a short side of {SHORT_SIDE}, one core"
        _row(name, 1 / cost.packed, f"{size(cost.packed_bytes)} each")
    return cost


def _loader_rate(
    some: Sample, config: DataConfig, each: LoaderChoice, chosen: LoaderChoice, cost: Costs, runtime: Runtime
) -> float | None:
    """Images per second of a loader; None if it is not the recipe's and this machine cannot run it."""
    mode, workers = each
    config = replace(config, loader=mode, workers=workers)  # type: ignore[arg-type]
    expected = cost.core * min(max(1, workers), cores()) if mode != "resident" else 1 / cost.view
    name = f"loader: {mode}" + ("" if mode == "resident" else f", data.workers = {workers}")
    try:
        value = loader_rate(some, config, min(ROWS, len(some)), WINDOW, expected, runtime.device)
    except DataError as error:
        if each == chosen:
            raise
        print(printable(f"{name}: {error}"), flush=True)
        return None
    _row(name, value, "as in the recipe" if each == chosen else "")
    return value


def _copy(config: DataConfig, runtime: Runtime) -> None:
    """Measure the copy from host to device alone."""
    batch = torch.empty((64, 3, config.image_size, config.image_size), dtype=torch.uint8).pin_memory()
    took = seconds(lambda: batch.to(runtime.device, non_blocking=True), runtime, 0.2, warm_up=3)
    _row("copying to the device", 64 / took, f"{batch.nbytes / took / 1e9:.1f} GB/s")


# --- the step ---------------------------------------------------------------------------------------------------------


def _step(config: Config, some: Sample, runtime: Runtime) -> float | None:
    """Images per second of the training step; on a slow processor, of a step with fewer images."""
    training = config.training
    config = schema.with_values(config, {"training.compile": False, "data.loader": "threads", "data.workers": 0})
    try:
        value, rows = _step_rate(config, some, runtime)
    except torch.OutOfMemoryError:
        print(f"the training step: {training.batch_size} images do not fit into the device's memory")
        return None
    notes = [f"{rows} images" + ("" if rows == training.batch_size else f" instead of {training.batch_size}")]
    _row("training step", value, ", ".join([*notes, *(["not compiled"] if training.compile else [])]))
    return value


def _step_rate(config: Config, some: Sample, runtime: Runtime) -> tuple[float, int]:
    training = config.training
    few = training.accumulate * max(2, -(-PROBE // training.accumulate))
    if runtime.device.type == "cpu" and few < training.batch_size:
        took = _step_seconds(config, some, few, STEP / 4)
        if took / few * training.batch_size > STEP / 2:  # one to warm up, one to measure
            return few / took, few
    return training.batch_size / _step_seconds(config, some, training.batch_size, STEP), training.batch_size


def _step_seconds(config: Config, some: Sample, rows: int, budget: float) -> float:
    """Seconds of a step of `rows` images, from the loader's batch to the updated weights."""
    config = schema.with_values(config, {"training.batch_size": rows, "data.max_unreadable": 1.0})
    benchmark = StepBenchmark(config, some.repeated(rows), some.note)
    try:
        batch = benchmark.batch()
        warm_up = 5 if benchmark.runtime.device.type == "cuda" else 1  # a graph is captured at the fourth
        return seconds(lambda: benchmark.train_step(benchmark.inputs(batch)), benchmark.runtime, budget, warm_up)
    finally:
        benchmark.close()
