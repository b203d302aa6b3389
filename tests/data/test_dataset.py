"""dataset: class hashes, errors and checks that all image sets use."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest

from udskd.data.dataset import UnreadableImage, abbreviate, class_hash, common_classes
from udskd.errors import DataError

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_class_hash_is_sha256_of_the_lines() -> None:
    assert class_hash(["cat", "dog"]) == hashlib.sha256(b"cat\ndog\n").hexdigest()


def test_class_hash_depends_on_order_and_boundaries() -> None:
    assert len({class_hash(c) for c in (("a", "b"), ("b", "a"), ("ab",), ("a", "b", ""))}) == 4


def test_class_hash_accepts_names_that_are_not_utf8() -> None:
    assert class_hash(["caf\udce9"]) == hashlib.sha256(b"caf\xe9\n").hexdigest()


def test_unreadable_image_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("x.jpg", "truncated")))
    assert (error.name, error.reason, str(error)) == ("x.jpg", "truncated", "x.jpg: truncated")


def test_abbreviate_counts_the_other_items() -> None:
    assert abbreviate(["a", "b", "c"]) == "a, b, c"
    assert abbreviate("abcde") == "a, b, c and 2 more"


@pytest.mark.parametrize(
    ("train", "val", "first", "second"),
    [
        (["bar", COMPOSED], ["bar", DECOMPOSED], "train", "val"),
        ([COMPOSED, DECOMPOSED], [COMPOSED, DECOMPOSED], "train", "train"),
        ([COMPOSED], [COMPOSED, DECOMPOSED], "train", "val"),
    ],
    ids=["one each", "both", "both in val"],
)
def test_a_class_in_two_unicode_forms_is_refused_with_both(
    train: list[str], val: list[str], first: str, second: str
) -> None:
    with pytest.raises(DataError) as caught:
        common_classes(Path("root"), train, val, None)
    assert str(caught.value) == (
        f"root has the class \"{COMPOSED}\" in two spellings that look alike: composed (NFC), 'caf\\xe9', in {first}, "
        f"decomposed (NFD), 'cafe\\u0301', in {second}; rename the folders so that there is one"
    )


@pytest.mark.parametrize("name", [COMPOSED, DECOMPOSED])
def test_a_class_in_one_unicode_form_is_fine(name: str) -> None:
    assert common_classes(Path("root"), ["bar", name], ["bar", name], None) == ["bar", name]
