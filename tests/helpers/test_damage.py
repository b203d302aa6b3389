from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from tests.helpers import damage

TREE: dict[str, Any] = {"a": 1, "b": [1.5, "x", None], "c": {"d": True}}


@pytest.mark.parametrize("how", damage.BYTES)
def test_damage_is_repeated_by_its_seed(how: damage.Bytes) -> None:
    data = json.dumps(TREE).encode() * 9
    assert how(data, Random(3)) == how(data, Random(3))


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 3])
def test_damaged_bytes_always_differ(data: bytes) -> None:
    assert all(damage.damage_bytes(data, Random(seed)) != data for seed in range(500))


def test_a_damaged_tree_differs_and_the_given_one_stays() -> None:
    before = json.dumps(TREE)
    assert all(json.dumps(damage.damage_value(TREE, Random(seed))) != before for seed in range(500))
    assert json.dumps(TREE) == before
