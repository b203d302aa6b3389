"""Files are complete or absent and name their format; all others are refused in one sentence."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision.models import get_model

from udskd import files
from udskd.config.schema import DataConfig, Stem, TeacherConfig
from udskd.errors import CheckpointError
from udskd.files import write_atomic
from udskd.models import zoo
from udskd.models.checkpoints import WeightsInfo, fingerprint, load_weights, save_weights
from udskd.models.loading import load_network, stem_of
from udskd.training.storage.checkpoint import load_state, previous, save_state

CLASSES = ("cat", "dog", "owl")
DATA = DataConfig(image_size=8)
INFO = WeightsInfo("tiny_plain_2", "small", CLASSES, 8, DATA.mean, DATA.std)
TEACHER = TeacherConfig(model="tiny_plain_2")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    module = zoo.build("tiny_plain_2", 3, 8).module.to(memory_format=torch.channels_last)
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
    twin = zoo.build("tiny_plain_2", 3, 8).module
    twin.load_state_dict(tensors)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(load_network(path, TEACHER, CLASSES, DATA).module.eval()(x), twin.eval()(x))


def test_any_reader_of_safetensors_can_open_them(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
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
    monkeypatch.setattr(files.os, moment, full_disk)
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

    monkeypatch.setattr(files.os, "fsync", record_fsync)
    monkeypatch.setattr(files.os, "replace", check_replace)
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


def test_safetensors_of_somebody_else_do_not_say_which_model_they_hold(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="does not name its model"):
        load_network(tmp_path / "x.safetensors", None, CLASSES, DATA)
    with pytest.raises(CheckpointError, match="not written by udskd"):
        load_weights(tmp_path / "x.safetensors")


def test_safetensors_of_somebody_else_that_do_not_fit_name_what_is_missing(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x\.safetensors does not fit the network: it lacks classifier\.bias"):
        load_network(tmp_path / "x.safetensors", TEACHER, CLASSES, DATA)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s}])
def test_a_plain_state_dict_is_a_teacher_too(tmp_path: Path, wrap: object) -> None:
    state = zoo.build("tiny_plain_2", 3, 8).module.state_dict()
    torch.save(wrap({f"module.{k}": v for k, v in state.items()}), tmp_path / "t.pth")  # type: ignore[operator]
    loaded = load_network(tmp_path / "t.pth", TEACHER, CLASSES, DATA).module.state_dict()
    assert all(torch.equal(loaded[k], state[k]) for k in state)


def save_plain(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    """As a state dict without metadata."""
    torch.save(tensors, path) if path.suffix == ".pth" else save_file(tensors, path)
    return path


@pytest.mark.parametrize("file", ["t.pth", "t.safetensors"])
@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v2"])
@pytest.mark.parametrize("size", [32, 95, 96])
def test_plain_weights_get_torchvisions_stem_at_any_size(tmp_path: Path, file: str, name: str, size: int) -> None:
    own = get_model(name, weights=None, num_classes=3)
    path = save_plain(own.state_dict(), tmp_path / file)
    model = load_network(path, TeacherConfig(model=name), CLASSES, DataConfig(image_size=size))
    x = torch.randn(2, 3, size, size)
    assert model.stem == "imagenet"
    assert torch.equal(model.module.eval()(x), own.eval()(x))


@pytest.mark.parametrize("file", ["t.pth", "t.safetensors"])
def test_an_explicit_stem_of_plain_weights_is_taken_at_its_word(tmp_path: Path, file: str) -> None:
    path = save_plain(zoo.build("mobilenet_v2", 3, 32, "small").module.state_dict(), tmp_path / file)
    options = TeacherConfig(model="mobilenet_v2", stem="small")
    assert load_network(path, options, CLASSES, DataConfig(image_size=32)).stem == "small"


# networks whose weights have the names and shapes of torchvision's under another stem, and some whose have not
RELAXED: list[tuple[str, Stem]] = [
    ("mobilenet_v2", "small"),
    ("shufflenet_v2_x0_5", "small"),
    ("shufflenet_v2_x0_5", "half"),
    ("efficientnet_b0", "small"),
    ("regnet_x_400mf", "small"),
    ("resnet18", "small"),
    ("resnet18", "half"),
]


def save_relaxed(name: str, stem: Stem, folder: Path) -> tuple[Path, zoo.Model]:
    model = zoo.build(name, 3, 32, stem)
    path = folder / "student_b.safetensors"
    save_weights(path, model.module.state_dict(), WeightsInfo(name, stem, CLASSES, 32, DATA.mean, DATA.std, 1.0))
    return path, model


@pytest.mark.parametrize(("name", "stem"), RELAXED)
def test_torchvisions_network_refuses_weights_of_another_stem_and_says_why(
    tmp_path: Path, name: str, stem: Stem
) -> None:
    path, _ = save_relaxed(name, stem, tmp_path)
    own = get_model(name, weights=None, num_classes=3)
    with pytest.raises(RuntimeError, match=f"stem '{stem}' is not torchvision's, so load this file with udskd.load"):
        own.load_state_dict(load_file(path))


@pytest.mark.parametrize(("name", "stem"), RELAXED)
def test_weights_of_another_stem_come_back_without_their_mark(tmp_path: Path, name: str, stem: Stem) -> None:
    path, model = save_relaxed(name, stem, tmp_path)
    tensors = load_weights(path)[0]
    assert fingerprint(tensors) == fingerprint(model.module.state_dict())
    loaded = load_network(path, TeacherConfig(model=name), CLASSES, DataConfig(image_size=32))
    assert loaded.stem == stem
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.module.eval()(x), model.module.eval()(x))


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_a_network_that_asks_for_its_version_comes_back(tmp_path: Path, stem: Stem) -> None:
    path, model = save_relaxed("mnasnet0_5", stem, tmp_path)
    loaded = load_network(path, None, CLASSES, DataConfig(image_size=32)).module.state_dict()
    assert fingerprint(loaded) == fingerprint(model.module.state_dict())


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "resnet18"])
def test_torchvisions_network_takes_weights_of_its_own_stem(tmp_path: Path, name: str) -> None:
    path, model = save_relaxed(name, "imagenet", tmp_path)
    own = get_model(name, weights=None, num_classes=3)
    own.load_state_dict(load_file(path))
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(own.eval()(x), model.module.eval()(x))


@pytest.mark.parametrize("file", ["t.pth", "t.safetensors"])
@pytest.mark.parametrize("size", [32, 128])
def test_a_mark_that_was_copied_into_plain_weights_names_their_stem(tmp_path: Path, file: str, size: int) -> None:
    path, _ = save_relaxed("mobilenet_v2", "small", tmp_path)
    copy, options = save_plain(load_file(path), tmp_path / file), TeacherConfig(model="mobilenet_v2")
    assert load_network(copy, options, CLASSES, DataConfig(image_size=size)).stem == "small"
    assert stem_of(copy, options) == "small"
    with pytest.raises(CheckpointError, match=r'has stem "small", but the recipe asks for "imagenet"'):
        load_network(copy, replace(options, stem="imagenet"), CLASSES, DataConfig(image_size=size))


@pytest.mark.parametrize("size", [32, 128])
def test_auto_is_the_stem_of_the_file_at_any_size(tmp_path: Path, size: int) -> None:
    options, data = TeacherConfig(model="mobilenet_v2"), DataConfig(image_size=size)
    for stem in get_args(zoo.BuiltStem):
        path, _ = save_relaxed("mobilenet_v2", stem, tmp_path)
        assert load_network(path, options, CLASSES, data).stem == stem_of(path, options) == stem


def older(path: Path) -> None:
    """Rewrite a file as the version before wrote it: no mark, no eval_crop, no hash of the metadata."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    metadata["format"] = "udskd-weights-2"
    del metadata["eval_crop"], metadata["metadata_sha256"]
    save_file(load_weights(path)[0], path, metadata)


