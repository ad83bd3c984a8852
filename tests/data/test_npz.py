"""Data sets from the arrays of an .npz file."""

import zipfile

import numpy as np
import pytest
import torch

from trajmatch.data import load_dataset
from trajmatch.errors import UserError


def pixels(*shape):
    return (np.arange(np.prod(shape)) * 37 % 251).astype(np.uint8).reshape(shape)


def arrays(**changes):
    given = {
        "x_train": pixels(6, 4, 4, 3),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": pixels(3, 4, 4, 3)[::-1],
        "y_test": np.array([2, 1, 0]),
    }
    return {**given, **changes}


def load(tmp_path, **content):
    np.savez(tmp_path / "pets.npz", **content)
    return load_dataset(f"npz:{tmp_path / 'pets.npz'}")


def refusal(tmp_path, **content):
    with pytest.raises(UserError) as caught:
        load(tmp_path, **content)
    return str(caught.value)


def test_channels_last(tmp_path):
    dataset = load(tmp_path, **arrays())
    assert dataset.name == "pets"
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.train_labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.test_labels.tolist() == [2, 1, 0]
    expected = arrays()["x_train"].transpose(0, 3, 1, 2)
    assert np.array_equal(dataset.train_images.numpy(), expected)
    assert np.array_equal(dataset.test_images.numpy(), arrays()["x_test"].transpose(0, 3, 1, 2))
    assert dataset.train_images.is_contiguous()


def test_channels_first_and_the_other_names(tmp_path):
    content = dict(
        zip(
            ("train_images", "train_labels", "test_images", "test_labels"),
            arrays(x_train=pixels(6, 3, 4, 4), x_test=pixels(3, 3, 4, 4)).values(),
            strict=True,
        )
    )
    dataset = load(tmp_path, **content, val_images=np.zeros(3), unrelated=np.array([object()]))
    assert np.array_equal(dataset.train_images.numpy(), pixels(6, 3, 4, 4))


def test_the_layout_of_medmnist(tmp_path):
    """PathMNIST: colour, channels last, labels in a column of uint8, a validation split."""
    draw = np.random.default_rng(0)
    content = {}
    for split, count in (("train", 18), ("val", 9), ("test", 9)):
        content[f"{split}_images"] = draw.integers(0, 256, (count, 28, 28, 3), np.uint8)
        content[f"{split}_labels"] = (np.arange(count) % 9).astype(np.uint8)[:, None]
    with pytest.warns(UserWarning, match="not read: 'val'; .train=NAME"):
        dataset = load(tmp_path, **content)
    assert dataset.num_classes == 9
    assert dataset.train_labels.tolist() == [*range(9)] * 2
    assert dataset.test_labels.shape == (9,) and dataset.test_labels.dtype == torch.int64
    expected = content["test_images"].transpose(0, 3, 1, 2)
    assert np.array_equal(dataset.test_images.numpy(), expected)
    del content["val_images"]
    several = np.ones((18, 14), np.uint8)  # ChestMNIST: any number of the classes for each image
    assert (
        "should hold whole numbers, [N], one class index per image, but has shape [18, 14]"
        in refusal(tmp_path, **{**content, "train_labels": several})
    )


def test_parts_are_chosen_by_name(tmp_path):
    draw = np.random.default_rng(0)
    content = {}
    for images, labels, count in (("val_images", "val_labels", 6), ("x_fit", "y_fit", 9),
                                  ("X_Test", "y_Test", 3)):  # fmt: skip
        content[images] = draw.integers(0, 256, (count, 4, 4, 3), np.uint8)
        content[labels] = np.arange(count) % 3
    uri = f"npz:{tmp_path / 'pets.npz'}"
    np.savez(tmp_path / "pets.npz", **content)
    chosen = load_dataset(f"{uri}?train=fit&test=val")
    assert chosen.name == "pets?train=fit&test=val"
    assert np.array_equal(chosen.train_images.numpy(), content["x_fit"].transpose(0, 3, 1, 2))
    assert np.array_equal(chosen.test_images.numpy(), content["val_images"].transpose(0, 3, 1, 2))
    assert len(load_dataset(f"{uri}?train=val").test_images) == 3
    with pytest.raises(UserError, match=r"has no part 'bal', which \?test= names; the nearest"):
        load_dataset(f"{uri}?train=fit&test=bal")
    np.savez(tmp_path / "pets.npz", x_fit=content["x_fit"], y_fit=content["y_fit"])
    alone = load_dataset(f"{uri}?train=fit&test=0.34")
    assert alone.test_labels.tolist() == [0, 1, 2] and len(alone.train_labels) == 6


def test_one_channel_without_an_axis_and_labels_in_a_column(tmp_path):
    dataset = load(
        tmp_path,
        x_train=pixels(6, 5, 5),
        y_train=np.array([[0], [1], [0], [1], [0], [1]], np.uint8),
        x_test=pixels(2, 5, 5),
        y_test=np.array([[0], [1]], np.uint8),
    )
    assert dataset.train_images.shape == (6, 1, 5, 5)
    assert dataset.train_labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_the_order_of_memory_and_of_bytes_does_not_matter(tmp_path):
    plain = load(tmp_path, **arrays())
    other = arrays()
    other["x_train"] = np.asfortranarray(other["x_train"])
    other["y_train"] = other["y_train"].astype(">i4")
    assert load(tmp_path, **other).fingerprint == plain.fingerprint


