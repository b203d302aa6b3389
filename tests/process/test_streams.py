"""The standard streams: closed, full, and with readers that have ended."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from udskd.process import streams
from udskd.process.streams import LossyOutput, print_error


def test_an_output_that_fails_is_reported_once_and_then_discarded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        for _ in range(3):
            print("a line", file=LossyOutput(), flush=True)  # type: ignore[type-var]
    warning = "udskd: warning: the output cannot be written (No space left on device); the work goes on without it\n"
    assert capsys.readouterr().err == warning


def test_a_reader_that_has_ended_does_not_end_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        print("a line", file=LossyOutput(), flush=True)  # type: ignore[type-var]
    assert "cannot be written (Broken pipe); the work goes on" in capsys.readouterr().err


def test_an_error_that_cannot_be_printed_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("full", "closed", "none"):
        with open("/dev/full", "w") as full:
            if mode == "closed":
                full.close()
            monkeypatch.setattr(sys, "stderr", None if mode == "none" else full)
            print_error("a line")


def test_an_error_is_one_line_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("a\nb\x1b]0;title\x07\u202etxt.exe")
    assert capsys.readouterr().err == "a\\nb\\x1b]0;title\\x07\\u202etxt.exe\n"


def test_characters_that_an_encoding_lacks_become_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    streams.open_missing()
    print("± 1", flush=True)
    assert written.getvalue() == b"\\xb1 1\n"


@pytest.mark.subprocess
def test_closed_streams_are_opened_so_that_no_other_file_gets_their_numbers() -> None:
    program = (
        "from udskd.process import streams; streams.open_missing(); print('lost'); "
        "file = open('/dev/null'); assert file.fileno() > 2"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = f'{sys.executable} -c "{program}" <&- >&- 2>&-'
    assert subprocess.run(command, shell=True, env=environment).returncode == 0
