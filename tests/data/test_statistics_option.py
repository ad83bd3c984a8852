"""``?statistics=published``: the constants by which the papers' programs normalise."""

import numpy as np
import pytest
from PIL import Image

from trajmatch.data import channel_statistics, load_dataset
from trajmatch.data.known_sets import published_statistics
from trajmatch.errors import UserError
from trajmatch.recipes import find_recipe, recipe_names

CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


@pytest.fixture
def cifar(tmp_path):
    """CIFAR-10's binary version, with one image of each class in each file."""
    draw = np.random.default_rng(0)
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        records = draw.integers(0, 256, (10, 3073), np.uint8)
        records[:, 0] = np.arange(10)
        records.tofile(tmp_path / f"{name}.bin")
    return f"cifar10:{tmp_path}"


def test_the_constants_replace_those_of_the_pixels_and_nothing_else(cifar):
    plain, published = load_dataset(cifar), load_dataset(f"{cifar}?statistics=published")
    assert (plain.mean, plain.std) == channel_statistics(plain.train_images) != CIFAR
    assert (published.mean, published.std) == CIFAR
    assert published.fingerprint == plain.fingerprint
    assert published.name == "cifar10?statistics=published"
    same = load_dataset(f"{cifar}?statistics=pixels")
    assert (same.mean, same.std) == (plain.mean, plain.std)


def test_parts_of_a_set_have_the_same_constants(cifar):
    some = load_dataset(f"{cifar}?classes=0,1,2,3&statistics=published")
    assert (some.mean, some.std) == CIFAR
    rest, _, _ = some.without_holdout(0.4, 0)
    assert (rest.mean, rest.std) == CIFAR


def test_imagenet_has_them_unless_the_pixels_are_asked_for(tmp_path):
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for identifier in ("n01440764", "n02102040"):
            (tmp_path / split / identifier).mkdir(parents=True)
            pixels = draw.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / identifier / "0.png")
    uri = f"imagenet:{tmp_path}?size=8"
    for address in (uri, f"{uri}&statistics=published"):
        dataset = load_dataset(address)
        assert (dataset.mean, dataset.std) == published_statistics("imagenet", 3, "")
    pixels = load_dataset(f"{uri}&statistics=pixels")
    assert (pixels.mean, pixels.std) == channel_statistics(pixels.train_images)


def test_a_set_without_published_constants_refuses_them(tmp_path):
    images, labels = np.arange(64, dtype=np.uint8).reshape(4, 4, 4), np.arange(4) % 2
    for name in ("pets", "cifar10"):  # the other one is grey
        path = tmp_path / f"{name}.npz"
        np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
        with pytest.raises(UserError, match=f"no published statistics of the data set {name} with"):
            load_dataset(f"npz:{path}?statistics=published")
    with pytest.raises(UserError, match="should be one of pixels, published, but is 'mtt'"):
        load_dataset("fashion-mnist-mini?statistics=mtt")


def test_recipes_of_published_results_without_whitening_use_them():
    wrong = [
        name
        for name in recipe_names()
        if not name.startswith("cpu/")
        for recipe in [find_recipe(name)]
        if recipe.data.startswith("cifar")
        and ("statistics=published" in recipe.data)
        == {**recipe.expert, **recipe.distill}.get("zca", False)
    ]
    assert not wrong
