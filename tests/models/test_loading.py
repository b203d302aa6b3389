"""udskd.load: a network from a run's file, with the run's preprocessing and classes, or one sentence of an error."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import udskd
from tests.training.conftest import CLASSES, tiny_config, write_tree
from udskd.config import schema, toml
from udskd.data import EvalLoader, normalize_batch, open_sets
from udskd.errors import CheckpointError, DataError
from udskd.models import zoo
from udskd.models.checkpoints import WeightsInfo, load_state_dict, save_weights
from udskd.models.loading import load_network
from udskd.training import train

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two torchvision networks with stem "small", whose images need resizing."""
    folder = tmp_path_factory.mktemp("loading")
    tree = write_tree(folder / "tree", size=41, train=8, val=5)
    for number, file in enumerate(sorted(tree.glob("val/*/*.png"))):  # of several sizes and kinds
        image = Image.open(file).resize((37 + 5 * number, 60))
        image.convert("L").save(file) if number == 3 else image.save(file)
    values = {
        "method": "cud",  # writes teacher_shaped.safetensors too
        "cud.stage_epochs": 1,
        "data.root": str(tree),
        "data.image_size": 32,
        "data.eval_crop": 0.7,
        "data.mean": MEAN,
        "data.std": STD,
        "student_a.model": "mobilenet_v2",
        "student_b.model": "shufflenet_v2_x0_5",
        "training.epochs": 1,
    }
    train(schema.with_values(tiny_config(tree, folder / "run"), values))
    return folder / "run"


FILES = ["teacher", "teacher_shaped", "student_a", "student_b", "checkpoints/student_a_best"]


@pytest.mark.parametrize("name", FILES)
def test_a_loaded_model_has_the_metadata_of_the_run(run: Path, name: str) -> None:
    model = udskd.load(run / f"{name}.safetensors")
    assert model.classes == CLASSES
    assert (model.image_size, model.mean, model.std, model.eval_crop, model.stem) == (32, MEAN, STD, 0.7, "small")
    assert model.name in ("tiny_plain_4", "mobilenet_v2", "shufflenet_v2_x0_5")
    assert not model.module.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.module.parameters())


@pytest.mark.parametrize("name", ["teacher_shaped", "student_a", "student_b"])
def test_a_loaded_model_reproduces_the_accuracy_of_the_run(run: Path, name: str) -> None:
    model, config = udskd.load(str(run / f"{name}.safetensors")), toml.load(run / "config.toml")
    _, val = open_sets(config.data)
    p = model.predict([Image.open(val.name(index)) for index in range(len(val))])
    summary = json.loads((run / "summary.json").read_text())
    accuracy = (p.argmax(-1).numpy() == val.labels).mean()
    assert 100 * accuracy == pytest.approx(summary["teacher" if "teacher" in name else name]["top1"], abs=1e-9)
    if name.startswith("student"):
        saved = load_file(run / "predictions.safetensors")[name]
        torch.testing.assert_close(p, saved.float(), rtol=0, atol=1e-3)


def test_preprocessing_has_the_bits_of_the_evaluation(run: Path) -> None:
    model, config = udskd.load(run / "student_b.safetensors"), toml.load(run / "config.toml")
    _, val = open_sets(config.data)
    batches = [normalize_batch(b, config.data, "cpu", 3)[0] for b in EvalLoader(val, config.data, batch_size=4)]
    paths = [val.name(index) for index in range(len(val))]
    assert torch.equal(model.preprocess([Image.open(path) for path in paths]), torch.cat(batches))
    assert torch.equal(model.preprocess([val.pixels(index) for index in range(len(val))]), torch.cat(batches))


