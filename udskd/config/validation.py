"""What is read from a file is validated here: parsed within reading(), and compared with a schema by validate().

A schema is a type: None, bool, int, float, str, Any, list[T], tuple[T, ...], dict[str, T], a union, Literal, a
dataclass, a TypedDict (whose other keys are kept, unless they are refused elsewhere), or Annotated[int, range(...)].
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from udskd.errors import UdskdError, printable

Count = Annotated[int, range(2**53)]
"""A number of things, or a size in bytes."""
_NAMES = {None: "null", type(None): "null", bool: "a boolean", int: "an integer", float: "a number", str: "a string"}
_LONGEST = 200  # characters of a reason


class Invalid(ValueError):
    """A value is not of its schema. The message names its place and what was expected."""


@contextmanager
def reading(path: Path, error: type[UdskdError], advice: str = "", *, damaged: str = "is damaged") -> Iterator[None]:
    """Raise `error` for any exception of the code that reads and parses: one sentence with the path, the reason and
    the advice.

    Parsers raise almost any exception for damaged input. FileNotFoundError and errors of udskd's own pass.
    """
    try:
        yield
    except (UdskdError, FileNotFoundError):
        raise
    except OSError as cause:
        raise error(_sentence(f"{path} cannot be read", cause.strerror or str(cause), advice)) from None
    except MemoryError:
        raise error(_sentence(f"{path} cannot be read", "it needs more memory than there is", advice)) from None
    except RecursionError:
        raise error(_sentence(f"{path} {damaged}", "its values are nested too deeply", advice)) from None
    except UnicodeDecodeError:
        raise error(_sentence(f"{path} {damaged}", "it is not UTF-8", advice)) from None
    except Exception as cause:
        raise error(_sentence(f"{path} {damaged}", str(cause) or type(cause).__name__, advice)) from None


def _sentence(what: str, reason: str, advice: str) -> str:
    short = printable(" ".join(reason.split()))
    short = short if len(short) <= _LONGEST else f"{short[:_LONGEST]}…"
    return f"{what} ({short})" + (f": {advice}" if advice else "")


def parse_json(data: str | bytes, schema: Any) -> Any:
    """The JSON value, validated. ValueError or RecursionError for anything else."""
    return validate(json.loads(data), schema)


def validate(value: Any, schema: Any, place: str = "") -> Any:
    """The value; a dataclass or a tuple in place of the dict or list that it was stored as.

    Raises Invalid if it is not of the schema.
    """
    kind, arguments = get_origin(schema), get_args(schema)
    if schema is Any:
        return value
    if kind is Annotated:
        return _in_range(validate(value, arguments[0], place), arguments[1], place)
    if kind in (Union, types.UnionType):
        return _one_of(value, schema, place)
    if kind is Literal:
        return _check(value in arguments if isinstance(value, (str, int)) else False, value, schema, place)
    if kind is list or kind is tuple:
        return _sequence(value, schema, place)
    if kind is dict:
        _check(isinstance(value, dict) and all(isinstance(key, str) for key in value), value, schema, place)
        return {key: validate(one, arguments[1], _join(place, key)) for key, one in value.items()}
    if is_typeddict(schema) or is_dataclass(schema):
        return _record(value, schema, place)
    is_number = schema is float and type(value) is int
    return _check(is_number or type(value) is (schema or type(None)), value, schema, place)


def _in_range(value: int, allowed: range, place: str) -> int:
    if value not in allowed:
        raise Invalid(f"{place or 'it'} must be {allowed.start} to {allowed.stop - 1}, got {_shown(value)}")
    return value


def _one_of(value: Any, schema: Any, place: str) -> Any:
    if value is None and type(None) in get_args(schema):
        return None
    others = [one for one in get_args(schema) if one is not type(None)]
    for one in others[:-1]:
        try:
            return validate(value, one, place)
        except Invalid:
            continue
    return validate(value, others[-1], place)


def _sequence(value: Any, schema: Any, place: str) -> Any:
    kind, arguments = get_origin(schema), get_args(schema)
    is_fixed = kind is tuple and arguments[-1] is not Ellipsis
    is_long = not is_fixed or (isinstance(value, (list, tuple)) and len(value) == len(arguments))
    _check(isinstance(value, (list, tuple)) and is_long, value, schema, place)
    schemas = arguments if is_fixed else arguments[:1] * len(value)
    items = [validate(one, s, f"{place}[{k}]") for k, (one, s) in enumerate(zip(value, schemas, strict=True))]
    return tuple(items) if kind is tuple else items


def _record(value: Any, schema: Any, place: str) -> Any:
    _check(isinstance(value, dict) and all(isinstance(key, str) for key in value), value, schema, place)
    hints, required = _keys(schema)
    missing = [key for key in required if key not in value]
    if missing:
        raise Invalid(f"{_join(place, missing[0])} is missing")
    if is_dataclass(schema) and not value.keys() <= hints.keys():
        raise Invalid(f"{_join(place, min(value.keys() - hints.keys()))} is unknown")
    values = {key: validate(one, hints.get(key, Any), _join(place, key)) for key, one in value.items()}
    return values if is_typeddict(schema) else schema(**values)


@cache
def _keys(schema: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The schemas by key, and the keys that must be there: all of a dataclass."""
    required = schema.__required_keys__ if is_typeddict(schema) else [f.name for f in fields(schema)]
    return get_type_hints(schema, include_extras=True), tuple(sorted(required))


def _check(is_valid: bool, value: Any, schema: Any, place: str) -> Any:
    if not is_valid:
        raise Invalid(f"{place or 'it'} must be {_in_words(schema)}, got {_shown(value)}")
    return value


def _in_words(schema: Any) -> str:
    kind, arguments = get_origin(schema), get_args(schema)
    if kind is Literal:
        return " or ".join(json.dumps(choice) for choice in arguments)
    if kind is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}"
    return "a list" if kind in (list, tuple) else _NAMES.get(schema, "an object")


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 128:
        return "an integer of many digits"  # str() refuses more than 4,300
    if value is None or isinstance(value, (bool, int, float, str)):
        return json.dumps(value)[:40]
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"


def _join(place: str, key: str) -> str:
    short = key if len(key) <= 40 else f"{key[:40]}…"
    return f"{place}.{short}" if place else short