def test_a_file_of_an_older_version_still_loads(tmp_path: Path) -> None:
    path, model = save_relaxed("mobilenet_v2", "small", tmp_path)
    older(path)
    loaded = load_network(path, None, CLASSES, DataConfig(image_size=32))
    assert loaded.stem == "small"
    assert load_weights(path)[1].eval_crop is None
    assert fingerprint(loaded.module.state_dict()) == fingerprint(model.module.state_dict())


def test_a_file_of_a_newer_version_is_refused(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    save_file({"x": torch.zeros(1)}, saved[0], {"format": "udskd-weights-99"})
    with pytest.raises(CheckpointError, match=r"format udskd-weights-99, which this version of udskd does not support"):
        load_weights(saved[0])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stem", "large"),
        ("stem", None),
        ("classes", "[1, 2]"),
        ("classes", "{"),
        ("classes", "3"),
        ("image_size", "big"),
        ("image_size", "0"),
        ("mean", "[0.5]"),
        ("mean", "null"),
        ("std", "[0, 1, 1]"),
        ("std", '["a", 1, 1]'),
        ("eval_crop", "2.0"),
    ],
)
def test_damaged_metadata_is_one_sentence(tmp_path: Path, key: str, value: str | None) -> None:
    path, _ = save_relaxed("mobilenet_v2", "small", tmp_path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    metadata = {k: v for k, v in metadata.items() if k != key} | ({} if value is None else {key: value})
    save_file(load_file(path), path, metadata)
    with pytest.raises(CheckpointError, match=rf"is damaged: its metadata cannot be understood \(.*{key}") as error:
        load_weights(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["sha256", "class_hash"])
def test_a_missing_hash_is_damage(tmp_path: Path, key: str) -> None:
    path, _ = save_relaxed("mobilenet_v2", "small", tmp_path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    del metadata[key]
    save_file(load_file(path), path, metadata)
    with pytest.raises(CheckpointError, match="is damaged: its contents do not match their SHA-256"):
        load_weights(path)


def test_a_stem_that_its_mark_contradicts_is_damage(tmp_path: Path) -> None:
    path, _ = save_relaxed("mobilenet_v2", "small", tmp_path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, "stem": "imagenet"})
    with pytest.raises(CheckpointError, match="is damaged"):
        load_weights(path)


def test_weights_of_other_sizes_of_images_say_so_in_the_description(tmp_path: Path) -> None:
    path, _ = save_relaxed("mobilenet_v2", "small", tmp_path)
    same, other = (load_network(path, None, CLASSES, DataConfig(image_size=size)).describe() for size in (32, 64))
    assert other == f"{same}, trained on images of 32 px"


def spoil(value: float, name: str) -> dict[str, torch.Tensor]:
    tensors = zoo.build("tiny_plain_2", 3, 8).module.state_dict()
    tensors[name].view(-1)[0] = value
    return tensors


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["features.0.0.weight", "features.1.1.running_mean", "classifier.bias"])
@pytest.mark.parametrize("file", ["t.pth", "t.safetensors", "own.safetensors"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float, name: str, file: str) -> None:
    path, tensors = tmp_path / file, spoil(value, name)
    save_weights(path, tensors, INFO) if file.startswith("own") else save_plain(tensors, path)
    message = rf"{re.escape(str(path))} holds no usable network: {re.escape(name)} has 1 of \d+ values that are NaN"
    with pytest.raises(CheckpointError, match=message):
        load_network(path, TEACHER, CLASSES, DATA)


def test_the_first_tensor_that_is_not_finite_is_named(tmp_path: Path) -> None:
    tensors = spoil(float("nan"), "classifier.bias")
    tensors["features.2.0.weight"].fill_(float("inf"))
    save_weights(tmp_path / "t.safetensors", tensors, INFO)
    with pytest.raises(CheckpointError, match=r"features\.2\.0\.weight has (\d+) of \1 values"):
        load_network(tmp_path / "t.safetensors", None, CLASSES, DATA)


def test_a_weight_that_is_finite_in_the_file_but_not_in_the_network_is_refused(tmp_path: Path) -> None:
    tensors = {k: v.double() for k, v in spoil(0.0, "classifier.bias").items()}
    tensors["classifier.bias"][0] = 1e300
    with pytest.raises(CheckpointError, match=r"classifier\.bias has 1 of 3"):
        load_network(save_plain(tensors, tmp_path / "t.pth"), TEACHER, CLASSES, DATA)


def test_a_negative_variance_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "t.safetensors", spoil(-1.0, "features.0.1.running_var"), INFO)
    with pytest.raises(CheckpointError, match=r"features\.0\.1\.running_var has a negative variance, -1"):
        load_network(tmp_path / "t.safetensors", TEACHER, CLASSES, DATA)