def test_one_image_and_several_in_every_form_give_the_same(run: Path) -> None:
    model = udskd.load(run / "student_a.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 50, 40, 3)).astype(np.uint8)
    expected = model.preprocess([Image.fromarray(p) for p in pixels])
    assert expected.shape == (2, 3, 32, 32)
    assert expected.dtype == torch.float32
    for form in (pixels, torch.from_numpy(pixels), list(pixels), tuple(torch.from_numpy(pixels))):
        assert torch.equal(model.preprocess(form), expected)
    for form in (pixels[1], torch.from_numpy(pixels[1]), Image.fromarray(pixels[1])):
        assert torch.equal(model.preprocess(form), expected[1:])
    assert torch.equal(model.preprocess(pixels[:, ::-1]), model.preprocess(pixels[:, ::-1].copy()))
    assert model.preprocess([]).shape == (0, 3, 32, 32)


def test_a_photograph_is_turned_upright_as_in_training(run: Path) -> None:
    model = udskd.load(run / "student_a.safetensors")
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3)).astype(np.uint8))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    assert torch.equal(model.preprocess(turned), model.preprocess(upright))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (
            torch.zeros(3, 40, 50, dtype=torch.uint8),
            r"image 0 is uint8 \[3, 40, 50\], expected a PIL image, or an array",
        ),
        (torch.zeros(40, 50, 3), r"image 0 is float32 \[40, 50, 3\]"),
        (np.zeros((40, 50), np.uint8), r"image 0 is uint8 \[40, 50\]"),
        (np.zeros((0, 50, 3), np.uint8), r"image 0 is uint8 \[0, 50, 3\]"),
        ([Image.new("RGB", (9, 9)), "cat.jpg"], "image 1 is a str"),
        ("cat.jpg", "image 0 is a str"),
        (None, "image 0 is a NoneType"),
    ],
)
def test_other_objects_than_images_are_refused(run: Path, images: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        udskd.load(run / "student_a.safetensors").preprocess(images)


def test_an_image_that_cannot_be_decoded_is_named(run: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:2000])
    images = [Image.new("RGB", (9, 9)), Image.open(tmp_path / "x.png")]
    with pytest.raises(DataError, match="image 1 cannot be decoded: "):
        udskd.load(run / "student_a.safetensors").preprocess(images)


def test_a_copy_whose_brightness_range_is_lost_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.pgm").write_bytes(b"P5 8 8 65535 " + bytes(range(128)))
    model, image = udskd.load(run / "student_a.safetensors"), Image.open(tmp_path / "x.pgm")
    assert model.preprocess(image).shape == (1, 3, 32, 32)
    with pytest.raises(DataError, match=r'image 0 cannot be decoded: .*mode "I" .* as Image.open\(\) returned it'):
        model.preprocess(image.copy())


def test_the_network_can_be_trained_further(run: Path) -> None:
    model = udskd.load(run / "student_b.safetensors")
    logits = model.module.train()(model.preprocess([Image.new("RGB", (9, 9))] * 2))
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert all(p.grad is not None for p in model.module.parameters())


@pytest.mark.parametrize("name", ["student_a", "student_b"])
@pytest.mark.parametrize("change", ["as loaded", "deepcopy", "pickle", "DataParallel", "part of another"])
def test_the_state_dict_of_a_loaded_network_keeps_the_stem(run: Path, name: str, change: str) -> None:
    model = udskd.load(run / f"{name}.safetensors")
    module = {
        "as loaded": lambda: model.module,
        "deepcopy": lambda: copy.deepcopy(model.module),
        "pickle": lambda: pickle.loads(pickle.dumps(model.module)),
        "DataParallel": lambda: nn.DataParallel(model.module),
        "part of another": lambda: nn.Sequential(model.module, nn.Softmax(-1)),
    }[change]()
    tensors = module.state_dict()
    assert sum("stem 'small' is not torchvision's" in key for key in tensors) == 1
    module.load_state_dict(tensors)
    module.load_state_dict({key: tensor for key, tensor in tensors.items() if "udskd" not in key})
    plain = {key.removeprefix("module.").removeprefix("0."): tensor for key, tensor in tensors.items()}
    with pytest.raises(RuntimeError, match="stem 'small' is not torchvision's, so load this file"):
        torchvision.models.get_model(model.name, num_classes=3).load_state_dict(plain)


def test_the_mark_of_another_stem_is_not_accepted(run: Path, tmp_path: Path) -> None:
    model, half = udskd.load(run / "student_a.safetensors"), tmp_path / "half.safetensors"
    tensors = zoo.build(model.name, 3, 32, "half").module.state_dict()
    save_weights(half, tensors, WeightsInfo(model.name, "half", CLASSES, 32, MEAN, STD, 1.0))
    with pytest.raises(RuntimeError, match="stem 'half' is not torchvision's"):
        model.module.load_state_dict(udskd.load(half).module.state_dict())


