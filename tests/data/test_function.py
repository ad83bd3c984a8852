"""Data sets from a function of the user's."""

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
    return Dataset.from_arrays("pets", images, labels, images, labels, ("cat", "dog"))

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
    monkeypatch.delitem(__import__("sys").modules, "own_data.pets", raising=False)


@pytest.mark.parametrize("name", ["four", "tensors", "mapping", "whole"])
def test_what_a_function_may_return(name):
    dataset = load_dataset(f"own_data.pets:{name}")
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)
    assert np.array_equal(dataset.train_images.numpy(), images.transpose(0, 3, 1, 2))
    assert dataset.test_labels.tolist() == [0, 1] * 4
    assert dataset.class_names == (("cat", "dog") if name in ("tensors", "whole") else ("0", "1"))
    assert dataset.name == ("pets" if name == "whole" else name)
    assert dataset.test_labels.dtype == torch.int64


def test_some_of_its_classes():
    assert load_dataset("own_data.pets:whole?classes=dog,cat").class_names == ("dog", "cat")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("own_data.dogs:load", r"no data source and no Python module 'own_data\.dogs'.*PYTHONPATH"),
        ("nowhere.dogs:load", "no Python module 'nowhere', which 'nowhere.dogs:load' needs"),
        ("own_data.pets:load", r"own_data\.pets \(.*pets\.py\) has no function 'load'"),
        ("own_data.pets:number", "own_data.pets:number should be a function, but is a int"),
        ("own_data.pets:three", "a tuple of them, but returned a tuple of 3"),
        ("own_data.pets:nothing", r"should return a trajmatch\.data\.Dataset, .* a NoneType"),
        ("own_data.pets:floating", "own_data.pets:floating: x_train should be uint8, 0 to 255"),
        ("own_data.pets:four?size=3", "own_data.pets:four takes no option 'size'"),
    ],
)
def test_what_cannot_be_used_is_named(uri, message):
    with pytest.raises(UserError, match=message):
        load_dataset(uri)


def test_mistakes_inside_the_module_are_shown_as_they_are():
    with pytest.raises(ZeroDivisionError, match="a mistake of the user's own"):
        load_dataset("own_data.pets:failing")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_nowhere"):
        load_dataset("own_data.broken:load")
