"""ImageNet's subsets and Tiny ImageNet from their folders."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from trajmatch.data import load_dataset, resolve_uri
from trajmatch.data.known_sets import KNOWN_SETS, published_statistics
from trajmatch.data.readers import wordnet
from trajmatch.errors import UserError

SUBSETS = KNOWN_SETS["imagenet"].subsets
IMAGENET = published_statistics("imagenet", 3, "")
TINY = {"n01443537": "goldfish, Carassius auratus", "n02123394": "Persian cat", "n02124075": "lynx"}


def photograph(path, shape, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(path, "JPEG", quality=95)
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)


def write_tiny(root, size=64):
    """Two training images and one validation image of each class; returns the decoded pixels."""
    root.mkdir(parents=True)
    # not in alphabetical order, as in the official file
    (root / "wnids.txt").write_text("\n".join(reversed(TINY)) + "\n")
    words = [f"{identifier}\t{names}" for identifier, names in TINY.items()]
    (root / "words.txt").write_text("\n".join(["n00001740\tentity", *words]) + "\n")
    train, lines, val = [], [], []
    for index, identifier in enumerate(TINY):
        folder = root / "train" / identifier / "images"
        # one grey image, as the official set has
        shapes = [(size, size, 3), (size, size)]
        for number, shape in enumerate(shapes):
            path = folder / f"{identifier}_{number}.JPEG"
            train.append(photograph(path, shape, 10 * index + number))
        (root / "train" / identifier / f"{identifier}_boxes.txt").write_text("")
        name = f"val_{index}.JPEG"
        val.append(photograph(root / "val" / "images" / name, shapes[0], 50 + index))
        lines.append(f"{name}\t{identifier}\t0\t32\t44\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return train, val


@pytest.mark.parametrize("parent", [True, False])
def test_tiny_imagenet(tmp_path, parent):
    train, val = write_tiny(tmp_path / "tiny-imagenet-200")
    dataset = load_dataset(
        f"tiny-imagenet:{tmp_path if parent else tmp_path / 'tiny-imagenet-200'}"
    )
    assert dataset.name == "tiny-imagenet"
    assert dataset.class_names == ("goldfish", "Persian cat", "lynx")
    assert dataset.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.test_labels.tolist() == [0, 1, 2]
    assert np.array_equal(dataset.train_images.numpy(), np.stack(train))
    assert np.array_equal(dataset.test_images.numpy(), np.stack(val))
    assert (dataset.mean, dataset.std) == IMAGENET
    rest, _, _ = dataset.without_holdout(0.5, 0)
    assert (rest.mean, rest.std) == IMAGENET


def test_tiny_imagenet_has_classes_by_name_and_by_identifier(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    write_tiny(root)
    (root / "train" / "n01443537" / "images" / "n01443537_0.JPEG").write_bytes(b"never opened")
    dataset = load_dataset(f"tiny-imagenet:{tmp_path}?classes=n02124075,Persian cat&size=32")
    assert dataset.class_names == ("lynx", "Persian cat")
    assert dataset.train_labels.tolist() == [0, 0, 1, 1]
    assert dataset.train_images.shape == (4, 3, 32, 32)
    assert (dataset.mean, dataset.std) == IMAGENET


def test_names_that_two_classes_share_get_their_identifier(tmp_path):
    write_tiny(tmp_path / "tiny-imagenet-200")
    words = tmp_path / "tiny-imagenet-200" / "words.txt"
    words.write_text("n02123394\tcat, tabby\nn02124075\tcat\n")
    names = load_dataset(f"tiny-imagenet:{tmp_path}").class_names
    assert names == ("n01443537", "cat (n02123394)", "cat (n02124075)")


def refusal(uri):
    with pytest.raises(UserError) as caught:
        load_dataset(uri)
    return str(caught.value)


def test_a_tiny_imagenet_that_is_not_whole_is_refused(tmp_path):
    uri = f"tiny-imagenet:{tmp_path}"
    assert "holds no wnids.txt, neither directly nor in tiny-imagenet-200" in refusal(uri)
    root = tmp_path / "tiny-imagenet-200"
    write_tiny(root)
    annotations = root / "val" / "val_annotations.txt"
    lines = annotations.read_text()
    annotations.write_text(lines + "val_9.JPEG\tn99999999\t0\n")
    assert "val_annotations.txt is damaged: 'val_9.JPEG" in refusal(uri)
    annotations.write_text(lines + "val_9.JPEG\tn02123394\t0\n")
    assert re.search("val_9.JPEG cannot be read .*No such file or directory", refusal(uri))
    annotations.unlink()
    assert f"cannot read {annotations}: No such file" in refusal(uri)
    (root / "train" / "n02123394").rename(root / "train" / "n02123395")
    assert f"cannot read {root / 'train' / 'n02123394' / 'images'}: No such" in refusal(uri)
    (root / "words.txt").unlink()
    assert f"cannot read {root / 'words.txt'}: No such file" in refusal(uri)


def write_imagenet(root, identifiers, shape=(40, 50, 3)):
    for split in ("train", "val"):
        for number, identifier in enumerate(identifiers):
            for image in range(2):
                path = root / split / identifier / f"{identifier}_{image}.JPEG"
                photograph(path, shape, 4 * number + 2 * (split == "val") + image)


def test_a_subset_of_imagenet_has_the_order_of_mtt(tmp_path):
    write_imagenet(tmp_path, [*SUBSETS["squawk"], "n99999999"])
    dataset = load_dataset(f"imagenet:{tmp_path}?subset=squawk&size=16")
    assert dataset.name == "imagenet?subset=squawk&size=16"
    assert dataset.class_names[:3] == ("peacock", "flamingo", "macaw")
    assert dataset.train_images.shape == (20, 3, 16, 16)
    assert dataset.test_labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert (dataset.mean, dataset.std) == IMAGENET
    some = load_dataset(f"imagenet:{tmp_path}?subset=squawk&size=16&classes=toucan,0")
    assert some.class_names == ("toucan", "peacock")


def test_own_classes_of_imagenet_and_the_published_size(tmp_path):
    write_imagenet(tmp_path / "imagenet", ["n01443537", "n02123394", "n02124075"])
    dataset = load_dataset(f"imagenet:{tmp_path}?classes=n02124075,n01443537")
    assert dataset.class_names == ("n02124075", "n01443537")
    assert dataset.image_size == 128
    assert load_dataset(f"imagenet:{tmp_path}?size=8").num_classes == 3


def test_resizing_is_that_of_torchvision(tmp_path):
    from trajmatch._torchvision import torchvision

    write_imagenet(tmp_path, ["n01443537"], (50, 81, 3))
    write_imagenet(tmp_path, ["n02123394"], (45, 20, 3))
    dataset = load_dataset(f"imagenet:{tmp_path}?size=24")
    transform = torchvision.transforms.Compose(
        [torchvision.transforms.Resize(24), torchvision.transforms.CenterCrop(24)]
    )
    for index, identifier in ((0, "n01443537"), (2, "n02123394")):
        with Image.open(tmp_path / "train" / identifier / f"{identifier}_0.JPEG") as image:
            expected = torch.from_numpy(np.asarray(transform(image)).transpose(2, 0, 1).copy())
        assert torch.equal(dataset.train_images[index], expected)


@pytest.mark.parametrize("name", SUBSETS)
def test_every_subset_has_ten_classes(name):
    assert len(SUBSETS[name]) == 10 == len(set(SUBSETS[name].values()))
    assert all(wordnet._WORDNET_ID.fullmatch(identifier) for identifier in SUBSETS[name])


def test_what_imagenet_lacks_is_named(tmp_path):
    uri = f"imagenet:{tmp_path}"
    assert "should hold train/WNID/IMAGE and val/WNID/IMAGE" in refusal(uri)
    write_imagenet(tmp_path, list(SUBSETS["meow"])[:9])
    lacking = tmp_path / "train" / "n02127052"  # lynx
    assert f"cannot read {lacking}: No such file" in refusal(uri + "?subset=meow")
    assert "but is 'imagemeow' (did you mean meow?)" in refusal(uri + "?subset=imagemeow")
    assert "has no class 'n02123046'; the nearest are" in refusal(uri + "?classes=n02123046,0")
    message = refusal(uri + "?subset=meow&classes=tabby,siamese")
    assert "has no class 'siamese'; the nearest are Siamese cat" in message


def test_both_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAJMATCH_DATA", str(tmp_path))
    assert resolve_uri("imagenet?subset=meow") is None
    (tmp_path / "imagenet" / "train" / "n02127052").mkdir(parents=True)
    assert resolve_uri("imagenet?subset=meow") == f"imagenet:{tmp_path}?subset=meow"
    write_tiny(tmp_path / "tiny-imagenet-200")
    assert resolve_uri("tiny-imagenet") == f"tiny-imagenet:{tmp_path}"
