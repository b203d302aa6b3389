"""Files are whole or absent, say what they are, and are refused in one sentence otherwise."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from udskd import models
from udskd.config import DataConfig, TeacherConfig
from udskd.errors import CheckpointError
from udskd.training import checkpoint
from udskd.training.checkpoint import (
    WeightsInfo,
    load_state,
    load_weights,
    previous,
    save_state,
    save_weights,
    write_atomic,
)
from udskd.training.weights import load_network

CLASSES = ("cat", "dog", "owl")
DATA = DataConfig(image_size=8)
INFO = WeightsInfo("tiny_plain_2", "small", CLASSES, 8, DATA.mean, DATA.std)
TEACHER = TeacherConfig(model="tiny_plain_2")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    module = models.build("tiny_plain_2", 3, 8).module.to(memory_format=torch.channels_last)
    path = tmp_path / "teacher.safetensors"
    save_weights(path, module.state_dict(), INFO)
    return path, module.state_dict()


def test_weights_come_back_bit_identical_with_what_they_belong_to(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, tensors = saved
    loaded, info = load_weights(path)
    assert info == INFO
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[k], tensors[k]) for k in tensors)


def test_a_loaded_network_computes_what_the_saved_one_did(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, tensors = saved
    twin = models.build("tiny_plain_2", 3, 8).module
    twin.load_state_dict(tensors)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(load_network(path, TEACHER, CLASSES, DATA).module.eval()(x), twin.eval()(x))


def test_any_reader_of_safetensors_can_open_them(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    from safetensors import safe_open

    with safe_open(saved[0], framework="pt") as file:
        metadata = file.metadata()
    assert metadata["model"] == "tiny_plain_2"
    assert metadata["classes"] == '["cat", "dog", "owl"]'


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_a_truncated_weights_file_is_one_sentence(saved: tuple[Path, dict[str, torch.Tensor]], share: float) -> None:
    path, _ = saved
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"truncated or not a safetensors file") as error:
        load_weights(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_a_truncated_state_is_one_sentence(tmp_path: Path, share: float) -> None:
    path = tmp_path / "students.pt"
    save_state(path, {"epoch": 1, "tensor": torch.randn(1000)})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"students\.pt is truncated or altered"):
        load_state(path)


def test_a_state_that_would_execute_code_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "evil.pt", {"epoch": Path("x")})
    with pytest.raises(CheckpointError, match="plain values"):
        load_state(tmp_path / "evil.pt")


def test_a_state_comes_back(tmp_path: Path) -> None:
    state = {"epoch": 3, "metrics": {"student_a": {"top1": 1.5}}, "tensor": torch.arange(4), "none": None}
    save_state(tmp_path / "s.pt", state)
    loaded = load_state(tmp_path / "s.pt")
    assert torch.equal(loaded.pop("tensor"), state.pop("tensor"))  # type: ignore[arg-type]
    assert loaded == state


@pytest.mark.parametrize("place", [0, 20, 100, 1000, -1])
def test_one_altered_byte_of_a_state_is_found(tmp_path: Path, place: int) -> None:
    path = tmp_path / "s.pt"
    save_state(path, {"tensor": torch.randn(1000)})
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"s\.pt is truncated or altered"):
        load_state(path)


def test_one_altered_byte_of_the_weights_is_found(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    data = bytearray(saved[0].read_bytes())
    data[-10] ^= 1
    saved[0].write_bytes(data)
    with pytest.raises(CheckpointError, match=r"teacher\.safetensors is damaged: .* SHA-256"):
        load_weights(saved[0])


def test_the_state_before_the_last_is_kept(tmp_path: Path) -> None:
    for epoch in range(3):
        save_state(tmp_path / "s.pt", {"epoch": epoch})
    assert load_state(tmp_path / "s.pt")["epoch"] == 2
    assert load_state(previous(tmp_path / "s.pt"))["epoch"] == 1
    assert sorted(os.listdir(tmp_path)) == ["s.previous.pt", "s.pt"]


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_full_disk_leaves_the_previous_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path = tmp_path / "students.pt"
    write_atomic(path, b"old")
    monkeypatch.setattr(checkpoint.os, moment, full_disk)
    with pytest.raises(CheckpointError, match=r"cannot write .*students\.pt: No space left on device; the previous"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["students.pt"]


def test_the_file_is_complete_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    def check_replace(source: Path, target: Path) -> None:
        assert synced == [5], "renamed before its bytes were on the disk"
        replace(source, target)

    monkeypatch.setattr(checkpoint.os, "fsync", record_fsync)
    monkeypatch.setattr(checkpoint.os, "replace", check_replace)
    write_atomic(tmp_path / "file", b"12345")
    assert (tmp_path / "file").read_bytes() == b"12345"


def test_an_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot write .*nowhere/x: No such file or directory$"):
        write_atomic(tmp_path / "nowhere" / "x", b"")


@pytest.mark.parametrize(
    ("options", "classes", "data", "words"),
    [
        (TeacherConfig(model="tiny_plain_4"), CLASSES, DATA, ['"tiny_plain_2"', '"tiny_plain_4"']),
        (TeacherConfig(model="tiny_plain_2", stem="half"), CLASSES, DATA, ['"small"', '"half"', '"auto"']),
        (TEACHER, CLASSES[:2], DATA, ["other classes", "3 classes, not these 2"]),
        (TEACHER, ("cat", "owl", "dog"), DATA, ["other classes", 'class 1 is "dog" there and "owl" here']),
        (TEACHER, CLASSES, DataConfig(mean=(0.5, 0.5, 0.5)), ["data.mean", "[0.5, 0.5, 0.5]"]),
    ],
)
def test_a_teacher_of_something_else_is_refused(
    saved: tuple[Path, dict[str, torch.Tensor]],
    options: TeacherConfig,
    classes: tuple[str, ...],
    data: DataConfig,
    words: list[str],
) -> None:
    with pytest.raises(CheckpointError) as error:
        load_network(saved[0], options, classes, data)
    assert all(word in str(error.value) for word in [str(saved[0]), *words]), error.value


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*none\.safetensors"):
        load_network(tmp_path / "none.safetensors", TEACHER, CLASSES, DATA)


def test_safetensors_of_somebody_else_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not written by udskd"):
        load_network(tmp_path / "x.safetensors", TEACHER, CLASSES, DATA)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s}])
def test_a_plain_state_dict_is_a_teacher_too(tmp_path: Path, wrap: object) -> None:
    state = models.build("tiny_plain_2", 3, 8).module.state_dict()
    torch.save(wrap({f"module.{k}": v for k, v in state.items()}), tmp_path / "t.pth")  # type: ignore[operator]
    loaded = load_network(tmp_path / "t.pth", TEACHER, CLASSES, DATA).module.state_dict()
    assert all(torch.equal(loaded[k], state[k]) for k in state)


def test_a_plain_resnet_gets_torchvisions_stem_at_any_size(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=3).state_dict(), tmp_path / "r.pth")
    model = load_network(tmp_path / "r.pth", TeacherConfig(model="resnet18"), CLASSES, DataConfig(image_size=32))
    assert model.stem == "imagenet"


def test_a_state_dict_with_another_head_names_the_layer_and_both_shapes(tmp_path: Path) -> None:
    torch.save(models.build("tiny_plain_2", 5, 8).module.state_dict(), tmp_path / "t.pth")
    with pytest.raises(
        CheckpointError, match=r"classifier\.weight is \[5, 8\] in the file and \[3, 8\] in the network"
    ):
        load_network(tmp_path / "t.pth", TEACHER, CLASSES, DATA)


def test_a_state_dict_of_another_network_names_what_is_missing(tmp_path: Path) -> None:
    torch.save(models.build("tiny_separable_2", 3, 8).module.state_dict(), tmp_path / "t.pth")
    with pytest.raises(CheckpointError, match=r"does not fit the network: .*features"):
        load_network(tmp_path / "t.pth", TEACHER, CLASSES, DATA)
