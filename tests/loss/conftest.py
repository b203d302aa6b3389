"""The library of the emulated CUDA kernels is compiled and loaded for the first test that needs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.loss.helpers import emulated
from tests.loss.helpers.emulated_build import CompilerError

_SHOWN: list[CompilerError] = []


def pytest_runtest_setup(item: pytest.Item) -> None:
    if not item.get_closest_marker("emulated"):  # pytest has skipped it before where it cannot run
        return
    try:
        emulated.load()
    except CompilerError as error:
        if error in _SHOWN:
            pytest.fail("the CUDA kernels' source does not compile: see the first test that needs it", pytrace=False)
        _SHOWN.append(error)
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def reset_gpu_afterwards() -> Iterator[None]:
    yield
    emulated.reset()
