"""Whole runs on a tiny tree: what they leave behind, how they stop, and how they continue."""

from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model

from tests.training.conftest import tiny_config, write_tree
from tests.training.helpers.runs import events, on_call, outcome
from udskd import files
from udskd.config import schema, toml
from udskd.config.schema import Config, StudentConfig
from udskd.errors import CheckpointError, ConfigError, DataError, Interrupted
from udskd.files import PREDICTIONS
from udskd.models import checkpoints
from udskd.models.checkpoints import load_weights
from udskd.training import evaluate_run, setup, train
from udskd.training.engine.task import Inputs
from udskd.training.evaluation.metrics import Metrics
from udskd.training.networks.trainable import Network
from udskd.training.storage import checkpoint
from udskd.training.storage.checkpoint import load_state
from udskd.training.tasks import teacher
from udskd.training.tasks.students import StudentsTask
from udskd.training.tasks.teacher import TeacherTask

METRICS = {"top1", "top5", "nll", "ece", "brier", "entropy"}


def test_a_run_leaves_every_file_and_number(config: Config) -> None:
    summary = train(config)
    run = Path(config.output or "")
    files = {str(f.relative_to(run)) for f in run.rglob("*") if f.is_file()}
    bests = {f"checkpoints/{r}_best.safetensors" for r in ("teacher", "student_a", "student_b")}
    weights = {f"{r}.safetensors" for r in ("teacher", "student_a", "student_b")}
    states = {"checkpoints/students.pt", "checkpoints/students.previous.pt"}
    rest = {
        "config.toml",
        "environment.json",
        "images.manifest",
        "log.jsonl",
        "summary.json",
        PREDICTIONS,
    } | states
    assert files == bests | weights | rest
    assert toml.load(run / "config.toml") == config
    assert summary == json.loads((run / "summary.json").read_text())
    assert (summary["method"], summary["seed"], summary["status"], summary["epochs"]) == ("udskd", 0, "complete", 3)
    assert summary["images_per_second"] > 0
    for role, model in (("teacher", "tiny_plain_4"), ("student_a", "tiny_plain_2"), ("student_b", "tiny_separable_2")):
        assert summary[role]["model"] == model
        assert summary[role].keys() >= METRICS
    assert [e["epoch"] for e in events(run, "epoch")] == [1, 2, 3]
    last = events(run, "epoch")[-1]
    assert last.keys() >= {"lr_a", "lr_b", "loss", "seconds", "images_per_second", "entropy", "student_a", "student_b"}
    assert last["components"].keys() == {"ce_a", "ce_b", "kd_a", "kd_b", "peer_a", "peer_b"}
    assert 0 <= last["weight"]["p10"] <= last["weight"]["mean"] <= last["weight"]["p90"] <= 1
    assert {k: last["student_a"][k] for k in METRICS} == {k: summary["student_a"][k] for k in METRICS}


def test_the_logged_loss_is_the_weighted_sum_of_its_components(config: Config) -> None:
    train(config)
    for event in events(Path(config.output or ""), "epoch"):
        c = event["components"]
        total = (c["ce_a"] + c["ce_b"]) + 0.9 * (c["kd_a"] + c["kd_b"]) + 0.5 * (c["peer_a"] + c["peer_b"])
        assert event["loss"] == pytest.approx(total, rel=1e-5)


def test_training_learns(config: Config) -> None:
    config = replace(config, training=replace(config.training, epochs=12, lr=0.1))
    summary = train(config)
    losses = [e["components"]["ce_a"] for e in events(Path(config.output or ""), "epoch")]
    assert losses[-1] < losses[0]
    assert summary["teacher"]["top1"] > 60  # chance is 33


@pytest.mark.parametrize("method", ["ce", "dml"])
def test_methods_without_a_teacher_train_none(config: Config, method: str) -> None:
    summary = train(replace(config, method=method))
    run = Path(config.output or "")
    assert summary["teacher"] is None
    assert not (run / "teacher.safetensors").exists()
    assert "weight" not in events(run, "epoch")[0]


