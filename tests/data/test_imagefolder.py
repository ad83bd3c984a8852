"""Data sets from image files in one folder per class."""

import numpy as np
import pytest
import torch
from PIL import Image

from trajmatch.data import decode, load_dataset
from trajmatch.errors import UserError

GREY, COLOUR = (6, 6), (6, 6, 3)


def picture(shape, seed):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def write_all(root, shape=COLOUR, test="test"):
    """Two classes, two training images and one test image each; seeds say which is which."""
    for split, count in (("train", 2), (test, 1)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                seed = 100 * label + number + (50 if split != "train" else 0)
                write(root / split / name / f"{number}.png", picture(shape, seed))
    return root


def load(root):
    return load_dataset(f"imagefolder:{root}")


def refusal(root):
    with pytest.raises(UserError) as caught:
        load(root)
    return str(caught.value)


def test_colour(tmp_path):
    dataset = load(write_all(tmp_path / "pets"))
    assert dataset.name == "pets"
    assert dataset.class_names == ("cat", "dog")
    assert dataset.train_labels.tolist() == [0, 0, 1, 1]
    assert dataset.test_labels.tolist() == [0, 1]
    for images, seeds in (
        (dataset.train_images, (0, 1, 100, 101)),
        (dataset.test_images, (50, 150)),
    ):
        expected = np.stack([picture(COLOUR, seed).transpose(2, 0, 1) for seed in seeds])
        assert np.array_equal(images.numpy(), expected)


def test_grey_and_val(tmp_path):
    dataset = load(write_all(tmp_path, GREY, test="val"))
    assert dataset.train_images.shape == (4, 1, 6, 6)
    assert np.array_equal(dataset.test_images[1, 0].numpy(), picture(GREY, 150))


def test_one_colour_image_makes_the_set_colour(tmp_path):
    write_all(tmp_path, GREY)
    write(tmp_path / "test" / "dog" / "0.png", picture(COLOUR, 0))
    dataset = load(tmp_path)
    assert dataset.train_images.shape == (4, 3, 6, 6)
    for channel in range(3):
        assert np.array_equal(dataset.train_images[0, channel].numpy(), picture(GREY, 0))


def test_hidden_files_are_left_out(tmp_path):
    write_all(tmp_path)
    for place in (".", "train", "train/cat"):
        (tmp_path / place / ".DS_Store").write_bytes(b"\0")
    assert len(load(tmp_path).train_images) == 4


def test_other_formats(tmp_path):
    write_all(tmp_path)
    opaque = np.concatenate([picture(COLOUR, 7), np.full((6, 6, 1), 255, np.uint8)], axis=2)
    write(tmp_path / "train" / "cat" / "2.png", opaque)
    write(tmp_path / "train" / "cat" / "3.bmp", picture(COLOUR, 8))
    write(tmp_path / "train" / "cat" / "4.webp", picture(COLOUR, 9), lossless=True)
    Image.new("P", (6, 6), 1).save(tmp_path / "train" / "cat" / "5.gif")
    images = load(tmp_path).train_images[2:5].numpy()
    for image, seed in zip(images, (7, 8, 9), strict=True):
        assert np.array_equal(image, picture(COLOUR, seed).transpose(2, 0, 1))


def test_forty_images_are_the_same_set_wherever_they_lie(tmp_path):
    first, second = write_all(tmp_path / "a" / "pets"), write_all(tmp_path / "b" / "pets")
    assert load(first).fingerprint == load(second).fingerprint
    (second / "train" / "cat" / "0.png").rename(second / "train" / "cat" / "9.png")
    assert load(first).fingerprint != load(second).fingerprint  # another order


# Without test images


def write_forty(root, shape=COLOUR):
    """Forty images, 26 and 14 of the two classes, in one folder each."""
    for name, count, first in (("cat", 26, 0), ("dog", 14, 100)):
        for number in range(count):
            write(root / name / f"{number:02d}.png", picture(shape, first + number))
    return root


@pytest.mark.parametrize("folder", [".", "train"])
def test_a_quarter_of_each_class_becomes_the_test_set_which_is_said(tmp_path, folder):
    root = tmp_path / "pets"
    write_forty(root / folder)
    with pytest.warns(UserWarning, match="pets has no test images: 10 of its 40 images, the same"):
        dataset = load(root)
    assert dataset.name == "pets"
    assert dataset.test_labels.tolist() == [0] * 6 + [1] * 4
    assert dataset.train_labels.tolist() == [0] * 20 + [1] * 10
    every = torch.cat([dataset.train_images, dataset.test_images])
    assert len(every.unique(dim=0)) == 40  # no image is on both sides
    with pytest.warns(UserWarning, match="has no test images"):
        assert load(root).fingerprint == dataset.fingerprint


def test_another_part_is_not_commented_on(tmp_path):
    dataset = load_dataset(f"imagefolder:{write_forty(tmp_path / 'pets')}?test=0.5")
    assert dataset.name == "pets?test=0.5"
    assert dataset.test_labels.tolist() == [0] * 13 + [1] * 7
    tiny = load_dataset(f"imagefolder:{tmp_path / 'pets'}?test=0.001")
    assert tiny.test_labels.tolist() == [0, 1]  # each class is tested


# Other sizes and some of the classes


def test_photographs_of_any_size_are_resized(tmp_path):
    write_all(tmp_path, (30, 20, 3))
    write(tmp_path / "train" / "cat" / "0.png", picture((9, 17, 3), 0))
    plain = picture((8, 8, 3), 1)
    write(tmp_path / "train" / "cat" / "1.png", plain)
    dataset = load_dataset(f"imagefolder:{tmp_path}?size=8")
    assert dataset.train_images.shape == (4, 3, 8, 8)
    assert np.array_equal(dataset.train_images[1].numpy(), plain.transpose(2, 0, 1))
    assert dataset.name == f"{tmp_path.name}?size=8"


def test_photographs_are_turned_upright_when_they_are_resized(tmp_path):
    write_all(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned clockwise
    pixels = picture(COLOUR, 3)
    write(tmp_path / "train" / "cat" / "0.png", pixels, exif=exif)
    dataset = load_dataset(f"imagefolder:{tmp_path}?size=6")
    expected = np.rot90(pixels, -1).transpose(2, 0, 1)
    assert np.array_equal(dataset.train_images[0].numpy(), expected)
    assert np.array_equal(load(tmp_path).train_images[0].numpy(), pixels.transpose(2, 0, 1))


def test_some_classes_are_read_and_no_other(tmp_path):
    write_all(tmp_path)
    for split in ("train", "test"):
        (tmp_path / split / "ant").mkdir()
        (tmp_path / split / "ant" / "0.png").write_bytes(b"not read")
    dataset = load_dataset(f"imagefolder:{tmp_path}?classes=dog,cat")
    assert dataset.class_names == ("dog", "cat")
    assert dataset.test_labels.tolist() == [1, 0]  # images are in the order of the folders
    assert np.array_equal(dataset.test_images[1].numpy(), picture(COLOUR, 150).transpose(2, 0, 1))


def test_images_beyond_the_memory_are_refused(tmp_path, monkeypatch):
    write_all(tmp_path)
    monkeypatch.setattr(decode, "available_memory", lambda: 10**9)
    with pytest.raises(UserError, match=r"4 images of 20000 x 20000 pixels take 4\.8 GB of memory"):
        load_dataset(f"imagefolder:{tmp_path}?size=20000")


# What cannot be used


def test_a_folder_without_the_layout_is_told_it(tmp_path):
    assert "holds nothing; sort the images" in refusal(tmp_path)
    write(tmp_path / "test" / "cat" / "0.png", picture(COLOUR, 0))
    assert (
        "should hold train/CLASS/IMAGE and test/CLASS/IMAGE (or val), or CLASS/IMAGE, but holds "
        "test; sort the images"
    ) in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "missing")
    write(tmp_path / "flat" / "0.png", picture(COLOUR, 0))
    assert "0.png is a file where a folder of images of one class" in refusal(tmp_path / "flat")


def test_a_test_folder_that_cannot_be_used_is_named(tmp_path):
    write_all(tmp_path)
    with pytest.raises(UserError, match=r"has test images of its own, in test; leave out \?test="):
        load_dataset(f"imagefolder:{tmp_path}?test=0.5")
    (tmp_path / "test").rename(tmp_path / "other")
    assert "but holds other, train" in refusal(tmp_path)
    (tmp_path / "test" / "cat").mkdir(parents=True)
    assert f"{tmp_path / 'test'} holds no images" in refusal(tmp_path)


def test_a_class_of_one_image_cannot_be_split(tmp_path):
    write(tmp_path / "cat" / "0.png", picture(COLOUR, 0))
    write(tmp_path / "dog" / "0.png", picture(COLOUR, 1))
    assert "has no test images, and class 'cat' a single image" in refusal(tmp_path)


def test_a_class_list_that_matches_nothing_is_refused(tmp_path):
    write_all(tmp_path)
    with pytest.raises(UserError, match="has no class 'cats'; the nearest are cat"):
        load_dataset(f"imagefolder:{tmp_path}?classes=cats,dogs")


def test_classes_must_be_the_same_in_both(tmp_path):
    write_all(tmp_path)
    write(tmp_path / "test" / "fox" / "0.png", picture(COLOUR, 0))
    assert "test/fox is no class of the training set (cat, dog)" in refusal(tmp_path)


def test_a_class_without_training_images_is_refused(tmp_path):
    write_all(tmp_path)
    (tmp_path / "train" / "fox").mkdir()
    assert "no image has label 2 (fox), of 3 classes" in refusal(tmp_path)


def test_a_single_class_is_refused(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / split / "cat" / "0.png", picture(COLOUR, 0))
    assert "at least 2 classes are needed, but there are 1 (cat)" in refusal(tmp_path)


def test_an_image_outside_of_a_class_is_refused(tmp_path):
    write_all(tmp_path)
    write(tmp_path / "train" / "0.png", picture(COLOUR, 0))
    assert "0.png is a file where a folder of images of one class was expected" in refusal(tmp_path)


def test_images_of_different_sizes_are_named(tmp_path):
    write_all(tmp_path)
    write(tmp_path / "test" / "dog" / "0.png", picture((8, 8, 3), 0))
    message = refusal(tmp_path)
    assert f"{tmp_path / 'test' / 'dog' / '0.png'} is 8 x 8 pixels" in message
    assert f"{tmp_path / 'train' / 'cat' / '0.png'} is 6 x 6" in message


def test_images_that_are_not_square_are_named(tmp_path):
    write_all(tmp_path)
    write(tmp_path / "train" / "dog" / "1.png", picture((6, 4, 3), 0))
    assert "1.png should be square, but is 4 pixels wide and 6 high" in refusal(tmp_path)


def test_what_is_no_image_is_named(tmp_path):
    write_all(tmp_path)
    path = tmp_path / "train" / "dog" / "notes.txt"
    path.write_text("two dogs")
    assert f"{path} cannot be read as an image" in refusal(tmp_path)
    path.unlink()
    (tmp_path / "train" / "dog" / "more").mkdir()
    assert "dog/more cannot be read as an image" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp"])
def test_an_image_that_is_cut_off_is_named(tmp_path, suffix):
    root = write_all(tmp_path, (64, 64, 3))
    path = root / "train" / "dog" / f"0.{suffix}"
    write(path, picture((64, 64, 3), 0))
    whole = path.read_bytes()
    for kept in (0, 20, len(whole) // 2):
        path.write_bytes(whole[:kept])
        assert f"{path} cannot be read as an image" in refusal(root)


def test_deep_and_transparent_images_are_refused(tmp_path):
    write_all(tmp_path)
    path = tmp_path / "train" / "dog" / "1.png"
    write(path, picture(GREY, 0).astype(np.uint16) * 257)
    assert f"{path} should have 8 bits a channel, but its mode is I;16" in refusal(tmp_path)
    write(path, picture((6, 6, 4), 0))
    assert f"{path} is transparent in places" in refusal(tmp_path)
