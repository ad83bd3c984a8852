"""Dataset: checks on construction, statistics, fingerprint, normalisation."""

import dataclasses

import numpy as np
import pytest
import torch

from trajmatch.data import ChannelNormalisation, Dataset, channel_statistics
from trajmatch.errors import UserError


def arrays(channels=3, per_class=4):
    """Keyword arguments of Dataset for two classes of 4 x 4 pixels, always the same."""
    count = 2 * per_class
    pixels = torch.arange((count + 2) * channels * 16).mul(37).remainder(256).to(torch.uint8)
    images = pixels.view(count + 2, channels, 4, 4)
    return {
        "name": "tiny",
        "train_images": images[:count],
        "train_labels": torch.arange(count) % 2,
        "test_images": images[count:],
        "test_labels": torch.tensor([0, 1]),
        "class_names": ("cat", "dog"),
    }


def changed(**values):
    return Dataset(**{**arrays(), **values})


# Properties and statistics


def test_properties():
    dataset = Dataset(**arrays())
    assert (dataset.num_classes, dataset.channels, dataset.image_size) == (2, 3, 4)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.train_labels.dtype == torch.int64


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_numpy(channels):
    dataset = Dataset(**arrays(channels))
    pixels = dataset.train_images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 2, 3)), rtol=1e-14)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 2, 3)), rtol=1e-13)


def test_statistics_of_extreme_pixels_are_exact():
    images = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
    images[0] = 255
    assert channel_statistics(images) == ((0.5,), (0.5,))


def test_a_channel_of_one_value_is_refused():
    images = arrays()["train_images"].clone()
    images[:, 1] = 7
    with pytest.raises(UserError, match="channel 1 of the training images has one value"):
        changed(train_images=images)


def test_normalised_training_images_have_mean_0_and_deviation_1():
    dataset = Dataset(**arrays())
    normalised = dataset.normalise(dataset.train_images)
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        normalised.std((0, 2, 3), correction=0), torch.ones(3), rtol=0, atol=1e-6
    )


def test_normalise_by_hand():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    result = ChannelNormalisation((0.5, 0.2, 0), (0.5, 0.1, 2)).apply(pixels)
    torch.testing.assert_close(result.flatten(), torch.tensor([-1.0, 0.0, 0.5]))


def test_the_inverse_undoes_it():
    dataset = Dataset(**arrays())
    images = dataset.train_images
    restored = dataset.preprocessing.invert(dataset.normalise(images))
    assert torch.equal((restored * 255).round().to(torch.uint8), images)


def test_only_pixels_are_normalised():
    with pytest.raises(TypeError, match=r"uint8, but got torch\.float32"):
        Dataset(**arrays()).normalise(torch.zeros(1, 3, 2, 2))


# Fingerprint


def test_fingerprint_is_the_same_everywhere():
    expected = "41e35ad1b212b7d69ba5102bc75c8b87aede487f632469e6bd4378f26d9aa03a"
    assert Dataset(**arrays()).fingerprint == expected
    assert changed(name="another").fingerprint == expected
    strided = arrays()["train_images"].transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided.is_contiguous()
    assert changed(train_images=strided).fingerprint == expected


def test_fingerprint_changes_with_any_content():
    given = arrays()
    train, test = given["train_images"].clone(), given["test_images"].clone()
    train[3, 2, 1, 0] ^= 1
    test[1, 0, 3, 3] ^= 1
    fingerprints = [
        changed(**change).fingerprint
        for change in (
            {},
            {"train_images": train},
            {"test_images": test},
            {"train_labels": 1 - given["train_labels"]},
            {"test_labels": torch.tensor([1, 1])},
            {"class_names": ("cat", "fox")},
            {"class_names": ("cat", "dog", "fox"), "train_labels": torch.arange(8) % 3},
            {
                "train_images": given["train_images"].view(32, 3, 2, 2),
                "train_labels": given["train_labels"].repeat(4),
                "test_images": given["test_images"].view(8, 3, 2, 2),
                "test_labels": given["test_labels"].repeat(4),
            },
        )
    ]
    assert len(set(fingerprints)) == len(fingerprints)


def test_a_dataset_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Dataset(**arrays()).name = "other"


# Labels and images that cannot be used