def test_the_teacher_is_frozen_to_the_last_bit(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.nn.Module] = []
    freeze = teacher.freeze

    def spy(*args: Any) -> Any:
        model = freeze(*args)
        seen.append(model.module)
        return model

    monkeypatch.setattr(teacher, "freeze", spy)
    train(schema.with_values(config, {"training.ema_decay": 0.0}))
    module, (before, _) = seen[0], load_weights(Path(config.output or "") / "teacher.safetensors")
    assert not module.training
    assert not any(p.requires_grad or p.grad is not None for p in module.parameters())
    after = module.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_another_runs_teacher_is_loaded_not_trained(config: Config, tmp_path: Path) -> None:
    first = train(config)
    file = tmp_path / "run" / "teacher.safetensors"
    other = replace(config, output=str(tmp_path / "other"), teacher=replace(config.teacher, checkpoint=str(file)))
    assert train(other)["teacher"] == first["teacher"]
    assert events(tmp_path / "other", "teacher_epoch") == []
    assert not (tmp_path / "other" / "teacher.safetensors").exists()


def test_the_same_seed_gives_the_same_bits_with_and_without_the_teachers_training(
    config: Config, tmp_path: Path
) -> None:
    train(config)
    file = tmp_path / "run" / "teacher.safetensors"
    train(replace(config, output=str(tmp_path / "b"), teacher=replace(config.teacher, checkpoint=str(file))))
    one, other = (load_weights(tmp_path / r / "student_a.safetensors")[0] for r in ("run", "b"))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_another_seed_gives_another_network(config: Config, tmp_path: Path) -> None:
    config = replace(config, method="ce", training=replace(config.training, epochs=1))
    train(config)
    train(replace(config, seed=1, output=str(tmp_path / "other")))
    one, other = (load_weights(tmp_path / r / "student_a.safetensors")[0] for r in ("run", "other"))
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])


