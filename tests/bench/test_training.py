"""The benchmarks of loading and training on few images: equal work of the baseline, and the files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench import images, loader, plain_pytorch, step, step_cases, throughput, timing
from tests.training.conftest import tiny_config, write_tree
from udskd.config import schema
from udskd.config.schema import Config
from udskd.data import FolderSet
from udskd.doctor.rates import measurement_length, time_steady_state
from udskd.doctor.step_benchmark import StepBenchmark
from udskd.training.networks.trainable import build_model

QUICK = ["--batch", "4", "--rounds", "1"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"), size=20)


@pytest.fixture
def config(tree: Path, tmp_path: Path) -> Config:
    options = {"training.weight_decay": 0.0, "training.warmup_epochs": 0.0, "training.ema_decay": 0.0}
    return schema.with_values(tiny_config(tree, tmp_path / "run"), options)


def networks(config: Config) -> list[torch.nn.Module]:
    roles = {"teacher": config.teacher, "student_a": config.student_a, "student_b": config.student_b}
    return [
        build_model(role, options, 3, config.data.image_size, config.seed).module for role, options in roles.items()
    ]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_plain_loop_does_the_same_work(config: Config, layout: torch.memory_format) -> None:
    """The same loss of the same batch, and after a step the same weights."""
    benchmark = StepBenchmark(config, FolderSet(Path(config.data.root) / "train"))
    plain = plain_pytorch.PlainLoop(*networks(config), config, "cpu", layout=layout)
    inputs = benchmark.inputs(benchmark.batch())
    before = benchmark.task.losses(inputs)["loss"].item()
    assert plain.loss(inputs.images, inputs.target).item() == pytest.approx(before, rel=1e-5)

    benchmark = StepBenchmark(config, FolderSet(Path(config.data.root) / "train"))
    plain = plain_pytorch.PlainLoop(*networks(config), config, "cpu", layout=layout)
    benchmark.train_step(inputs)
    assert plain.step(inputs.images, inputs.target) == pytest.approx(before, rel=1e-5)
    for network, student in zip(benchmark.task.networks, plain.students, strict=True):
        for ours, theirs in zip(network.module.parameters(), student.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_plain_loader_loads_what_ours_does(config: Config) -> None:
    batches = plain_pytorch.loader(config.data, range(36), 12, 0, "cpu")
    pictures, labels = next(iter(batches))
    assert len(batches) == 3
    assert pictures.shape == (12, 3, 8, 8)
    assert pictures.dtype == torch.float32
    assert labels.dtype == torch.int64
    benchmark = StepBenchmark(config, FolderSet(Path(config.data.root) / "train"))
    ours = benchmark.inputs(benchmark.batch()).images
    assert pictures.mean().item() == pytest.approx(ours.mean().item(), abs=0.3)
    assert pictures.std().item() == pytest.approx(ours.std().item(), rel=0.3)


def test_a_step_benchmark_trains_as_a_run_does_and_writes_nothing(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    benchmark = StepBenchmark(config, FolderSet(Path(config.data.root) / "train"))
    before = [p.detach().clone() for p in benchmark.task.networks[0].module.parameters()]
    assert benchmark.train_epoch() == 36
    assert benchmark.train_epoch() == 36
    benchmark.close()
    assert any(
        not torch.equal(p, q) for p, q in zip(before, benchmark.task.networks[0].module.parameters(), strict=True)
    )
    assert list(tmp_path.iterdir()) == []


# --- the clock --------------------------------------------------------------------------------------------------------


def test_only_batches_that_arrive_while_all_workers_are_busy_are_timed() -> None:
    arrived: list[int] = []
    begin, end = time_steady_state((arrived.append(n) for n in range(9)), 2, 4, lambda: len(arrived))
    assert (begin, end) == (3, 7)
    assert len(arrived) == 9


@pytest.mark.parametrize("workers", [0, 1, 3, 16])
def test_windows_are_whole_rounds_of_the_workers(workers: int) -> None:
    skip, number = measurement_length(0.01, 100.0, 32, workers)
    assert skip >= max(2, workers)
    assert number >= 4
    assert number % max(1, workers) == 0


# --- the commands -----------------------------------------------------------------------------------------------------


def test_the_loader_benchmark(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, text = tmp_path / "loader.json", tmp_path / "loader.md"
    options = ["--images", "12", "--image-size", "8", "--seconds", "0.01", *QUICK]
    assert loader.main(["--data.root", str(tree), *options, "--json", str(file), "--markdown", str(text)]) == 0
    found = json.loads(file.read_text())
    assert found["images"] == 12
    assert str(tree) not in found["command"]
    names = [(row["loader"], row["from"], row["gives"]) for row in found["loaders"]]
    assert len(set(names)) == len(names) == 3 * 3 * 2 + 2
    for row in found["loaders"]:
        assert 0 < row["least"] <= row["images_per_s"] <= row["most"]
    assert {row["from"] for row in found["single"]} == {"files", "pack of originals", "pack at 256, quality 90"}
    assert all(row["images_per_s"] > 0 for row in found["single"] if row["part"] != "read")
    assert "| plain PyTorch" in text.read_text()
    assert "| udskd, resident" in capsys.readouterr().out


def test_the_step_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On images that it generates."""
    monkeypatch.setattr(timing, "MIN_SAMPLE_US", 1.0)
    file, text = tmp_path / "step.json", tmp_path / "step.md"
    tiny = ["--teacher", "tiny_plain_2", "--student-a", "tiny_plain_1", "--student-b", "tiny_separable_1"]
    size = ["--images", "12", "--image-size", "8", "--stem", "auto", "--epochs", "1", "--seconds", "0.01"]
    options = [*size, *tiny, *QUICK]
    assert step.main([*options, "--json", str(file), "--markdown", str(text)]) == 0
    found = json.loads(file.read_text())
    steps = {row["whose"]: row for row in found["parts"] if row["part"] == "step"}
    assert set(steps) == {"udskd", "udskd, teacher in bf16", "plain", "plain, channels_last"}
    assert all(row["peak_bytes"] > 0 and row["images_per_s"] > 0 for row in steps.values())
    parts = {whose: {row["part"] for row in found["parts"] if row["whose"] == whose} for whose in steps}
    all_have = {"step", "teacher", "student_a", "student_b", "loss", "update"}
    assert parts["plain"] == all_have
    assert parts["udskd"] == all_have | {"uint8 to normalised float32"}
    ends = [row for row in found["epochs"] if row["of_step"] is not None]
    assert [(row["what"], row["images"]) for row in ends] == [
        ("udskd", "threads"),
        ("udskd, teacher in bf16", "threads"),
        ("udskd", "resident"),
        ("plain", "files"),
        ("plain, channels_last", "files"),
    ]
    assert "--teacher tiny_plain_2" in found["command"]
    assert "of the step alone" in text.read_text()
    assert "vs channels_last" in capsys.readouterr().out


