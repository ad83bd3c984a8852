"""CIFAR-10 and CIFAR-100 from small files in the official layouts."""

import hashlib
import os
import pickle

import numpy as np
import pytest
import torch

from trajmatch._torchvision import torchvision
from trajmatch.data import load_dataset
from trajmatch.data.cifar_names import CIFAR100
from trajmatch.errors import UserError

BINARY = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}
PYTHON = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
CLASSES = {"cifar10": 10, "cifar100": 100}
# Files of the binary version and images in each; every class has one image in training and test.
SIZES = {
    "cifar10": {**{f"data_batch_{i}.bin": 2 for i in range(1, 6)}, "test_batch.bin": 10},
    "cifar100": {"train.bin": 100, "test.bin": 100},
}


def images(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)


def train_and_test(name):
    """(images [N, 3072], labels [N]) of each split."""
    labels = np.arange(CLASSES[name])
    return (images(len(labels), 0), labels[::-1].copy()), (images(len(labels), 1), labels)


def write_binary(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for pixels, labels in train_and_test(name):
        columns = [labels[:, None].astype(np.uint8), pixels]
        if name == "cifar100":
            columns.insert(0, labels[:, None].astype(np.uint8) // 5)  # the superclass comes first
        rows.append(np.concatenate(columns, axis=1))
    records = iter(np.concatenate(rows))
    for file, count in SIZES[name].items():
        (folder / file).write_bytes(b"".join(next(records).tobytes() for _ in range(count)))


def write_python(folder, name, monkeypatch):
    """The Python version; torchvision is told the MD5 sums of these files."""
    folder.mkdir(parents=True, exist_ok=True)
    key = {"cifar10": "labels", "cifar100": "fine_labels"}[name]
    reader = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}
    sums = {}
    for split, (pixels, labels) in zip(("train", "test"), train_and_test(name), strict=True):
        names = [file for file, _ in getattr(reader[name], f"{split}_list")]
        parts = zip(np.split(pixels, len(names)), np.split(labels, len(names)), strict=True)
        for file, (some, those) in zip(names, parts, strict=True):
            sums[file] = write_pickle(folder / file, {"data": some, key: those.tolist()})
        monkeypatch.setattr(reader[name], f"{split}_list", [[file, sums[file]] for file in names])
    meta = reader[name].meta
    md5 = write_pickle(folder / meta["filename"], {meta["key"]: ["unused"] * CLASSES[name]})
    monkeypatch.setattr(reader[name], "meta", {**meta, "md5": md5})


def write_pickle(path, content):
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def refusal(name, root):
    with pytest.raises(UserError) as caught:
        load_dataset(f"{name}:{root}")
    return str(caught.value)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("parent", [True, False])
def test_binary_version(tmp_path, name, parent):
    folder = tmp_path / (BINARY[name] if parent else "renamed")
    write_binary(folder, name)
    dataset = load_dataset(f"{name}:{tmp_path if parent else folder}")
    (train_pixels, train_labels), (test_pixels, test_labels) = train_and_test(name)
    assert dataset.name == name
    assert dataset.num_classes == CLASSES[name]
    assert np.array_equal(dataset.train_images.flatten(1).numpy(), train_pixels)
    assert dataset.train_labels.tolist() == train_labels.tolist()
    assert np.array_equal(dataset.test_images.flatten(1).numpy(), test_pixels)
    assert dataset.test_labels.tolist() == test_labels.tolist()
    # Red, green and blue planes of 32 rows of 32 pixels.
    assert dataset.train_images.shape[1:] == (3, 32, 32)
    assert dataset.train_images[4, 2, 7, 30] == train_pixels[4, 2 * 1024 + 7 * 32 + 30]


@pytest.mark.parametrize("name", PYTHON)
@pytest.mark.parametrize("parent", [True, False])
def test_python_version_is_the_same_data_set(tmp_path, monkeypatch, name, parent):
    folder = tmp_path / "a" / (PYTHON[name] if parent else "renamed")
    write_python(folder, name, monkeypatch)
    write_binary(tmp_path / "b", name)
    dataset = load_dataset(f"{name}:{tmp_path / 'a' if parent else folder}")
    assert dataset.train_images.is_contiguous() and dataset.train_labels.dtype == torch.int64
    assert dataset.fingerprint == load_dataset(f"{name}:{tmp_path / 'b'}").fingerprint


class Trap:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").is_dir()


@pytest.mark.parametrize("name", PYTHON)
def test_no_pickle_is_opened_before_all_sums_are_right(tmp_path, monkeypatch, name):
    folder = tmp_path / PYTHON[name]
    write_python(folder, name, monkeypatch)
    for path in sorted(folder.iterdir()):
        genuine = path.read_bytes()
        path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
        message = refusal(name, tmp_path)
        assert str(path) in message and "was not opened" in message
        assert not (tmp_path / "sprung").exists()
        path.write_bytes(genuine)
    load_dataset(f"{name}:{tmp_path}")


def test_files_that_are_not_the_authors_are_refused(tmp_path):
    folder = tmp_path / PYTHON["cifar10"]
    folder.mkdir()
    for file in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        write_pickle(folder / file, {"data": [], "labels": []})
    message = refusal("cifar10", tmp_path)
    assert "data_batch_1 is missing or is not the official file of cifar10" in message
    assert "c99cafc152244af753f735de768cd75f" in message  # published with the data set


def test_names_of_cifar100():
    assert len(CIFAR100) == 100 and list(CIFAR100) == sorted(CIFAR100)


@pytest.mark.parametrize("name", BINARY)
def test_a_folder_without_the_set_gets_the_layout(tmp_path, name):
    message = refusal(name, tmp_path)
    assert BINARY[name] in message and PYTHON[name] in message and "unpack" in message
    assert "does not exist" in refusal(name, tmp_path / "missing")


@pytest.mark.parametrize("file", SIZES["cifar10"])
def test_a_missing_file_is_named(tmp_path, file):
    write_binary(tmp_path, "cifar10")
    (tmp_path / file).unlink()
    assert f"{tmp_path / file} is missing; unpack" in refusal("cifar10", tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 3072, 3074])
def test_a_file_cut_off_within_a_record_is_refused(tmp_path, kept):
    write_binary(tmp_path, "cifar10")
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:kept])
    message = refusal("cifar10", tmp_path)
    assert str(path) in message
    assert f"{kept} bytes are not a whole number of records of 3073 bytes" in message


def test_a_file_cut_off_between_records_is_refused(tmp_path):
    write_binary(tmp_path, "cifar10")
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:3073])
    message = refusal("cifar10", tmp_path)
    assert f"{path} holds 1 images, but data_batch_1.bin holds 2" in message


def test_cifar10_files_under_the_names_of_cifar100_are_refused(tmp_path):
    write_binary(tmp_path, "cifar10")
    (tmp_path / "data_batch_1.bin").rename(tmp_path / "train.bin")
    (tmp_path / "test_batch.bin").rename(tmp_path / "test.bin")
    assert "records of 3074 bytes" in refusal("cifar100", tmp_path)


def test_labels_out_of_range_are_refused(tmp_path):
    write_binary(tmp_path, "cifar10")
    path = tmp_path / "test_batch.bin"
    content = bytearray(path.read_bytes())
    content[3 * 3073] = 10
    path.write_bytes(content)
    assert "test labels should run from 0 to 9 (10 classes), but image 3 has label 10" in refusal(
        "cifar10", tmp_path
    )