@pytest.fixture(scope="module")
def straight(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished, undisturbed run; mobilenet because of its dropout."""
    config = tiny_config(tree, tmp_path_factory.mktemp("straight") / "run")
    config = replace(config, student_b=StudentConfig(model="mobilenet_v3_small"))
    train(config)
    return config


@pytest.mark.parametrize(
    ("number", "owner", "call", "saved"),
    [
        (signal.SIGINT, TeacherTask, 2, "0 of 3 epochs of the teacher and 2 of 3 steps of the next saved"),
        (signal.SIGTERM, TeacherTask, 6, "1 of 3 epochs of the teacher and 3 of 3 steps of the next saved"),
        (signal.SIGTERM, StudentsTask, 2, "0 of 3 epochs of the students and 2 of 3 steps of the next saved"),
        (signal.SIGINT, StudentsTask, 8, "2 of 3 epochs of the students and 2 of 3 steps of the next saved"),
    ],
)
def test_a_run_that_was_stopped_and_continued_ends_bit_identical(
    straight: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, call: int, saved: str, number: int
) -> None:
    run = tmp_path / "run"
    on_call(monkeypatch, owner, "losses", call, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted) as stop:
        train(replace(straight, output=str(run)))
    assert str(stop.value) == f"stopped; {saved}; continue with: udskd train --resume {run}"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    torch.manual_seed(12345)  # a new process has other random states
    train(straight, resume=run)
    assert outcome(run) == outcome(Path(straight.output or ""))


def test_a_run_in_fp16_continues_with_the_loss_scale_that_it_had(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = schema.with_values(config, {"training.precision": "fp16", "data.mixup": 0.2})
    train(replace(config, output=str(tmp_path / "straight")))
    with monkeypatch.context() as patch:
        on_call(patch, StudentsTask, "losses", 6, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            train(config)
    state = load_state(tmp_path / "run" / "checkpoints" / "students.pt")
    assert state["scaler"]["scale"] < 65536  # steps have overflowed, so that it matters
    train(config, resume=tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")


def test_a_stop_during_evaluation_keeps_all_steps(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, method="ce")
    # two batches of 12 and 6 images, two students: updates 1-4 are epoch 1's evaluation, 5-8 epoch 2's
    on_call(monkeypatch, Metrics, "update", 6, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match="1 of 3 epochs of the students and 3 of 3 steps of the next saved"):
        train(config)
    state = load_state(Path(config.output or "") / "checkpoints" / "students.pt")
    assert (state["epoch"], state["step"]) == (1, 3)
    assert train(config, resume=Path(config.output or ""))["status"] == "complete"


@pytest.mark.parametrize("line", [0, -1])
def test_a_damaged_line_of_the_log_does_not_prevent_resuming(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: int
) -> None:
    on_call(monkeypatch, StudentsTask, "losses", 5, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        train(config)
    log = Path(config.output or "") / "log.jsonl"
    lines = log.read_bytes().splitlines()
    lines[line] = b'{"event": "epoch", "epoch": "\xff"}'
    log.write_bytes(b"\n".join(lines) + b"\n")
    assert train(config, resume=Path(config.output or ""))["status"] == "complete"
    assert "log.jsonl is damaged, left out: line" in capsys.readouterr().err


def test_a_full_disk_keeps_the_previous_checkpoint_and_says_how_to_go_on(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, method="ce")
    train(replace(config, output=str(tmp_path / "straight")))

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        saves = [0]
        write = files.write_atomic

        def counted(path: Path, *data: Any, **options: Any) -> None:
            if path.name == "students.pt":
                saves[0] += 1
                if saves[0] == 2:
                    patch.setattr(files.os, "fsync", lambda _: full())
            write(path, *data, **options)

        patch.setattr(checkpoint, "write_atomic", counted)
        with pytest.raises(CheckpointError) as error:
            train(config)
    message = str(error.value)
    assert "\n" not in message
    assert all(
        word in message
        for word in ("students.pt", "No space left on device", "previous one is intact", f"--resume {config.output}")
    )
    assert load_state(tmp_path / "run" / "checkpoints" / "students.pt")["epoch"] == 1
    assert list((tmp_path / "run" / "checkpoints").glob("*.tmp")) == []
    train(config, resume=tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")


def test_a_crash_between_log_and_checkpoint_does_not_log_an_epoch_twice(config: Config, tmp_path: Path) -> None:
    config = replace(config, method="ce")
    train(config)
    run = tmp_path / "run"
    (run / "summary.json").unlink()
    state = load_state(run / "checkpoints" / "students.pt")
    assert state["epoch"] == 3
    earlier = run / "checkpoints" / "students.previous.pt"
    earlier.replace(run / "checkpoints" / "students.pt")
    with open(run / "log.jsonl", "a") as log:
        log.write('{"event": "epoch", "epo')  # torn by the crash
    train(config, resume=run)
    assert [e["epoch"] for e in events(run, "epoch")] == [1, 2, 3]


def test_a_truncated_state_is_refused_on_resume(config: Config, tmp_path: Path) -> None:
    train(replace(config, method="ce"))
    run = tmp_path / "run"
    (run / "summary.json").unlink()
    state = run / "checkpoints" / "students.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(
        CheckpointError,
        match=r"students\.pt is truncated or altered: .*; the one before it, after 2 epochs and 0 steps, is intact: ",
    ):
        train(replace(config, method="ce"), resume=run)


def test_a_complete_run_is_neither_repeated_nor_overwritten(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(config, method="ce", training=replace(config.training, epochs=1))
    summary = train(config)
    with pytest.raises(ConfigError, match="already holds a finished run"):
        train(config)
    capsys.readouterr()
    assert train(config, resume=Path(config.output or "")) == summary
    assert "is complete" in capsys.readouterr().out


def test_a_folder_with_other_things_in_it_is_left_alone(config: Config, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="not an empty folder"):
        train(config)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"student_b.model": "resnet19"}, ConfigError, 'unknown model "resnet19"'),
        ({"data.root": "/nowhere"}, DataError, "/nowhere"),
        ({"teacher.checkpoint": "/nowhere.safetensors"}, CheckpointError, "no checkpoint at /nowhere.safetensors"),
        ({"training.device": "cuda:99"}, ConfigError, "cuda:99"),
        ({"training.lr": -1.0}, ConfigError, "training.lr"),
        ({"loss.backend": "cuda"}, ConfigError, 'loss.backend is "cuda", but'),
        ({"training.cuda_graph": True}, ConfigError, "training.cuda_graph needs a CUDA device"),
        ({"training.sync_batchnorm": True}, ConfigError, "training.sync_batchnorm needs CUDA devices"),
        ({"training.accumulate": 5}, ConfigError, "12 images in a step cannot be cut into 5 equal pieces"),
    ],
)
def test_a_mistake_is_found_before_anything_is_written(
    config: Config, tmp_path: Path, change: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        train(schema.with_values(config, change))
    assert not (tmp_path / "run").exists()


def test_an_unreadable_validation_image_is_found_before_training(config: Config, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree")
    (root / "val" / "red" / "0.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"red/0\.png"):
        train(replace(config, data=replace(config.data, root=str(root))))
    assert not (tmp_path / "run").exists()


def test_an_unreadable_training_image_is_named_once_and_skipped(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_tree(tmp_path / "tree")
    (root / "train" / "red" / "0.png").write_bytes(b"not an image")
    data = replace(config.data, root=str(root), max_unreadable=0.1)
    summary = train(replace(config, method="ce", data=data))
    assert summary["unreadable"] == 1
    assert capsys.readouterr().out.count("red/0.png") == 1
    assert [Path(e["name"]).name for e in events(tmp_path / "run", "unreadable")] == ["0.png"]


def test_a_loss_that_is_not_finite_stops_the_run(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverged(self: StudentsTask, inputs: Inputs) -> dict[str, Tensor]:
        return {"loss": self.networks[0].forward(inputs.images).sum() * torch.nan}

    monkeypatch.setattr(StudentsTask, "losses", diverged)
    with pytest.raises(ConfigError, match=r"students epoch 1 is nan: lower training\.lr"):
        train(replace(config, method="ce"))


def test_a_run_cannot_continue_with_other_options(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(replace(config, method="ce"))
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(ConfigError, match=r"started with training\.lr = 0\.05, not 0\.5"):
        train(schema.with_values(config, {"method": "ce", "training.lr": 0.5}), resume=tmp_path / "run")
    capsys.readouterr()
    train(schema.with_values(config, {"method": "ce", "data.workers": 1}), resume=tmp_path / "run")
    assert capsys.readouterr().out.startswith("data.workers: 0 before, 1 from here on\n")


def test_what_lies_among_the_images_and_is_none_is_shown_and_logged(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_tree(tmp_path / "tree")
    for name in ("train/red/x.bak", "train/red/y.bak", "train/README", "val/blue/z.txt"):
        (root / name).write_text("")
    train(schema.with_values(config, {"method": "ce", "training.epochs": 1, "data.root": str(root)}))
    expected = ["train: 3 files ignored: .bak 2, outside the class folders 1", "val: 1 file ignored: .txt 1"]
    assert [line for line in capsys.readouterr().out.splitlines() if "ignored" in line] == expected
    assert [line for line in events(tmp_path / "run", "start")[0]["lines"] if "ignored" in line] == expected


def test_evaluating_a_run_gives_its_summarys_numbers(config: Config, tmp_path: Path) -> None:
    summary = train(config)
    results = evaluate_run(tmp_path / "run")
    assert results.keys() == {"teacher", "student_a", "student_b"}
    for role, metrics in results.items():
        assert metrics == {k: summary[role][k] for k in metrics}


def test_evaluation_on_other_images_needs_the_same_classes(config: Config, tmp_path: Path) -> None:
    train(replace(config, method="ce"))
    same = write_tree(tmp_path / "same", train=1, val=3)
    assert evaluate_run(tmp_path / "run", str(same))["student_a"].keys() >= METRICS
    other = write_tree(tmp_path / "other", train=1, val=3, classes=("blue", "green", "pink"))
    with pytest.raises(CheckpointError, match='class 2 is "red" there and "pink" here'):
        evaluate_run(tmp_path / "run", str(other))


def test_an_unfinished_run_cannot_be_evaluated(config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_call(monkeypatch, StudentsTask, "losses", 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        train(config)
    with pytest.raises(CheckpointError, match="no trained students yet"):
        evaluate_run(tmp_path / "run")


def test_the_best_weights_of_each_student_are_its_own(config: Config, tmp_path: Path) -> None:
    config = replace(config, method="ce", training=replace(config.training, epochs=6))
    summary = train(config)
    for role in ("student_a", "student_b"):
        curve = [e[role]["top1"] for e in events(tmp_path / "run", "epoch")]
        assert (summary[role]["best_top1"], summary[role]["best_epoch"]) == (max(curve), curve.index(max(curve)) + 1)
    for role in ("student_a", "student_b"):  # the best file gives the best number
        (tmp_path / "run" / f"{role}.safetensors").write_bytes(
            (tmp_path / "run" / "checkpoints" / f"{role}_best.safetensors").read_bytes()
        )
    results = evaluate_run(tmp_path / "run")
    assert {r: m["top1"] for r, m in results.items()} == {r: summary[r]["best_top1"] for r in results}


def test_evaluation_is_due_every_n_epochs_and_after_the_last(config: Config, tmp_path: Path) -> None:
    train(schema.with_values(config, {"method": "ce", "training.eval_every": 2}))
    assert ["student_a" in e for e in events(tmp_path / "run", "epoch")] == [False, True, True]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixup_and_half_precision_train_too(config: Config, precision: str) -> None:
    options = {"data.mixup": 0.2, "training.precision": precision, "training.clip_grad_norm": 1.0}
    assert train(schema.with_values(config, options))["status"] == "complete"


def test_the_embedded_set_reports_how_well_uncertainty_is_known(config: Config) -> None:
    options = {"data.root": "embedded", "method": "ce", "training.epochs": 1, "training.batch_size": 256}
    summary = train(schema.with_values(config, options))
    assert -1 <= summary["student_a"]["entropy_corr"] <= 1
    assert summary["student_b"]["posterior_kl"] > 0


def test_tensorboard_events_are_written_on_request(config: Config, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(schema.with_values(config, {"method": "ce", "training.tensorboard": True}))
    assert list((tmp_path / "run" / "tensorboard" / "epoch").glob("events.out.tfevents.*"))


def test_only_the_torchrun_that_began_a_run_restarts_it(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one's --output is refused at every attempt, not continued at the second."""
    config = replace(config, method="ce")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    train(config)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert train(config)["status"] == "complete"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "other")
    with pytest.raises(ConfigError, match="already holds a finished run"):
        train(config)


