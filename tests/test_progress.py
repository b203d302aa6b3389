"""The display of progress: control characters in names."""

from __future__ import annotations

import pytest

from udskd.progress import Display


def test_bytes_that_are_not_utf8_become_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    Display().line("cannot read caf\u00e9/\udcff.jpg")
    assert capsys.readouterr().out == "cannot read caf\u00e9/\\udcff.jpg\n"


def test_control_characters_become_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    Display().line("cannot read a\nb\x1b[31m\x9b\u2028\t\u65e5\U0001f469\u200d\U0001f467 \u05e9.jpg")
    shown = "cannot read a\\nb\\x1b[31m\\x9b\\u2028\\t\u65e5\U0001f469\u200d\U0001f467 \u05e9.jpg\n"
    assert capsys.readouterr().out == shown
