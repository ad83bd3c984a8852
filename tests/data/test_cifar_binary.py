"""The binary version of CIFAR-10 and CIFAR-100, from small files."""

import numpy as np
import pytest

from trajmatch.data import load_dataset
from trajmatch.data.known_sets import KNOWN_SETS
from trajmatch.errors import UserError

BINARY = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}
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


def test_pictures_give_the_same_as_arrays(tmp_path):
    write_binary(tmp_path, "cifar10")
    arrays, pictures = (load_dataset(f"cifar10:{tmp_path}{size}") for size in ("", "?size=32"))
    assert pictures.fingerprint == arrays.fingerprint


def test_names_of_cifar100():
    names = KNOWN_SETS["cifar100"].classes
    assert len(names) == 100 and list(names) == sorted(names)


@pytest.mark.parametrize("file", SIZES["cifar10"])
def test_a_missing_file_is_named(tmp_path, file):
    write_binary(tmp_path, "cifar10")
    (tmp_path / file).unlink()
    assert f"No such file or directory: '{tmp_path / file}'" in refusal("cifar10", tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 3072, 3074])
def test_a_file_cut_off_within_a_record_is_refused(tmp_path, kept):
    write_binary(tmp_path, "cifar10")
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:kept])
    message = refusal("cifar10", tmp_path)
    assert f"in {tmp_path} should be of one size and hold records of 3073 bytes" in message
    assert f"but have 6146, 6146, {kept}, 6146, 6146 bytes" in message


def test_a_file_cut_off_between_records_is_refused(tmp_path):
    write_binary(tmp_path, "cifar10")
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:3073])
    message = refusal("cifar10", tmp_path)
    assert "but have 6146, 6146, 3073, 6146, 6146 bytes" in message


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