def test_evaluation_batches_stay_small_however_large_a_step_is(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "MAX_EVALUATION_BATCH", 5)
    sizes: list[int] = []
    update = Metrics.update
    monkeypatch.setattr(Metrics, "update", lambda self, x, y: (sizes.append(len(y)), update(self, x, y))[1])
    train(schema.with_values(config, {"method": "ce", "training.epochs": 1}))
    assert max(sizes) == 5


def test_a_process_that_is_killed_while_decoding_is_one_sentence(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch raises it in the main thread, wherever that is."""

    def killed() -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    on_call(monkeypatch, StudentsTask, "losses", 1, killed)
    with pytest.raises(DataError, match=r"a process that decodes images died \(DataLoader worker \(pid 7\) is killed"):
        train(replace(config, method="ce"))


def of_torchvision(config: Config, folder: Path, size: int = 32) -> Config:
    """With a teacher in torchvision's own weights, a file without metadata."""
    torch.save(get_model("shufflenet_v2_x0_5", weights=None, num_classes=3).state_dict(), folder / "t.pth")
    values = {"teacher.model": "shufflenet_v2_x0_5", "teacher.checkpoint": str(folder / "t.pth")}
    return schema.with_values(config, {**values, "data.image_size": size, "training.epochs": 1, "method": "kd"})


def test_the_run_says_which_stem_a_teacher_of_torchvisions_has(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = of_torchvision(config, tmp_path)
    train(config)
    described = [line for line in capsys.readouterr().out.splitlines() if line.startswith("teacher: shufflenet")]
    assert [line.rpartition(", ")[2] for line in described] == ["stem imagenet"]
    assert described[0] in events(Path(config.output or ""), "start")[0]["lines"]


def test_a_run_with_torchvisions_teacher_continues_with_the_same_stem(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = of_torchvision(config, tmp_path)
    with monkeypatch.context() as patch:
        on_call(patch, StudentsTask, "losses", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(config)
    assert train(config, resume=Path(config.output or ""))["status"] == "complete"


def test_a_teacher_of_another_image_size_is_described_so(
    config: Config, teacher_weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"teacher.checkpoint": teacher_weights, "data.image_size": 10, "training.epochs": 1}
    train(schema.with_values(config, values))
    assert "stem small, trained on images of 8 px\n" in capsys.readouterr().out


def spoil(path: Path, folder: Path) -> Path:
    """A copy of a run's weights in which one is NaN."""
    tensors, info = load_weights(path)
    tensors["features.3.1.running_var"][1] = float("nan")
    checkpoints.save_weights(folder / path.name, tensors, info)
    return folder / path.name


def test_a_teacher_that_is_not_finite_is_refused_before_anything_is_written(
    config: Config, teacher_weights: str, tmp_path: Path
) -> None:
    file = spoil(Path(teacher_weights), tmp_path)
    with pytest.raises(
        CheckpointError, match=rf"{file} .*: features\.3\.1\.running_var has 1 of 8 values that are NaN"
    ):
        train(schema.with_values(config, {"teacher.checkpoint": str(file)}))
    assert not Path(config.output or "").exists()


def test_a_teacher_of_this_run_that_is_not_finite_is_refused_on_resume(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(config.output or "")
    with monkeypatch.context() as patch:
        on_call(patch, StudentsTask, "losses", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(config)
    spoil(run / "teacher.safetensors", run)
    with pytest.raises(CheckpointError, match=r"run/teacher\.safetensors .*: features\.3\.1\.running_var has 1 of 8"):
        train(config, resume=run)


def test_weights_that_are_not_finite_are_not_evaluated(config: Config) -> None:
    run = Path(config.output or "")
    train(schema.with_values(config, {"training.epochs": 1, "method": "ce"}))
    tensors, info = load_weights(run / "student_b.safetensors")
    tensors["classifier.bias"][0] = float("inf")
    checkpoints.save_weights(run / "student_b.safetensors", tensors, info)
    with pytest.raises(CheckpointError, match=r"student_b\.safetensors .*: classifier\.bias has 1 of 3 values"):
        evaluate_run(run)


@pytest.mark.parametrize(("role", "values"), [("teacher", {}), ("student_b", {}), ("student_b", {"method": "ce"})])
def test_a_network_that_the_last_update_of_an_epoch_ruins_is_refused(
    config: Config, monkeypatch: pytest.MonkeyPatch, role: str, values: dict[str, Any]
) -> None:
    update, calls = Network.update, [0]

    def ruinous(self: Network, *args: Any) -> None:
        update(self, *args)
        calls[0] += self.role == role
        if self.role == role and calls[0] == 3:  # of three steps in an epoch
            next(self.result.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(Network, "update", ruinous)
    with pytest.raises(ConfigError, match=rf"the logits of {role} are not finite after \w+ epoch 1: lower"):
        train(schema.with_values(config, values))
    assert not (Path(config.output or "") / f"{role}.safetensors").exists()
