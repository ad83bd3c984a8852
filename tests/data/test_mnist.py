"""MNIST and Fashion-MNIST from IDX files in the official layout."""

import gzip

import pytest
import torch

from trajmatch.data import load_dataset
from trajmatch.errors import UserError

FILES = {
    "train-images-idx3-ubyte": (20, 4, 4),
    "train-labels-idx1-ubyte": (20,),
    "t10k-images-idx3-ubyte": (10, 4, 4),
    "t10k-labels-idx1-ubyte": (10,),
}


def content(name):
    """Bytes of a small file, by the description of the format: header, then one byte a pixel."""
    shape = FILES[name]
    header = (0x800 + len(shape)).to_bytes(4, "big")
    header += b"".join(length.to_bytes(4, "big") for length in shape)
    if len(shape) == 1:
        return header + bytes(index % 10 for index in range(shape[0]))
    return header + bytes(index * 7 % 256 for index in range(shape[0] * shape[1] * shape[2]))


def write_all(folder, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        path = folder / (name + ".gz" * packed)
        path.write_bytes(gzip.compress(content(name)) if packed else content(name))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", ["MNIST/raw", "MNIST", "raw", "."])
def test_files_are_found_in_every_usual_place(tmp_path, place, packed):
    write_all(tmp_path / place, packed)
    dataset = load_dataset(f"mnist:{tmp_path}")
    assert dataset.name == "mnist"
    assert dataset.class_names == tuple("0123456789")
    assert dataset.train_images.shape == (20, 1, 4, 4)
    assert dataset.test_images.shape == (10, 1, 4, 4)
    assert dataset.train_labels.tolist() == [*range(10), *range(10)]
    pixels = torch.arange(20 * 16).mul(7).remainder(256)
    assert torch.equal(dataset.train_images.flatten().long(), pixels)


def test_fashion_mnist_has_its_own_folder_and_names(tmp_path):
    write_all(tmp_path / "FashionMNIST" / "raw")
    dataset = load_dataset(f"fashion-mnist:{tmp_path}")
    assert dataset.name == "fashion-mnist"
    assert dataset.class_names[0] == "T-shirt/top" and dataset.class_names[9] == "Ankle boot"
    with pytest.raises(UserError, match=r"neither directly nor in MNIST/raw"):
        load_dataset(f"mnist:{tmp_path}")


def refusal(tmp_path):
    with pytest.raises(UserError) as caught:
        load_dataset(f"mnist:{tmp_path}")
    return str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    assert f"{tmp_path / 'x'} does not exist; give the folder" in refusal(tmp_path / "x")
    (tmp_path / "file").touch()
    assert "is not a folder; give the folder" in refusal(tmp_path / "file")


def test_an_empty_folder_gets_the_layout(tmp_path):
    assert "holds no train-images-idx3-ubyte[.gz]" in refusal(tmp_path)


@pytest.mark.parametrize("name", list(FILES)[1:])
def test_a_missing_file_is_named(tmp_path, name):
    write_all(tmp_path)
    (tmp_path / name).unlink()
    assert f"lacks {name}[.gz]; put all four" in refusal(tmp_path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0, 3, 7, -1])
def test_a_file_that_is_cut_off_is_named(tmp_path, name, kept):
    write_all(tmp_path)
    (tmp_path / name).write_bytes(content(name)[:kept])
    message = refusal(tmp_path)
    assert str(tmp_path / name) in message and "download it again" in message


def test_a_file_that_is_too_long_is_refused(tmp_path):
    write_all(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes() + b"\0")
    assert "promises 20 bytes of shape [20], but more than 20 follow" in refusal(tmp_path)


def test_files_that_are_exchanged_are_refused(tmp_path):
    write_all(tmp_path)
    images = tmp_path / "train-images-idx3-ubyte"
    images.write_bytes(content("train-labels-idx1-ubyte"))
    assert "begins with 00000801 instead of 00000803" in refusal(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"not gzip", lambda d: b""]
)
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    write_all(tmp_path, packed=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    message = refusal(tmp_path)
    assert str(path) in message and "download it again" in message


def test_wrong_labels_are_refused(tmp_path):
    write_all(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + bytes([10]))
    assert "training labels should run from 0 to 9" in refusal(tmp_path)
