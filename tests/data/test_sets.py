"""sets: what all image sets share."""

from __future__ import annotations

import hashlib
import pickle

from udskd.data.sets import UnreadableImage, class_hash, few


def test_class_hash_is_sha256_of_the_lines() -> None:
    assert class_hash(["cat", "dog"]) == hashlib.sha256(b"cat\ndog\n").hexdigest()


def test_class_hash_knows_order_and_boundaries() -> None:
    assert len({class_hash(c) for c in (("a", "b"), ("b", "a"), ("ab",), ("a", "b", ""))}) == 4


def test_unreadable_image_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("x.jpg", "truncated")))
    assert (error.name, error.reason, str(error)) == ("x.jpg", "truncated", "x.jpg: truncated")


def test_few_says_how_many_are_left() -> None:
    assert few(["a", "b", "c"]) == "a, b, c"
    assert few("abcde") == "a, b, c and 2 more"