def test_integer_labels_of_any_width_are_taken():
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert changed(train_labels=arrays()["train_labels"].to(dtype)).train_labels.tolist() == [
            0, 1, 0, 1, 0, 1, 0, 1,
        ]  # fmt: skip


BAD = {
    "labels above the range": (
        {"train_labels": torch.tensor([0, 1, 0, 1, 2, 1, 0, 1])},
        r"training labels should run from 0 to 1 \(2 classes\), but image 4 has label 2",
    ),
    "negative labels": (
        {"test_labels": torch.tensor([0, -1])},
        "test labels should run from 0 to 1 .* image 1 has label -1",
    ),
    "labels from 1": (
        {"train_labels": torch.arange(8) % 2 + 1},
        "image 1 has label 2; renumber the classes from 0",
    ),
    "labels with a gap": (
        {"class_names": ("cat", "dog", "fox")},
        r"no image has label 2 \(fox\), of 3 classes",
    ),
    "labels as numbers with a point": (
        {"train_labels": torch.zeros(8)},
        "whole numbers .*, but are torch.float32",
    ),
    "labels as truth values": (
        {"train_labels": torch.zeros(8, dtype=torch.bool)},
        "whole numbers .*, but are torch.bool",
    ),
    "labels as vectors": (
        {"train_labels": torch.zeros(8, 2, dtype=torch.int64)},
        r"one class index per image, \[8\], but are torch.int64 of shape \[8, 2\]",
    ),
    "fewer labels than images": (
        {"test_labels": torch.tensor([0])},
        r"test labels should be .*, \[2\], but are torch.int64 of shape \[1\]",
    ),
    "one class": (
        {"class_names": ("cat",), "train_labels": torch.zeros(8, dtype=torch.int64)},
        r"at least 2 classes are needed, but there are 1 \(cat\)",
    ),
    "a class name twice": ({"class_names": ("cat", "cat")}, "class 1 is called 'cat'"),
    "a class without a name": ({"class_names": ("", "cat")}, "class 0 is called ''"),
    "images as numbers from 0 to 1": (
        {"train_images": torch.rand(8, 3, 4, 4)},
        "training images should be uint8, 0 to 255, but are torch.float32; convert",
    ),
    "images without a channel axis": (
        {"train_images": torch.zeros(8, 4, 4, dtype=torch.uint8)},
        r"at least one square image, \[N, C, S, S\], but have shape \[8, 4, 4\]",
    ),
    "no training images": (
        {
            "train_images": torch.zeros(0, 3, 4, 4, dtype=torch.uint8),
            "train_labels": torch.zeros(0, dtype=torch.int64),
        },
        "training images should be at least one square image, .*, but have shape",
    ),
    "no test images": (
        {
            "test_images": torch.zeros(0, 3, 4, 4, dtype=torch.uint8),
            "test_labels": torch.zeros(0, dtype=torch.int64),
        },
        "test images should be at least one square image, .*, but have shape",
    ),
    "images without pixels": (
        {"train_images": torch.zeros(8, 3, 0, 0, dtype=torch.uint8)},
        "training images should be at least one square image, .*, but have shape",
    ),
    "images that are not square": (
        {"train_images": torch.zeros(8, 3, 4, 5, dtype=torch.uint8)},
        r"should be at least one square image, .*, but have shape \[8, 3, 4, 5\]",
    ),
    "test images of another size": (
        {"test_images": torch.zeros(2, 3, 5, 5, dtype=torch.uint8)},
        r"shape \[2, 3, 5, 5\], but the training images have shape \[8, 3, 4, 4\]",
    ),
    "test images with other channels": (
        {"test_images": torch.zeros(2, 1, 4, 4, dtype=torch.uint8)},
        r"shape \[2, 1, 4, 4\], but the training images have shape \[8, 3, 4, 4\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_refused_in_one_message(case):
    values, message = BAD[case]
    with pytest.raises(UserError, match="data set tiny") as refusal:
        changed(**values)
    assert refusal.match(message)


def test_the_plain_constructor_checks_too():
    dataset = Dataset(**arrays())
    with pytest.raises(UserError, match="image 0 has label 9"):
        dataclasses.replace(dataset, train_labels=torch.full((8,), 9))