def test_a_loaded_network_can_be_saved_exported_and_compiled(run: Path, tmp_path: Path) -> None:
    model, images = udskd.load(run / "student_a.safetensors"), torch.rand(2, 3, 32, 32)
    info = WeightsInfo(model.name, model.stem, model.classes, 32, MEAN, STD, model.eval_crop)
    save_weights(tmp_path / "again.safetensors", model.module.state_dict(), info)
    expected = model.module(images)
    assert torch.equal(udskd.load(tmp_path / "again.safetensors").module(images), expected)
    traced: Any = torch.jit.trace(model.module, images)
    exported = torch.export.export(model.module, (images,)).module()
    compiled = torch.compile(model.module, backend="eager")
    for other in (traced, exported, compiled):
        torch.testing.assert_close(other(images), expected)
    assert any("stem 'small'" in key for key in compiled.state_dict())


def test_a_saved_state_dict_is_a_teacher_of_the_same_stem(run: Path, tmp_path: Path) -> None:
    torch.save(udskd.load(run / "student_a.safetensors").module.state_dict(), tmp_path / "t.pth")
    data, options = schema.DataConfig(image_size=32), schema.TeacherConfig(model="mobilenet_v2")
    assert load_network(tmp_path / "t.pth", options, CLASSES, data).stem == "small"


def test_a_network_of_torchvisions_stem_has_no_mark(tmp_path: Path) -> None:
    path, module = tmp_path / "t.safetensors", zoo.build("mobilenet_v2", 3, 32, "imagenet").module
    save_weights(path, module.state_dict(), WeightsInfo("mobilenet_v2", "imagenet", CLASSES, 32, MEAN, STD, 1.0))
    torchvision.models.mobilenet_v2(num_classes=3).load_state_dict(udskd.load(path).module.state_dict())


