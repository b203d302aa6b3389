"""Each kind of file, cut, with flipped bits, with values of other types, with another kind's content, or no file: it is
refused with one sentence, or, with a checksum, gives what the intact one gives.

`python -m tests.fuzz --kind files` goes on for as long as wanted.
"""

from __future__ import annotations

from random import Random

import pytest

from tests.fuzz import workspace
from tests.fuzz.files import FORMS, draw_damage, finding, pack_content
from tests.helpers.damage import cut, flip, flip_early

EACH = 12


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if not form.file.startswith("images/")])
def test_damage_is_refused_or_has_no_effect(name: str) -> None:
    form, random = FORMS[name], Random(name)
    for _ in range(2 * EACH):
        case = {"form": name, **draw_damage(form.file, random)}
        case["sealed"] = case.get("sealed", False) and form.has_checksum
        assert finding(case) is None, case


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.has_checksum])
def test_no_flipped_bit_and_no_cut_passes_a_checksum(name: str) -> None:
    data, random = (workspace.template() / FORMS[name].file).read_bytes(), Random(name)
    for damage in (cut, flip, flip_early) * EACH:
        case = {"form": name, "content": pack_content(damage(data, random)), "sealed": True}
        assert finding(case) is None, case
