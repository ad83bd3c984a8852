"""Options behind a URI: what they may be, and classes by name or number."""

from dataclasses import dataclass

import numpy as np
import pytest

from trajmatch.data import load_dataset, resolve_uri
from trajmatch.data.options import (
    ImageOptions,
    Options,
    PartOptions,
    choose_classes,
    parse,
)
from trajmatch.errors import UserError

NAMES = ("airplane", "cat", "dog", "3", "T-shirt/top")


@dataclass(frozen=True, kw_only=True)
class Every(ImageOptions, PartOptions):
    """All kinds of options."""

    download: bool = False


def test_values_are_read():
    assert parse("", Options, "x") == Options()
    text = "classes=cat,black%2C%20white,%26&size=64&test=0.25&download=true&exif=turn"
    assert parse(text, Every, "x") == Every(
        classes=("cat", "black, white", "&"), size=64, test="0.25", download=True, exif="turn"
    )
    assert Every(test="0.25").fraction == 0.25 and Every(test="val").fraction is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clases=cat", "x takes no option 'clases'; the nearest are classes"),
        ("size=3&size=3", "x: the option size is given twice"),
        ("size", "x: the option size has no value; write size=..."),
        ("classes=", "x: the option classes has no value"),
        ("size=big", "x: size should be a whole number of at least 1, but is 'big'"),
        ("size=0", "x: size should be a whole number of at least 1, but is '0'"),
        ("exif=turned", "x: exif should be one of ignore, turn, but is 'turned'"),
        ("alpha=grey", "x: alpha should be one of black, drop, white, but is 'grey'"),
        ("download=yes", "x: download should be true or false, but is 'yes'"),
    ],
)
def test_what_cannot_be_used_is_named(text, message):
    with pytest.raises(UserError, match="^" + message.replace("...", r"\.\.\.")):
        parse(text, Every, "x")


@pytest.mark.parametrize("given", ["1", "0", "25", "nan", "-0.5"])
def test_a_fraction_out_of_range_is_refused(given):
    message = r"\?test= should be a number between 0 and 1, or the name of a part, but is '"
    with pytest.raises(UserError, match=message + given):
        Every(test=given).fraction  # noqa: B018


def test_classes_by_name_second_name_and_number():
    assert choose_classes("x", NAMES, ()) == [0, 1, 2, 3, 4]
    assert choose_classes("x", NAMES, ("dog", "0", "T-shirt/top")) == [2, 0, 4]
    assert choose_classes("x", NAMES, ("3",)) == [3]  # a name goes before a number
    assert choose_classes("x", ("a", "b"), ("n2", "a"), ("n1", "n2")) == [1, 0]


def test_accents_are_compared_in_one_form():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert choose_classes("x", ("a", decomposed), (composed,)) == [1]
    assert choose_classes("x", ("a", composed), (decomposed,)) == [1]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("cta",), r"x has no class 'cta'; the nearest are cat \(or give numbers from 0 to 4\)"),
        (("AIRPLANES",), "no class 'AIRPLANES'; the nearest are airplane"),
        (("zebra",), "no class 'zebra'; there are airplane, cat, dog, 3, T-shirt/top"),
        (("5",), "no class '5'"),
        (("-1",), "no class '-1'"),
        (("",), "no class ''"),
        (("cat", "1"), "class 'cat' is given twice"),
    ],
)
def test_classes_that_match_nothing_are_refused_with_the_nearest(wanted, message):
    with pytest.raises(UserError, match=message):
        choose_classes("x", NAMES, wanted)


@pytest.fixture
def pets(tmp_path):
    draw = np.random.default_rng(0)
    np.savez(
        tmp_path / "pets.npz",
        x_train=draw.integers(0, 256, (12, 5, 5, 3), np.uint8),
        y_train=np.arange(12) % 3,
        x_test=draw.integers(0, 256, (6, 5, 5, 3), np.uint8),
        y_test=np.arange(6) % 3,
        class_names=["cat", "dog", "fox"],
    )
    return tmp_path


def test_some_classes_of_any_set(pets, monkeypatch):
    whole = load_dataset(f"npz:{pets}/pets.npz")
    some = load_dataset(f"npz:{pets}/pets.npz?classes=fox,0")
    assert some.name == "pets?classes=fox,0"
    assert some.class_names == ("fox", "cat")
    assert some.train_labels.tolist() == [1, 0] * 4
    assert (some.train_images == whole.train_images[whole.train_labels != 1]).all()
    assert (some.test_images == whole.test_images[whole.test_labels != 1]).all()
    assert some.mean != whole.mean and some.fingerprint != whole.fingerprint
    monkeypatch.setenv("TRAJMATCH_DATA", str(pets))
    assert resolve_uri(some.name) == f"npz:{pets}/pets.npz?classes=fox,0"


def test_some_classes_of_the_shipped_set():
    name = "fashion-mnist-mini?classes=Bag,T-shirt/top"
    dataset = load_dataset(name)
    assert dataset.name == name == resolve_uri(name)
    assert dataset.class_names == ("Bag", "T-shirt/top")


def test_a_class_list_that_leaves_too_little_is_refused(pets):
    with pytest.raises(UserError, match="pets has no class 'wolf'; there are cat, dog, fox"):
        load_dataset(f"npz:{pets}/pets.npz?classes=wolf")
    with pytest.raises(UserError, match="at least 2 classes are needed, but there are 1"):
        load_dataset(f"npz:{pets}/pets.npz?classes=cat")
    with pytest.raises(UserError, match="npz:FILE takes no option 'size'; there are classes"):
        load_dataset(f"npz:{pets}/pets.npz?size=64")