def test_a_network_is_tried_only_at_another_image_size_than_that_of_its_file(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, sizes = run / "student_b.safetensors", list[int]()
    monkeypatch.setattr(zoo, "_check_image_size", lambda *args: sizes.append(args[-1]))
    data = toml.load(run / "config.toml").data
    for size in (32, 48):
        load_network(file, None, CLASSES, replace(data, image_size=size))
    assert sizes == [48]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*none\.safetensors"):
        udskd.load(tmp_path / "none.safetensors")


def test_the_error_about_a_run_folder_names_its_files(run: Path) -> None:
    files = "student_a.safetensors, student_b.safetensors, teacher.safetensors, teacher_shaped.safetensors"
    with pytest.raises(CheckpointError, match=f"is a folder: load one of its files, {files}$"):
        udskd.load(run)


def test_a_folder_without_weights_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder without weights: give a \.safetensors file$"):
        udskd.load(tmp_path)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(zoo.build("tiny_plain_2", 3, 8).module.state_dict(), tmp_path / "t.pth")
    with pytest.raises(CheckpointError, match=r"t\.pth is not a \.safetensors file"):
        udskd.load(tmp_path / "t.pth")
    (tmp_path / "t.pth").rename(tmp_path / "t.safetensors")
    with pytest.raises(CheckpointError, match=r"t\.safetensors is truncated or not a safetensors file"):
        udskd.load(tmp_path / "t.safetensors")


def test_safetensors_without_udskds_metadata_are_one_sentence(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors holds no udskd metadata .*not written by udskd$"):
        udskd.load(tmp_path / "foreign.safetensors")


def test_the_error_about_predictions_names_the_files_of_weights(run: Path) -> None:
    words = r"holds the students' predictions, not weights: load one of its files, student_a\.safetensors, "
    with pytest.raises(CheckpointError, match=words):
        udskd.load(run / "predictions.safetensors")


def test_a_suffix_in_capitals_is_the_same_suffix(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "T.SAFETENSORS"
    path.write_bytes((run / "student_a.safetensors").read_bytes())
    assert udskd.load(path).name == "mobilenet_v2"
    data, options = schema.DataConfig(image_size=32, mean=MEAN, std=STD), schema.TeacherConfig(model="mobilenet_v2")
    assert load_network(path, options, CLASSES, data).stem == "small"


def test_an_unknown_home_folder_is_one_sentence() -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at ~nosuch/x\.safetensors: the home folder"):
        udskd.load("~nosuch/x.safetensors")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.uint8, torch.bool])
def test_weights_of_another_kind_of_number_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = zoo.build("tiny_plain_2", 3, 8).module.state_dict()
    tensors["classifier.weight"] = tensors["classifier.weight"].to(dtype)
    torch.save(tensors, tmp_path / "t.pth")
    words = rf"t\.pth does not fit the network: classifier\.weight is {str(dtype)[6:]} in the file and float32 in"
    with pytest.raises(CheckpointError, match=words):
        load_network(tmp_path / "t.pth", schema.TeacherConfig(model="tiny_plain_2"), CLASSES, schema.DataConfig())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_accepted(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = zoo.build("tiny_plain_2", 3, 8).module.state_dict()
    torch.save({name: tensor.to(dtype) for name, tensor in tensors.items()}, tmp_path / "t.pth")
    load_network(tmp_path / "t.pth", schema.TeacherConfig(model="tiny_plain_2"), CLASSES, schema.DataConfig())


def saved(folder: Path, info: WeightsInfo, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    path = folder / "student_a.safetensors"
    save_weights(path, tensors or zoo.build("tiny_plain_2", 3, 8).module.state_dict(), info)
    return path


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (WeightsInfo("tiny_plain_4", "small", CLASSES, 8, MEAN, STD, 1.0), "does not fit the network"),
        (WeightsInfo("resnet19", "small", CLASSES, 8, MEAN, STD, 1.0), 'unknown model "resnet19"'),
        (WeightsInfo("tiny_plain_2", "small", CLASSES[:2], 8, MEAN, STD, 1.0), "does not fit the network"),
        (WeightsInfo("tiny_plain_2", "small", CLASSES, 8, MEAN, STD, 7.0), "metadata cannot be understood"),
    ],
)
def test_metadata_that_do_not_fit_are_one_sentence(tmp_path: Path, info: WeightsInfo, words: str) -> None:
    path = saved(tmp_path, info)
    with pytest.raises(CheckpointError, match=words) as error:
        udskd.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tensors = zoo.build("tiny_plain_2", 3, 8).module.state_dict()
    tensors["classifier.weight"][0, 0] = float("nan")
    path = saved(tmp_path, WeightsInfo("tiny_plain_2", "small", CLASSES, 8, MEAN, STD, 1.0), tensors)
    with pytest.raises(CheckpointError, match=r"classifier\.weight has 1 of 24 values that are NaN or infinite"):
        udskd.load(path)


def test_a_file_that_does_not_record_the_evaluation_crop_says_what_is_assumed(tmp_path: Path) -> None:
    path = saved(tmp_path, WeightsInfo("tiny_plain_2", "small", CLASSES, 8, MEAN, STD))
    with pytest.warns(UserWarning, match=r"does not record data\.eval_crop: 0\.875 is assumed"):
        assert udskd.load(path).eval_crop == 0.875


def test_the_name_is_there_before_it_is_imported() -> None:
    code = "import sys, udskd; print('load' in dir(udskd), 'torchvision' in sys.modules, udskd.load.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False", "load"], done.stderr


def test_an_unknown_name_is_still_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'udskd' has no attribute 'loads'"):
        udskd.loads  # noqa: B018


def test_a_compressed_archive_of_weights_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A few kilobytes could decompress to more than the memory."""
    torch.save({"x": torch.zeros(2_000_000)}, tmp_path / "stored.pt")
    with zipfile.ZipFile(tmp_path / "stored.pt") as stored, zipfile.ZipFile(tmp_path / "x.pt", "w", 8) as compressed:
        for entry in stored.namelist():
            compressed.writestr(entry, stored.read(entry))
    assert (tmp_path / "x.pt").stat().st_size < 50_000
    with pytest.raises(CheckpointError, match=r"x\.pt is truncated or not a checkpoint"):
        load_state_dict(tmp_path / "x.pt")