def test_the_state_of_a_training_is_no_teacher(tmp_path: Path) -> None:
    save_state(tmp_path / "students.pt", {"epoch": 1})
    with pytest.raises(CheckpointError, match=r"students\.pt is the state of a training, for --resume: give a \.safet"):
        load_network(tmp_path / "students.pt", TEACHER, CLASSES, DATA)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["noise", "zip", "legacy"])
def test_damage_anywhere_in_a_plain_file_is_one_sentence(tmp_path: Path, kind: str) -> None:
    path, rng = tmp_path / "t.pth", np.random.default_rng(0)
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=kind == "zip")
    good = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(300):
        data = rng.integers(0, 256, 200).astype(np.uint8) if kind == "noise" else good.copy()
        data[rng.integers(len(data), size=3)] = rng.integers(256, size=3)
        path.write_bytes(data[: rng.integers(1, len(data) + 1)].tobytes())
        with pytest.raises(CheckpointError) as error:
            load_network(path, TEACHER, CLASSES, DATA)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("key", "value"), [("mean", "[0.5, 0.5, 0.5]"), ("eval_crop", "0.5"), ("image_size", "64")])
def test_altered_metadata_are_found_even_where_they_make_sense(tmp_path: Path, key: str, value: str) -> None:
    path, _ = save_relaxed("mobilenet_v2", "small", tmp_path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, key: value})
    with pytest.raises(CheckpointError, match="is damaged: its contents do not match their SHA-256"):
        load_weights(path)