def test_class_names(tmp_path):
    assert load(tmp_path, **arrays(), class_names=["cat", "dog", "fox"]).class_names == (
        "cat",
        "dog",
        "fox",
    )
    message = refusal(tmp_path, **arrays(), class_names=["cat", "dog"])
    assert "training labels should run from 0 to 1" in message
    message = refusal(tmp_path, **arrays(), class_names=[1, 2, 3])
    assert "class_names should be a list, each a text, but is [1, 2, 3]" in message


BAD = {
    "an array is missing": (
        {"x_train": pixels(6, 4, 4), "y_train": np.zeros(6, int)},
        "but holds x_train, y_train; save them under those names",
    ),
    "images from 0 to 1": (
        arrays(x_train=pixels(6, 4, 4, 3) / 255),
        "x_train should be uint8, 0 to 255, but is float64; convert it",
    ),
    "images as rows": (
        arrays(x_train=pixels(6, 48)),
        "x_train should hold square images, [N, S, S], [N, S, S, C] or [N, C, S, S]",
    ),
    "images that are not square": (
        arrays(x_test=pixels(3, 4, 5, 3)),
        "x_test should hold square images",
    ),
    "channels as many as pixels": (
        arrays(x_train=pixels(6, 4, 4, 4)),
        "with C other than S, but has shape [6, 4, 4, 4]",
    ),
    "other test images": (
        arrays(x_test=pixels(3, 5, 5, 3)),
        "the same size and number of channels",
    ),
    "labels with a point": (
        arrays(y_train=np.zeros(6)),
        "y_train should hold whole numbers, [N], one class index per image, but has shape [6] and",
    ),
    "labels as vectors": (
        arrays(y_train=np.eye(6, 3, dtype=int)),
        "one class index per image, but has shape [6, 3] and dtype int64; .argmax",
    ),
    "labels with a gap": (
        arrays(y_train=np.array([0, 1, 3, 0, 1, 3])),
        "should run from 0 to 2 (3 classes), but image 2 has label 3",
    ),
    "labels below 0": (
        arrays(y_train=np.array([0, 1, 2, 0, 1, -1])),
        "image 5 has label -1",
    ),
    "labels that are dates": (
        arrays(y_train=np.array([0, 1, 2, 0, 1, 20_240_115])),
        "should run from 0 to 3 (4 classes), but image 5 has label 20240115",
    ),
    "labels too large for any machine": (
        arrays(y_test=np.array([0, 1, 2**64 - 1], np.uint64)),
        "test labels should run from 0 to 2",
    ),
    "no images": (
        arrays(x_train=pixels(0, 4, 4, 3), y_train=np.zeros(0, int)),
        "x_train holds no images",
    ),
    "images of NaN": (
        arrays(x_train=np.full((6, 4, 4, 3), np.nan, np.float16)),
        "x_train should be uint8, 0 to 255, but is float16",
    ),
    "images of records": (
        arrays(x_train=np.zeros((6, 4, 4), [("r", "u1"), ("g", "u1")])),
        "x_train should be uint8, 0 to 255, but is [('r', 'u1'), ('g', 'u1')]",
    ),
    "class names that are no text": (
        arrays(class_names=np.array(["cat", "dog", "caf\udce9"])),
        r"the class name 'caf\udce9' is not UTF-8; rename it",
    ),
    "objects": (
        arrays(y_train=np.array([0, 1, 2, 0, 1, None])),
        "save plain arrays of numbers, not Python objects, with numpy.savez",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_arrays_that_cannot_be_used_are_refused(tmp_path, case):
    content, message = BAD[case]
    assert message in refusal(tmp_path, **content)


def test_files_that_are_not_npz_are_refused(tmp_path):
    path = tmp_path / "pets.npz"
    for content in (b"", b"PK\x03\x04 nothing", b"\x89PNG\r\n", b"\x80\x04N."):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"pets\.npz is damaged or not an \.npz file"):
            load_dataset(f"npz:{path}")
    np.save(tmp_path / "single.npy", pixels(4, 4))
    with pytest.raises(UserError, match="holds a single array; save several"):
        load_dataset(f"npz:{tmp_path / 'single.npy'}")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_cut_off_or_damaged_is_refused(tmp_path, compressed):
    path = tmp_path / "pets.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(UserError, match="is damaged or not an"):
        load_dataset(f"npz:{path}")
    middle = len(whole) // 8
    path.write_bytes(
        whole[:middle]
        + bytes(byte ^ 255 for byte in whole[middle : middle + 9])
        + whole[middle + 9 :]
    )
    with pytest.raises(UserError, match="is damaged or not an"):
        load_dataset(f"npz:{path}")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.npz: No such file"):
        load_dataset(f"npz:{tmp_path / 'nowhere.npz'}")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        load_dataset(f"npz:{tmp_path}")


def test_a_header_that_claims_more_than_there_is_allocates_nothing(tmp_path):
    claim = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 8, 8), }"
    header = b"\x93NUMPY\x01\x00" + len(claim).to_bytes(2, "little") + claim.encode()
    for ending, content, message in (
        (".npy", header + bytes(64), "is damaged or not an"),
        ("", b"text", r"x_train should be uint8, 0 to 255, but is \|S4"),
    ):
        path = tmp_path / "claims.npz"
        with zipfile.ZipFile(path, "w") as archive:
            for name in arrays():
                archive.writestr(name + ending, content)
        with pytest.raises(UserError, match=message):
            load_dataset(f"npz:{path}")
