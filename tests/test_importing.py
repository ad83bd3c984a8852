"""Modules of a user's, named by data sets, networks and terms, in the current folder."""

import subprocess
import sys

import pytest

from trajmatch.data import load_dataset
from trajmatch.distill.terms import find_term
from trajmatch.networks import build, specify

MODULE = """
import numpy, torch

def data():
    images, labels = numpy.arange(64, dtype=numpy.uint8).reshape(4, 4, 4), numpy.arange(4) % 2
    return images, labels, images, labels

def network(in_channels, num_classes, image_size):
    return torch.nn.Linear(in_channels, num_classes)

class Term:
    def waypoints(self, steps, epochs):
        return []

    def loss(self, course):
        return None
"""


@pytest.mark.parametrize(
    ("attribute", "find"),
    [
        ("data", load_dataset),
        ("network", lambda name: build(specify(name, 1, 2, 4))),
        ("Term", find_term),
    ],
)
def test_the_current_folder_is_searched_after_all_others(tmp_path, monkeypatch, attribute, find):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder, number in ((here, 1), (elsewhere, 2)):
        folder.mkdir()
        (folder / f"mine_{attribute}.py").write_text(f"{MODULE}\nPLACE = {number}")
    (here / f"only_{attribute}.py").write_text(MODULE)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [*sys.path, str(elsewhere)])
    find(f"mine_{attribute}:{attribute}")
    find(f"only_{attribute}:{attribute}")
    assert sys.modules[f"mine_{attribute}"].PLACE == 2
    assert sys.path[-1] == str(here) and sys.path.count(str(here)) == 1
    for module in (f"mine_{attribute}", f"only_{attribute}"):
        monkeypatch.delitem(sys.modules, module)


def test_the_program_finds_a_module_in_the_folder_it_is_called_in(tmp_path):
    (tmp_path / "my_pets.py").write_text(MODULE)
    code = "from trajmatch.data import load_dataset; print(load_dataset('my_pets:data'))"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "Dataset" in found.stdout
