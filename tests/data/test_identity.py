"""Check of a data set against the one that a store or distilled file was made from."""

from __future__ import annotations

from typing import Any

import pytest

from trajmatch.data.dataset import check_same_data
from trajmatch.errors import UserError

KNOWN = {
    "name": "pets",
    "fingerprint": "a" * 64,
    "class_names": ["cat", "dog", "fox"],
    "shape": [3, 16, 16],
}


def refusal(**changes: Any) -> str:
    """The message for a data set with such changes."""
    with pytest.raises(UserError) as caught:
        given = {**KNOWN, "fingerprint": "b" * 64, **changes}
        check_same_data("x was made from", KNOWN, given, "npz:p.npz", "npz:q.npz")
    return str(caught.value)


def test_the_same_data_under_another_name_are_taken() -> None:
    check_same_data("x was made from", KNOWN, {**KNOWN, "name": "animals"})


@pytest.mark.parametrize(
    ("changes", "has", "got"),
    [
        (
            {"class_names": ["cat", "dog"]},
            "3 classes (fox, cat, dog) of images [3, 16, 16]",
            "2 classes (cat, dog) of images [3, 16, 16]",
        ),
        (
            {"class_names": [*"abcdefg"]},
            "3 classes (cat, dog, fox) of images [3, 16, 16]",
            "7 classes (a, b, c, d, e, ...) of images [3, 16, 16]",
        ),
        (
            {"class_names": ["cat", "cow", "fox"]},
            "3 classes (dog, cat, fox) of images [3, 16, 16]",
            "3 classes (cow, cat, fox) of images [3, 16, 16]",
        ),
        (
            {"shape": [1, 32, 32]},
            "3 classes (cat, dog, fox) of images [3, 16, 16]",
            "3 classes (cat, dog, fox) of images [1, 32, 32]",
        ),
    ],
)
def test_what_differs_is_said_in_the_users_terms(
    changes: dict[str, Any], has: str, got: str
) -> None:
    assert refusal(**changes) == (
        f"x was made from npz:p.npz with {has}, but npz:q.npz has {got}; give the same data with "
        "--data"
    )


def test_fingerprints_are_shown_only_where_all_else_is_equal() -> None:
    message = refusal()
    assert "npz:q.npz holds other images, labels or targets" in message
    assert f"{'b' * 16}..., expected {'a' * 16}..." in message
    assert "fingerprint" not in refusal(shape=[3, 32, 32])


def test_without_addresses_the_names_are_shown() -> None:
    with pytest.raises(UserError, match=r"set 'pets', but the data set 'animals' holds"):
        check_same_data(
            "x was made from", KNOWN, {**KNOWN, "name": "animals", "fingerprint": "c" * 64}
        )
