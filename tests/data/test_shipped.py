"""The data set inside the package."""

import os
import runpy
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trajmatch.data import SHIPPED, load_dataset
from trajmatch.data.readers import shipped
from trajmatch.errors import UserError

FILES = resources.files("trajmatch.data").joinpath("fashion_mnist_mini")
SCRIPT = Path(__file__).with_name("make_fashion_mnist_mini.py")


@pytest.fixture(scope="module")
def dataset():
    return load_dataset()


def test_size_and_balance(dataset):
    assert dataset.name == SHIPPED == "fashion-mnist-mini"
    assert dataset.train_images.shape == (10_000, 1, 28, 28)
    assert dataset.test_images.shape == (2_000, 1, 28, 28)
    assert dataset.train_labels.bincount().tolist() == [1000] * 10
    assert dataset.test_labels.bincount().tolist() == [200] * 10
    assert dataset.class_names[9] == "Ankle boot"


def test_content_is_what_it_always_was(dataset):
    assert dataset.fingerprint == (
        "6acbd8c8ff9b85933fab5c1dff2bf782795aafcc6dfb6e36e691ca8ed52cf7f4"
    )
    assert shipped._whole.__wrapped__().fingerprint == dataset.fingerprint
    assert load_dataset(SHIPPED) is dataset


def test_labels_belong_to_the_images(dataset):
    """A classifier by nearest class mean gets 67.7 % on the whole of Fashion-MNIST."""
    images, tests = (
        dataset.train_images.flatten(1).double(),
        dataset.test_images.flatten(1).double(),
    )
    means = torch.stack([images[dataset.train_labels == label].mean(0) for label in range(10)])
    right = torch.cdist(tests, means).argmin(1) == dataset.test_labels
    assert right.double().mean() > 0.6


def test_files_are_small_and_have_their_licence():
    for name in ("train.png", "test.png"):
        assert len(FILES.joinpath(name).read_bytes()) < 4 * 2**20
    licence = FILES.joinpath("LICENSE").read_text()
    assert "Zalando SE" in licence and "MIT License" in licence


@pytest.mark.parametrize("name", ["train.png", "test.png"])
def test_damaged_and_missing_files_are_refused(tmp_path, monkeypatch, name):
    copy = tmp_path / "fashion_mnist_mini"
    with resources.as_file(FILES) as folder:
        shutil.copytree(folder, copy)
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    monkeypatch.setattr(shipped, "_whole", shipped._whole.__wrapped__)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is damaged .*; reinstall trajmatch"):
        load_dataset()
    os.unlink(copy / name)
    with pytest.raises(UserError, match=rf"cannot read .*{name}: No such file"):
        load_dataset()


def test_the_script_lays_the_sheets_out_as_the_reader_expects(dataset):
    make_sheet = runpy.run_path(str(SCRIPT))["make_sheet"]
    with resources.as_file(FILES.joinpath("test.png")) as path, Image.open(path) as sheet:
        assert np.array_equal(make_sheet(dataset.test_images, 200).numpy(), np.asarray(sheet))


def test_the_script_makes_the_same_sheets_from_the_same_files(tmp_path):
    root = tmp_path / "raw"
    root.mkdir()
    labels = np.arange(260) * 3 % 10
    images = np.random.default_rng(0).integers(0, 256, (260, 28, 28), np.uint8)
    for split in ("train", "t10k"):
        header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in images.shape)
        (root / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = b"\0\0\x08\x01" + len(labels).to_bytes(4, "big")
        (root / f"{split}-labels-idx1-ubyte").write_bytes(
            header + labels.astype(np.uint8).tobytes()
        )
    main = runpy.run_path(str(SCRIPT))["main"]
    main.__globals__["PER_CLASS"] = {"train": 20, "test": 20}
    made = []
    for out in ("a", "b"):
        (tmp_path / out).mkdir()
        main(root, tmp_path / out)
        made.append([(tmp_path / out / f"{split}.png").read_bytes() for split in ("train", "test")])
    assert made[0] == made[1]

    with Image.open(tmp_path / "a" / "train.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (28, 200 * 28)
    for label in range(10):
        expected = images[np.flatnonzero(labels == label)[:20]]
        band = pixels[:, label * 20 * 28 : (label + 1) * 20 * 28]
        assert np.array_equal(band, np.concatenate(list(expected), axis=1))
