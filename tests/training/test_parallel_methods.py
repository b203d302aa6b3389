"""What methods train beside the students, on several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.helpers.parallel import ForkServer
from tests.training.test_parallel import RUN, different, place
from udskd.training.storage.checkpoint import load_state

PLAIN = {"data__mixup": 0.0, "student_b__model": "tiny_separable_2", "sdkd__stages": 2, "cud__stage_epochs": 1}
METHODS: dict[str, dict[str, Any]] = {
    "sdkd": {"method": "sdkd", "training__accumulate": 2},
    "akd": {"method": "akd"},
    "akd, learned": {"method": "akd", "akd__alpha": "learned"},
    "cud": {"method": "cud"},
    "variance": {"method": "variance", "variance__source": "dropout"},
}


@pytest.mark.slow_for(cases=lambda name: name != "sdkd")
@pytest.mark.parametrize("name", METHODS)
def test_a_run_of_two_processes_that_was_stopped_ends_as_an_undisturbed_one(
    name: str, fork_server: ForkServer, tree: Path, tmp_path: Path
) -> None:
    straight, stopped = (
        place(tmp_path / folder, tree, **{**PLAIN, **METHODS[name]}) for folder in ("straight", "stopped")
    )
    ended = fork_server.run(2, "train recipe.toml", straight)
    assert ended.codes == [0, 0], ended.err
    assert fork_server.run(2, "train recipe.toml", stopped, "stop").codes == [130, 130]
    assert fork_server.run(2, "train --resume run", stopped).codes == [0, 0]
    assert different(stopped / RUN, straight / RUN) == []


@pytest.mark.slow_for(cases=lambda name: name == "sdkd")
@pytest.mark.parametrize("name", ["sdkd", "akd, learned"])
def test_two_processes_train_a_methods_parts_as_one_does(
    name: str, fork_server: ForkServer, tree: Path, tmp_path: Path
) -> None:
    """With networks whose images do not depend on each other (no batch-norm, no dropout), up to rounding; but sdkd's
    blocks have batch-norm of their own, whose groups of images are smaller."""
    networks = {f"{role}__model": "squeezenet1_1" for role in ("teacher", "student_a", "student_b")}
    options = {
        **PLAIN,
        **networks,
        **METHODS[name],
        "data__image_size": 32,
        "training__epochs": 1,
        "training__accumulate": 1,
    }
    parts = []
    for ranks in (1, 2):
        here = place(tmp_path / str(ranks), tree, **options)
        ended = fork_server.run(ranks, "train recipe.toml", here, "record")
        assert ended.codes == [0] * ranks, ended.err
        networks_of = load_state(here / RUN / "checkpoints" / "students.pt")["networks"]
        own = {name: state["model"] for name, state in networks_of.items() if "student" not in name}
        parts.append({f"{name}.{key}": value for name, model in own.items() for key, value in model.items()})
    one, two = parts
    assert one.keys() == two.keys()
    tolerance = 0.3 if name == "sdkd" else 1e-3
    for key, value in one.items():
        torch.testing.assert_close(
            two[key], value, rtol=tolerance, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}"
        )
