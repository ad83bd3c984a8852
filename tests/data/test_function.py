"""Data sets from a function of the user's."""

import sys

import numpy as np
import pytest
import torch

from trajmatch.data import load_dataset
from trajmatch.errors import UserError

MODULE = """
import numpy as np, torch
from trajmatch.data import Dataset

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)
LABELS = np.arange(8) % 2

def four():
    return IMAGES, LABELS, IMAGES, LABELS

def tensors():
    images = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    return [images, torch.from_numpy(LABELS), images, torch.from_numpy(LABELS), ["cat", "dog"]]

def mapping():
    return {"train_images": IMAGES, "train_labels": LABELS[:, None], "test_images": IMAGES,
            "test_labels": LABELS[:, None], "val_images": None}

def whole():
    images, labels = torch.from_numpy(IMAGES).permute(0, 3, 1, 2), torch.from_numpy(LABELS)
    return Dataset("pets", images, labels, images, labels, ("cat", "dog"))

def three():
    return IMAGES, LABELS, IMAGES

def nothing():
    pass

def floating():
    return IMAGES / 255, LABELS, IMAGES, LABELS

def failing():
    raise ZeroDivisionError("a mistake of the user's own")

number = 3
"""


@pytest.fixture(autouse=True)
def _module(tmp_path, monkeypatch):
    package = tmp_path / "own_data"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "pets.py").write_text(MODULE)
    (package / "broken.py").write_text("import a_module_that_is_nowhere")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [name for name in sys.modules if name.partition(".")[0] == "own_data"]:
        monkeypatch.delitem(sys.modules, module)


@pytest.mark.parametrize("name", ["four", "tensors", "mapping", "whole"])
def test_what_a_function_may_return(name):
    dataset = load_dataset(f"own_data.pets:{name}")
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)
    assert np.array_equal(dataset.train_images.numpy(), images.transpose(0, 3, 1, 2))
    assert dataset.test_labels.tolist() == [0, 1] * 4
    assert dataset.class_names == (("cat", "dog") if name in ("tensors", "whole") else ("0", "1"))
    assert dataset.name == ("pets" if name == "whole" else name)
    assert dataset.test_labels.dtype == torch.int64


def test_other_parts():
    assert len(load_dataset("own_data.pets:mapping?train=test&test=0.5").train_images) == 4


def test_some_of_its_classes():
    assert load_dataset("own_data.pets:whole?classes=dog,cat").class_names == ("dog", "cat")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("own_data.dogs:load", r"there is no Python module 'own_data\.dogs'.*PYTHONPATH"),
        ("nowhere.dogs:load", "no Python module 'nowhere', which 'nowhere.dogs:load' needs"),
        ("own_data.pets:load", r"own_data\.pets \(.*pets\.py\) has no 'load'"),
        ("own_data.pets:number", "own_data.pets:number should be a function, but is an int"),
        ("own_data.pets:three", "a tuple of them, but returned a tuple of 3"),
        ("own_data.pets:nothing", r"should return a trajmatch\.data\.Dataset, .* returned None"),
        ("own_data.pets:floating", "own_data.pets:floating: x_train should be uint8, 0 to 255"),
        (
            "own_data.pets:whole?test=0.5",
            "returned a trajmatch.data.Dataset, .* out .test=0.5",
        ),
        ("own_data.pets:four?size=3", "own_data.pets:four takes no option 'size'"),
    ],
)
def test_what_cannot_be_used_is_named(uri, message):
    with pytest.raises(UserError, match=message):
        load_dataset(uri)


def test_mistakes_inside_the_module_are_named_with_their_line(tmp_path):
    line = MODULE.splitlines().index("def failing():") + 2
    for uri, message, cause in (
        (
            "own_data.pets:failing",
            rf"own_data\.pets:failing failed: ZeroDivisionError: a mistake of the user's own "
            rf"\(.*pets\.py, line {line}\)$",
            ZeroDivisionError,
        ),
        (
            "own_data.broken:load",
            r"the module own_data\.broken failed: ModuleNotFoundError: No module named "
            r"'a_module_that_is_nowhere' \(.*broken\.py, line 1\)",
            ModuleNotFoundError,
        ),
        ("own_data.unfinished:load", r"failed: SyntaxError: .*unfinished\.py, line 1", SyntaxError),
        ("own_data.script:load", r"failed: SystemExit: 3 \(.*script\.py, line 1\)", SystemExit),
    ):
        (tmp_path / "own_data" / "unfinished.py").write_text("def load(")
        (tmp_path / "own_data" / "script.py").write_text("raise SystemExit(3)")
        with pytest.raises(UserError, match=message) as caught:
            load_dataset(uri)
        assert isinstance(caught.value.__cause__, cause)
