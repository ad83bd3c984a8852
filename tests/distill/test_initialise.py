from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trajmatch.data import load_dataset
from trajmatch.distill import distill, initialise
from trajmatch.errors import UserError
from trajmatch.random import generator


def test_real_images_are_distinct_images_of_their_class(data: str) -> None:
    dataset = load_dataset(data)
    first = initialise.from_real(dataset, 3, generator(0))
    assert first.images.dtype == torch.float32
    assert first.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    normalised = dataset.normalise(dataset.train_images)
    matches = (first.images[:, None] == normalised[None]).flatten(2).all(dim=2)
    assert (matches.sum(dim=1) == 1).all()
    assert matches.any(dim=0).sum() == 9
    for image, label in zip(matches, first.labels, strict=True):
        assert dataset.train_labels[image].item() == label


def test_real_images_depend_on_the_stream(data: str) -> None:
    dataset = load_dataset(data)
    one, same, other = (initialise.from_real(dataset, 2, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.images, other.images)


def test_more_real_images_than_there_are(data: str) -> None:
    with pytest.raises(UserError, match=r"--ipc 13 .* class 'circle/o' of shapes has \(12\)"):
        initialise.from_real(load_dataset(data), 13, generator(0))


def test_noise_is_standard_normal(data: str) -> None:
    first = initialise.from_noise(load_dataset(data), 50, generator(0))
    assert first.images.shape == (150, 1, 8, 8)
    assert first.labels.tolist() == [0] * 50 + [1] * 50 + [2] * 50
    assert first.images.mean().abs() < 0.05
    assert (first.images.std() - 1).abs() < 0.05


def test_images_and_labels_of_an_earlier_result(configure, data: str) -> None:
    source = distill(configure(iterations=1))
    dataset = load_dataset(data)
    first = initialise.from_artifact(source, Path("old"), dataset, 2)
    assert torch.equal(first.images, source.images)
    assert torch.equal(first.labels, source.labels)


def test_an_earlier_result_is_brought_into_the_normalisation(configure, data: str) -> None:
    dataset = load_dataset(data)
    source = distill(configure(iterations=1))
    other = replace(source, mean=(0.1,), std=(0.4,))
    first = initialise.from_artifact(other, Path("old"), dataset, 2)
    pixels = first.images * dataset.std[0] + dataset.mean[0]
    torch.testing.assert_close(pixels, source.images * 0.4 + 0.1)


def test_an_earlier_result_of_another_kind(configure, data: str) -> None:
    source = distill(configure(iterations=1))
    with pytest.raises(UserError, match=r"--init-from old .* images in all 6, .* needs 3"):
        initialise.from_artifact(source, Path("old"), load_dataset(data), 1)
    renamed = replace(source, class_names=("a", "b", "c"))
    with pytest.raises(UserError, match=r"classes \('a', 'b', 'c'\)"):
        initialise.from_artifact(renamed, Path("old"), load_dataset(data), 2)
