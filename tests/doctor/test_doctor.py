"""`udskd doctor data`: what it concludes from numbers, and that it runs on anything that can be trained on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import get_model

from tests.training.conftest import tiny_config, write_tree
from udskd import doctor
from udskd.config import schema
from udskd.config.schema import Config, DataConfig
from udskd.data import EmbeddedSet, FolderSet, open_sets, resident
from udskd.data.pack import pack
from udskd.doctor import step_benchmark
from udskd.doctor.costs import byte_ranges, measure_reading, pack_one
from udskd.doctor.rates import sample
from udskd.doctor.step_benchmark import seconds
from udskd.doctor.verdict import Measurements, rate, size, verdict
from udskd.errors import ConfigError, DataError

GPU = Measurements(
    loaders={("threads", 2): 1000.0, ("threads", 16): 7000.0, ("processes", 2): 900.0, ("processes", 16): 6000.0},
    chosen=("threads", 2),
    core=500.0,
    cores=16,
    on_cpu=False,
    step=4000.0,
    packed=1500.0,
    pack_bytes=2.2e9,
    resident_bytes=60e9,
    resident_free=50e9,
)


def with_loaders(**rates: float) -> Measurements:
    return replace(GPU, loaders={("threads", 2): 1000.0} | {(name, 2): value for name, value in rates.items()})


# --- how long a step takes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "runs"), [("cpu", 1), ("cuda", 3)])
def test_a_slow_first_run_is_the_answer_only_where_no_library_warms_up(
    monkeypatch: pytest.MonkeyPatch, device: str, runs: int
) -> None:
    took, now = [9.0, 3.0, 2.0, 1.0], [0.0]
    monkeypatch.setattr(step_benchmark, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def work() -> None:
        now[0] += took.pop(0)

    runtime: Any = SimpleNamespace(device=torch.device(device), synchronize=lambda: None)
    assert seconds(work, runtime, budget=5.0, warm_up=2) == (9.0 if device == "cpu" else 2.0)
    assert 4 - len(took) == runs


# --- the verdict ------------------------------------------------------------------------------------------------------


def test_fast_networks_get_more_workers() -> None:
    assert verdict(GPU) == [
        "The loader limits: with 2 threads it gives 1,000 images/s, the networks take 4,000 (25%).",
        "Change: data.loader = threads, data.workers = 16, for about 7,000 images/s.",
    ]


def test_where_workers_do_not_help_a_pack_may() -> None:
    assert verdict(replace(with_loaders(processes=900.0), step=2000.0)) == [
        "The loader limits: with 2 threads it gives 1,000 images/s, the networks take 2,000 (50%).",
        "Change: a pack at a short side of 256 (udskd pack, about 2.2 GB), for about 3,000 images/s.",
    ]


def test_a_pack_comes_with_the_workers_that_help() -> None:
    loaders = {("threads", 2): 1000.0, ("threads", 16): 2000.0}
    lines = verdict(replace(GPU, loaders=loaders, step=5000.0))[1]
    pack_and_workers = "(udskd pack, about 2.2 GB) with data.loader = threads, data.workers = 16, for about 6,000"
    assert pack_and_workers in lines


def test_images_that_fit_are_made_resident() -> None:
    found = replace(with_loaders(resident=50000.0), resident_bytes=5e9, step=9000.0)
    assert verdict(found)[1] == (
        "Change: data.loader = resident (about 5 GB of the 50 GB that it may have), for about 50,000 images/s."
    )
    assert "resident" not in verdict(replace(found, resident_bytes=60e9))[1]


def test_what_is_best_is_said_even_if_it_is_not_enough() -> None:
    lines = verdict(replace(with_loaders(processes=1100.0), step=9000.0))[1]
    assert lines.endswith("for about 3,000 images/s, still short of what the networks take.")


def test_where_nothing_helps_that_is_said() -> None:
    lines = verdict(replace(with_loaders(processes=900.0), packed=None))
    assert lines[1] == "Nothing that was tried gives more: what is left is smaller image files, or more cores."


def test_a_loader_that_is_just_fast_enough() -> None:
    lines = verdict(replace(GPU, step=950.0))[0]
    assert lines.startswith("The loader is only just fast enough: with 2 threads it gives 1,000 images/s")


def test_slow_networks_on_a_gpu() -> None:
    assert verdict(replace(GPU, step=250.0)) == [
        "The networks limit: they take 250 images/s, the loader gives 1,000 (4.0 times as many).",
        "Nothing about the data needs to change; training.compile or smaller images would help.",
    ]


def test_on_a_cpu_decoding_is_seen_as_a_share_of_the_cores() -> None:
    found = replace(GPU, on_cpu=True, cores=2, step=20.0)
    assert verdict(found)[1] == (
        "Reading and decoding takes about 2% of the cores' time, which is all that could be gained."
    )
    assert verdict(replace(found, step=500.0))[1] == (
        "But they share 2 cores with it: reading and decoding takes about 33% of their time, about 14% from "
        "a pack at a short side of 256 (udskd pack, about 2.2 GB)."
    )
    assert verdict(replace(found, step=500.0, packed=None))[1].endswith("smaller image files would take less.")


def test_storage_limits_where_the_files_do_not_fit_into_memory() -> None:
    found = replace(GPU, disk=300.0, fits_cache=False)
    lines = verdict(found)
    assert lines[0].startswith(
        "Storage limits: it gives 300 images/s, the networks take 4,000, and the files do not fit"
    )
    assert lines[1].startswith("Pack them: udskd pack makes one file of about 2.2 GB")
    assert verdict(replace(found, packed=None))[1].startswith("Copy them to a faster disk")


def test_storage_slows_the_first_epoch_where_they_do() -> None:
    lines = verdict(replace(GPU, disk=300.0, step=800.0))
    assert lines[0].startswith("The networks limit")
    assert lines[-1] == "The first epoch is slower: 300 images/s come from storage; later ones from memory."


def test_networks_that_could_not_be_run() -> None:
    lines = verdict(replace(GPU, step=None))
    assert lines[0] == "The loader gives 1,000 images/s; what the networks take is not known."
    assert lines[1].startswith("Change: ")


@pytest.mark.parametrize("chosen", [("threads", 0), ("processes", 1), ("threads", 1), ("resident", 2)])
@pytest.mark.parametrize("step", [None, 0.01, 990.0, 1e6])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_verdict_is_one_to_three_sentences(chosen: tuple[str, int], step: float | None, on_cpu: bool) -> None:
    loaders = {chosen: 1000.0} | {way: value for way, value in GPU.loaders.items()}
    for disk in (None, 10.0, 1e5):
        lines = verdict(replace(GPU, loaders=loaders, chosen=chosen, step=step, on_cpu=on_cpu, disk=disk))
        assert 1 <= len(lines) <= 3
        assert all(line.endswith(".") for line in lines)


def test_numbers_are_short() -> None:
    assert [rate(x) for x in (0.1234, 12.34, 123.4, 12345.6)] == ["0.123", "12.3", "123", "12,346"]
    assert [size(x) for x in (1234, 1.234e6, 1.234e9, 5.6e11)] == ["1.23 kB", "1.23 MB", "1.23 GB", "560 GB"]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WINDOW", "COSTS", "STEP"):
        monkeypatch.setattr(doctor, name, 0.02)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def config(tree: Path, tmp_path: Path) -> Config:
    return tiny_config(tree, tmp_path / "run")


def contents(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(root.rglob("*"))}


def test_a_tree(
    config: Config, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(tree)
    assert doctor.data(config) == 0
    out = capsys.readouterr().out
    for words in ("reading from the disk", "decoding, one core", "views at 8 px", "data.workers = 0", "training step"):
        assert words in out
    assert out.splitlines()[0].endswith("36 training images of 3 classes, a sample of 36")
    assert " limit" in out.splitlines()[-2] or " limit" in out.splitlines()[-1]
    assert contents(tree) == before
    assert list(tmp_path.iterdir()) == []


def packed(tree: Path, folder: Path) -> str:
    pack(tree, folder)
    return str(folder)


@pytest.mark.parametrize("root", [lambda tree, folder: "embedded", packed], ids=["embedded", "packed"])
def test_other_sets(
    config: Config, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], root: Callable[[Path, Path], str]
) -> None:
    name = root(tree, tmp_path / "pack")
    assert doctor.data(schema.with_values(config, {"data.root": name, "data.loader": "resident"})) == 0
    out = capsys.readouterr().out
    assert "from a pack" not in out
    assert ("reading from the disk" in out) == (name != "embedded")


@pytest.mark.parametrize(
    "options",
    [
        {"method": "ce"},
        {"training.accumulate": 3, "training.batch_size": 30},
        {"data.mixup": 0.2, "training.clip_grad_norm": 1.0},
        {"teacher.checkpoint": "nowhere.safetensors"},
        {"training.batch_size": 500, "data.workers": 1, "data.loader": "processes"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_recipes(config: Config, capsys: pytest.CaptureFixture[str], options: dict[str, object]) -> None:
    assert doctor.data(schema.with_values(config, options)) == 0
    assert "training step" in capsys.readouterr().out


@pytest.mark.parametrize("stem", ["auto", "small"])
def test_the_teachers_stem_is_that_of_its_weights(config: Config, tmp_path: Path, stem: str) -> None:
    torch.save(get_model("shufflenet_v2_x0_5", weights=None, num_classes=10).state_dict(), tmp_path / "t.pth")
    values = {"teacher.checkpoint": str(tmp_path / "t.pth"), "teacher.model": "shufflenet_v2_x0_5"}
    at_work = step_benchmark.StepBenchmark(
        schema.with_values(config, {**values, "teacher.stem": stem, "data.image_size": 32}), EmbeddedSet("train", 48)
    )
    assert at_work.taught is not None
    assert at_work.taught.model.stem == ("imagenet" if stem == "auto" else "small")
    at_work.close()


def test_an_image_that_cannot_be_read_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tree(tmp_path / "tree")
    bad = root / "train" / "blue" / "0.png"
    bad.write_bytes(b"no image")
    (images, _) = open_sets(DataConfig(root=str(root)))
    first = int(sample(images, doctor.IMAGES).indices[0])
    Path(images.name(first)).write_bytes(b"no image")  # would be in every step, however few images it has
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert doctor.data(tiny_config(root, tmp_path / "run")) == 0
    out = capsys.readouterr().out
    assert "training step" in out
    assert f"2 of 36 images (5.6%) cannot be read, {images.name(first)} first (not an image" in out
    assert out.count("cannot be read") == 1


def test_what_is_wrong_is_said_as_training_would(config: Config, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        doctor.data(schema.with_values(config, {"data.root": str(tmp_path / "nowhere")}))
    with pytest.raises(ConfigError, match="unknown model"):
        doctor.data(schema.with_values(config, {"teacher.model": "resnet51"}))
    with pytest.raises(ConfigError, match="image_size must be from 8 to 8192"):
        doctor.data(schema.with_values(config, {"data.image_size": 4}))


def test_images_of_which_none_can_be_read(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree")
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 36 training images that were tried can be read"):
        doctor.data(tiny_config(root, tmp_path / "run"))


def test_a_way_that_cannot_be_gone_is_left_out(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(some: object, data: DataConfig, *rest: object) -> float:
        if data.loader == "processes":
            raise DataError("too little shared memory")
        return 1e6

    monkeypatch.setattr(doctor, "loader_rate", refuse)
    assert doctor.data(schema.with_values(config, {"data.loader": "threads"})) == 0
    assert "loader: processes, data.workers = 1: too little shared memory" in capsys.readouterr().out
    with pytest.raises(DataError, match="too little shared memory"):
        doctor.data(schema.with_values(config, {"data.loader": "processes"}))


def test_resident_images_that_do_not_fit_are_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "available_memory", lambda: 1000)
    with pytest.raises(DataError, match="make the images smaller"):
        doctor.data(schema.with_values(config, {"data.loader": "resident"}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(config: Config) -> None:
    with pytest.raises(ConfigError, match="PyTorch sees no CUDA device"):
        doctor.data(schema.with_values(config, {"training.device": "cuda"}))


def test_it_is_for_one_process(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        doctor.data(config)


# --- the parts --------------------------------------------------------------------------------------------------------


def test_a_sample_is_of_different_images(tree: Path) -> None:
    some = sample(FolderSet(tree / "train"), 10)
    assert len({some.name(k) for k in range(len(some))}) == len(some) == 10
    assert [some.labels[k] for k in range(10)] == [some.images.labels[i] for i in some.indices]
    assert len(some.repeated(25)) == 25


def test_storage_is_asked_for_every_byte(tree: Path, tmp_path: Path) -> None:
    files = byte_ranges(sample(FolderSet(tree / "train"), 36))
    total = sum(Path(piece.path).stat().st_size for piece in files)
    for cold in (True, False):
        found = measure_reading(files, 2, cold)
        assert found.bytes / found.images * 36 == pytest.approx(total)


def test_a_pack_is_thought_of_as_it_would_be_made() -> None:
    large = np.zeros((300, 600, 3), dtype=np.uint8)
    assert pack_one(b"\xff\xd8 large", large).startswith(b"\xff\xd8\xff")
    assert pack_one(b"\xff\xd8 small", large[:200]) == b"\xff\xd8 small"
    assert pack_one(b"\x89PNG", large[:200]).startswith(b"\xff\xd8\xff")


def test_control_characters_of_the_root_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tree(tmp_path / "a\x1b[31mred", train=4, val=2)
    doctor.data(schema.with_values(tiny_config(root, tmp_path / "run"), {"method": "ce"}))
    assert "\x1b" not in capsys.readouterr().out