def test_damage_anywhere_in_the_header_of_a_file_of_ours_is_one_sentence(tmp_path: Path) -> None:
    path, _ = save_relaxed("shufflenet_v2_x0_5", "small", tmp_path)
    whole = load_weights(path)[1]
    good, rng = np.frombuffer(path.read_bytes(), np.uint8), np.random.default_rng(0)
    header = 8 + int.from_bytes(good[:8].tobytes(), "little")
    for _ in range(200):
        data = good.copy()
        data[rng.integers(header, size=2)] = rng.integers(256, size=2)
        path.write_bytes(data.tobytes())
        with contextlib.suppress(CheckpointError):
            assert load_weights(path)[1] == whole


@pytest.mark.parametrize("content", [{0: torch.zeros(1)}, {"x": 1}, {}, [torch.zeros(1)]])
def test_a_file_without_named_tensors_is_one_sentence(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "t.pth")
    with pytest.raises(CheckpointError, match=r"t\.pth is not a (state dict|checkpoint)"):
        load_network(tmp_path / "t.pth", TEACHER, CLASSES, DATA)


def test_a_state_dict_with_another_head_names_the_layer_and_both_shapes(tmp_path: Path) -> None:
    torch.save(zoo.build("tiny_plain_2", 5, 8).module.state_dict(), tmp_path / "t.pth")
    with pytest.raises(
        CheckpointError, match=r"classifier\.weight is \[5, 8\] in the file and \[3, 8\] in the network"
    ):
        load_network(tmp_path / "t.pth", TEACHER, CLASSES, DATA)


def test_a_state_dict_of_another_network_names_what_is_missing(tmp_path: Path) -> None:
    torch.save(zoo.build("tiny_separable_2", 3, 8).module.state_dict(), tmp_path / "t.pth")
    with pytest.raises(CheckpointError, match=r"does not fit the network: .*features"):
        load_network(tmp_path / "t.pth", TEACHER, CLASSES, DATA)
