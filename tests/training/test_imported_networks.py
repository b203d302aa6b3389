"""Runs with networks of timm and of the user's own code: trained, continued to the same bits, evaluated and loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import udskd
from tests.training.conftest import CLASSES, tiny_config, write_tree
from tests.training.helpers.runs import on_call, outcome
from tests.training.helpers.variants import options, run_of
from udskd.config.schema import Config
from udskd.errors import CheckpointError, ConfigError
from udskd.training import evaluate_run, train
from udskd.training.tasks.students import StudentsTask

OWN = "tests.models.helpers.own_networks:"
OF_TIMM: dict[str, Any] = {
    "data.image_size": 32,
    "teacher.model": "timm:convnext_atto",
    "teacher.options": {"depths": [1, 1, 1, 1], "dims": [4, 8, 16, 32]},
    "student_a.model": "timm:vit_tiny_patch16_224",
    "student_a.options": {"patch_size": 8, "depth": 2, "embed_dim": 24, "proj_drop_rate": 0.2},
    "student_b.model": "timm:mobilenetv3_small_050",
}
OF_MY_OWN: dict[str, Any] = {
    "teacher.model": OWN + "small_net",
    "teacher.options": {"width": 8, "output": "tuple"},
    "student_a.model": OWN + "small_net",
    "student_a.options": {"output": "dict", "dropout": 0.2},
    "student_b.model": OWN + "SmallNet",
    "student_b.options": {"output": "object"},
}
NETWORKS = {"timm": OF_TIMM, "own": OF_MY_OWN}


@pytest.fixture
def tree32(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", size=32, train=8, val=4)


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("values", [{}, {"training.precision": "bf16", "method": "cud"}], ids=["fp32", "bf16"])
def test_a_continued_run_has_the_bits_of_one_that_never_stopped(
    networks: str, values: dict[str, Any], tree32: Path, tmp_path: Path
) -> None:
    config = options(tiny_config(tree32, tmp_path / "run"), {**NETWORKS[networks], **values})
    train(replace(config, output=str(tmp_path / "straight")))
    with pytest.MonkeyPatch.context() as patch:
        on_call(patch, StudentsTask, "losses", 3, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config)
    train(config, resume=run_of(config))
    assert outcome(run_of(config)) == outcome(tmp_path / "straight")


@pytest.mark.parametrize("networks", NETWORKS)
def test_a_run_can_be_evaluated_and_its_networks_loaded(networks: str, tree32: Path, tmp_path: Path) -> None:
    config = options(tiny_config(tree32, tmp_path / "run"), {**NETWORKS[networks], "training.epochs": 1})
    train(config)
    summary = json.loads((run_of(config) / "summary.json").read_text())
    assert {role: v["nll"] for role, v in evaluate_run(run_of(config)).items()} == {
        role: summary[role]["nll"] for role in ("teacher", "student_a", "student_b")
    }
    loaded = udskd.load(run_of(config) / "student_a.safetensors")
    assert loaded.name == config.student_a.model
    size = config.data.image_size
    predicted = loaded.predict(np.zeros((2, size, size, 3), np.uint8))
    assert predicted.shape == (2, len(CLASSES))


@pytest.mark.parametrize("networks", NETWORKS)
def test_a_teacher_of_another_run_brings_its_options(networks: str, tree32: Path, tmp_path: Path) -> None:
    config = options(tiny_config(tree32, tmp_path / "run"), {**NETWORKS[networks], "training.epochs": 1})
    train(config)
    given = {"teacher.checkpoint": str(run_of(config) / "teacher.safetensors"), "teacher.options": {}}
    again = train(options(replace(config, output=str(tmp_path / "again")), {**given, "training.epochs": 1}))
    assert again["teacher"] == json.loads((run_of(config) / "summary.json").read_text())["teacher"]
    other = options(config, {**given, "teacher.options": {"act_layer": "relu"}, "output": str(tmp_path / "other")})
    with pytest.raises(CheckpointError, match=r"act_layer"):
        train(other)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("networks", NETWORKS)
def test_features_of_imported_networks_are_found_for_sdkd(networks: str, tree32: Path, tmp_path: Path) -> None:
    values = {**NETWORKS[networks], "method": "sdkd", "training.epochs": 1, "sdkd.stages": 2}
    if networks == "timm":  # a vision transformer has no stages
        values |= {"student_a.model": "timm:convnext_atto", "student_a.options": OF_TIMM["teacher.options"]}
    assert train(options(tiny_config(tree32, tmp_path / "run"), values))["status"] == "complete"


def test_features_of_an_own_network_can_be_named(config: Config) -> None:
    layers = {f"sdkd.{role}_layers": "stem.2,body" for role in ("teacher", "student_a", "student_b")}
    assert train(options(config, {**OF_MY_OWN, **layers, "method": "sdkd", "training.epochs": 1}))


@pytest.mark.parametrize("name", ["ValueReader", "Tied"])
def test_a_network_that_reads_values_or_shares_weights_is_trained_and_loaded(config: Config, name: str) -> None:
    values = {"teacher.model": OWN + name, "student_a.model": OWN + name, "training.epochs": 1}
    assert train(options(config, values))["status"] == "complete"
    assert udskd.load(run_of(config) / "student_a.safetensors").name == OWN + name


@pytest.mark.parametrize("role", ["teacher", "student_a", "student_b"])
def test_a_network_that_cannot_be_built_stops_the_run_before_its_folder(config: Config, role: str) -> None:
    with pytest.raises(ConfigError, match="no network today"):
        train(options(config, {f"{role}.model": OWN + "failing"}))
    assert not run_of(config).exists()


def test_a_file_does_not_decide_what_is_called(config: Config) -> None:
    values = {"student_a.model": OWN + "any_arguments", "training.epochs": 1}
    train(options(config, values))
    assert evaluate_run(run_of(config))["student_a"]  # the recipe names it
    with pytest.raises(CheckpointError, match="takes any arguments"):
        udskd.load(run_of(config) / "student_a.safetensors")


@pytest.mark.slow
def test_compiled_networks_are_trained(tree32: Path, tmp_path: Path) -> None:
    values = {**OF_MY_OWN, "training.compile": True, "training.epochs": 1}
    config = options(tiny_config(tree32, tmp_path / "run"), values)
    assert train(config)["status"] == "complete"