def test_at_the_limit_no_further_round_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 9.0])  # before the warm-up, and before the second round
    monkeypatch.setattr(throughput, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    found = throughput.interleaved({"a": lambda: throughput.Interval(1, 1.0, 1.0)}, 5, end=5.0)
    assert len(found["a"]) == 1


def test_after_the_limit_nothing_begins() -> None:
    assert throughput.interleaved({"a": lambda: throughput.Interval(1, 1.0, 1.0)}, 5, end=0.0) == {"a": []}


def test_an_update_with_zero_gradients_changes_nothing_without_decay() -> None:
    module = torch.nn.Linear(3, 2)
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    step_cases.with_zero_gradients([module], optimizer.step)()
    assert all(torch.equal(p, x) for p, x in zip(module.parameters(), before, strict=True))
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize(
    ("main", "command", "words"),
    [
        (loader.main, "--workers 0", "'0' is not an integer of at least 1"),
        (loader.main, "--seconds 0", "--seconds: it must be above 0"),
        (loader.main, "--modes threads none", "invalid choice: 'none'"),
        (step.main, "--images 8 --batch 16", "at least the 16 images of a batch"),
        (step.main, "--cuda-graph", "--cuda-graph: it needs --device cuda"),
        (step.main, "--stem large", "invalid choice: 'large'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], main: Any, command: str, words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert ended.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("main", [loader.main, step.main])
def test_an_error_in_the_images_is_one_line(main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data.root", str(tmp_path / "nowhere")]) == 1
    output = capsys.readouterr().err
    assert "does not exist" in output
    assert output.count("\n") == 1


def test_an_epoch_must_have_a_batch(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main(["--data.root", str(tree), "--image-size", "8", "--batch", "64", "--images", "64"]) == 1
    assert "an epoch of 36 images is smaller than one batch of 64" in capsys.readouterr().err


def test_generated_images_are_like_photographs(tmp_path: Path) -> None:
    root = images.write(tmp_path, 20, 2)
    found = FolderSet(root / "train")
    assert len(found) == 20
    assert len(found.classes) == images.CLASSES
    sizes = [Path(path).stat().st_size for path in found.paths]
    assert 50e3 < np.mean(sizes) < 200e3
    assert found.pixels(0).shape == (375, 500, 3)
