"""Argument parsing that the benchmarks share. Needs neither PyTorch nor udskd."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any


def make_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m bench.MODULE`, described by the first line of the module's docstring."""
    description = (doc or "").splitlines()[0]
    return argparse.ArgumentParser(prog=f"python -m bench.{module}", description=description, allow_abbrev=False)


def add_device(parser: argparse.ArgumentParser, text: str | None = None) -> None:
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help=text)


# --- types of arguments ----------------------------------------------------------------------------------------------


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def shape(text: str) -> tuple[int, int]:
    rows, _, classes = text.partition("x")
    if not (rows.isdecimal() and classes.isdecimal() and int(rows) >= 1 and int(classes) >= 2):
        message = f"{text!r} is not ROWSxCLASSES with at least 1 row and 2 classes, such as 256x100"
        raise argparse.ArgumentTypeError(message)
    return int(rows), int(classes)


def one_of(name: str, known: Sequence[str]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"unknown {name} {text!r}; known are {', '.join(known)}")
        return text

    return check


def comma_separated(item: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """A list without repetitions."""
    return lambda text: list(dict.fromkeys(item(part.strip()) for part in text.split(",")))
