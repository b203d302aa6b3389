"""Values from files are compared with a schema, and what goes wrong is one sentence of the error that was chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import pytest

from tests.helpers.damage import nested
from udskd.config.validation import Invalid, parse_json, reading, validate
from udskd.errors import DataError


class Inner(TypedDict):
    size: Annotated[int, range(10)]


class Outer(Inner, total=False):
    kinds: list[Literal["a", "b"]]
    pair: tuple[float, float]
    inner: Inner | None


@pytest.mark.parametrize(
    "value", [{"size": 0}, {"size": 9, "other": {}}, {"size": 1, "kinds": ["a"], "pair": [1, 2.5], "inner": None}]
)
def test_a_value_of_the_schema_is_kept(value: dict[str, Any]) -> None:
    assert validate(value, Outer) == {**value, **({"pair": (1, 2.5)} if "pair" in value else {})}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "it must be an object, got a list of 0"),
        ({}, "size is missing"),
        ({"size": 10}, "size must be 0 to 9, got 10"),
        ({"size": True}, "size must be an integer, got true"),
        ({"size": 10**5000}, "size must be 0 to 9, got an integer of many digits"),
        ({"size": 1, "kinds": "a"}, 'kinds must be a list, got "a"'),
        ({"size": 1, "kinds": ["a", "c"]}, r'kinds\[1\] must be "a" or "b", got "c"'),
        ({"size": 1, "pair": [1.0]}, "pair must be a list of 2, got a list of 1"),
        ({"size": 1, "pair": [1.0, "2"]}, r'pair\[1\] must be a number, got "2"'),
        ({"size": 1, "inner": {"size": None}}, r"inner\.size must be an integer, got null"),
    ],
)
def test_the_place_of_a_wrong_value_is_named(value: Any, message: str) -> None:
    with pytest.raises(Invalid, match=f"^{message}$"):
        validate(value, Outer)


@pytest.mark.parametrize("data", [b"", b"\xff", b"[" * 10_000, b'{"a":' * 10_000, b"1" * 5_000, b"[]"])
def test_text_that_is_no_such_json_is_one_sentence(data: bytes, tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"^.*x\.json is damaged \(.*\): copy it again$") as error,
        reading(tmp_path / "x.json", DataError, "copy it again"),
    ):
        parse_json(data, dict[str, Any])
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "cause", [OSError(5, "Input/output error"), MemoryError(), RecursionError(), AssertionError(), SyntaxError("a\nb")]
)
def test_any_exception_of_a_parser_becomes_the_error(cause: Exception, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="x") as error, reading(tmp_path / "x", DataError):
        raise cause
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_file_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), reading(tmp_path / "x", DataError):
        (tmp_path / "x").read_bytes()


def test_deep_values_are_no_list() -> None:
    with pytest.raises(Invalid):
        validate(nested(), list[int])
