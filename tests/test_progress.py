"""progress: what is shown while something takes long."""

from __future__ import annotations

import pytest

from udskd.progress import Display


def test_names_that_are_no_utf8_are_shown_with_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    Display().line("cannot read caf\u00e9/\udcff.jpg")
    assert capsys.readouterr().out == "cannot read caf\u00e9/\\udcff.jpg\n"
