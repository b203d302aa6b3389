"""Fixtures of image trees and image sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.helpers.images import MemorySet, make_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path)


@pytest.fixture
def memory_set() -> Callable[..., MemorySet]:
    return MemorySet
