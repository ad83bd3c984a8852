"""Data sets from image files in one folder per class."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from trajmatch import memory
from trajmatch._torchvision import torchvision
from trajmatch.data import load_dataset
from trajmatch.data.reading import files_below
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
    with pytest.warns(
        UserWarning, match="pets has no test images: the same 10 of its 40 images are"
    ):
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
    monkeypatch.setattr(memory, "available_memory", lambda: 10**9)
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
    missing = tmp_path / "missing"
    assert f"cannot read {missing}: No such file or directory; check" in refusal(missing)
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
    assert (
        "would hold out 0 of the 1 images of class 'cat'; each class needs at least one image in"
        in refusal(tmp_path)
    )


def test_a_class_list_that_matches_nothing_is_refused(tmp_path):
    write_all(tmp_path)
    with pytest.raises(UserError, match="has no class 'cats'; the nearest are cat"):
        load_dataset(f"imagefolder:{tmp_path}?classes=cats,dogs")


def test_classes_must_be_the_same_in_both(tmp_path):
    write_all(tmp_path)
    write(tmp_path / "test" / "fox" / "0.png", picture(COLOUR, 0))
    assert "test/fox is not a class of the training set (cat, dog)" in refusal(tmp_path)


def test_a_class_without_training_images_is_refused(tmp_path):
    write_all(tmp_path)
    (tmp_path / "train" / "fox").mkdir()
    assert "no image has label 2 (fox), of 3 classes" in refusal(tmp_path)


def test_a_single_class_is_refused(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / split / "cat" / "0.png", picture(COLOUR, 0))
    assert "at least 2 classes are needed, but there are 1 (cat)" in refusal(tmp_path)


def test_the_folder_around_a_set_is_told_from_it(tmp_path):
    write_all(tmp_path / "archive" / "pets")
    assert f"did you mean {tmp_path / 'archive' / 'pets'}?" in refusal(tmp_path / "archive")


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
    assert "1.png is 4 x 6 pixels, which is not square" in refusal(tmp_path)


def test_files_of_other_kinds_are_left_out_with_a_word(tmp_path):
    root = write_all(tmp_path)
    wanted = load_dataset(f"imagefolder:{root}")
    path = root / "train" / "dog" / "notes.txt"
    path.write_text("two dogs")
    with pytest.warns(UserWarning, match=rf"1 of \d+ files are not images .*{path}"):
        found = load_dataset(f"imagefolder:{root}")
    assert found.fingerprint == wanted.fingerprint
    # An image without an ending is one, and a file with an image's ending has to be one.
    shutil.copy(next((root / "train" / "dog").glob("*.png")), root / "train" / "dog" / "picture")
    path.unlink()
    assert len(load_dataset(f"imagefolder:{root}").train_images) == len(wanted.train_images) + 1


def test_a_file_that_cannot_be_read_is_no_damaged_image(tmp_path):
    root = write_all(tmp_path)
    path = root / "train" / "dog" / "link.png"
    path.symlink_to(tmp_path / "gone.png")
    assert f"{path} cannot be read as an image (No such file or directory)" in refusal(root)


def test_a_class_without_test_images_is_named(tmp_path):
    root = write_all(tmp_path)
    names = sorted(each.name for each in (root / "test").iterdir())
    shutil.rmtree(root / "test" / names[0])
    with pytest.warns(UserWarning, match=f"1 of . classes have no test images: {names[0]}$"):
        load_dataset(f"imagefolder:{root}")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp"])
def test_an_image_that_is_cut_off_is_named(tmp_path, suffix):
    root = write_all(tmp_path, (64, 64, 3))
    path = root / "train" / "dog" / f"0.{suffix}"
    write(path, picture((64, 64, 3), 0))
    whole = path.read_bytes()
    for kept in (0, 20, len(whole) // 2):
        path.write_bytes(whole[:kept])
        assert f"{path} cannot be read as an image" in refusal(root)


def test_class_names_in_another_encoding_are_refused_before_an_image_is_read(tmp_path):
    for name in (b"caf\xe9", b"th\xe9"):
        folder = os.fsencode(tmp_path) + b"/" + name
        os.mkdir(folder)
        with open(folder + b"/0.png", "wb") as file:
            file.write(b"not read")
    assert r"the class name 'caf\udce9' is not UTF-8; rename it" in refusal(tmp_path)


# Layouts


@pytest.mark.parametrize(
    "parts", ["train/test", "Train/Test", "TRAIN/VAL", "Training/Testing", "training/validation",
              "train/valid", "Train/Val"]
)  # fmt: skip
def test_parts_under_their_usual_names(tmp_path, parts):
    usual = load(write_all(tmp_path / "usual"))
    train, test = parts.split("/")
    root = write_all(tmp_path / "other", test=test)
    (root / "train").rename(root / train)
    assert load(root).fingerprint == usual.fingerprint
    named = load_dataset(f"imagefolder:{root}?train={train}&test={test}")
    assert named.fingerprint == usual.fingerprint


def test_parts_under_other_names_are_given(tmp_path):
    usual = load(write_all(tmp_path / "usual"))
    root = write_all(tmp_path / "other", test="holdout")
    (root / "train").rename(root / "fit")
    given = load_dataset(f"imagefolder:{root}?train=fit&test=holdout")
    assert given.fingerprint == usual.fingerprint
    with pytest.raises(UserError, match=r"has no part 'fitt', which \?train= names; the nearest"):
        load_dataset(f"imagefolder:{root}?train=fitt&test=holdout")
    with pytest.warns(
        UserWarning, match="all 2 classes hold the folders cat, dog; if those folders are"
    ):
        load_dataset(f"imagefolder:{root}?test=0.5")


def test_a_part_that_is_not_read_is_said(tmp_path):
    write_all(tmp_path)
    write_all(tmp_path, test="val")
    with pytest.warns(UserWarning, match=r"not read: 'val'; \?train=NAME and \?test=NAME"):
        load(tmp_path)
    assert len(load_dataset(f"imagefolder:{tmp_path}?test=val").test_images) == 2


def test_a_class_may_be_called_like_a_part(tmp_path):
    write_forty(tmp_path)
    (tmp_path / "cat").rename(tmp_path / "train")  # of a railway
    assert load_dataset(f"imagefolder:{tmp_path}?test=0.25").class_names == ("dog", "train")


def test_images_of_a_class_are_found_in_all_its_folders_as_torchvision_finds_them(tmp_path):
    for place in ("", "images", "a b", "a/x", "a"):
        for number in (2, 10):
            write(tmp_path / "cat" / place / f"{number}.png", picture(COLOUR, number))
    write(tmp_path / "dog" / "images" / "0.png", picture(COLOUR, 0))
    expected = torchvision.datasets.folder.make_dataset(tmp_path, {"cat": 0}, extensions=(".png",))
    assert list(map(str, files_below(tmp_path / "cat"))) == [path for path, _ in expected]
    write(tmp_path / "dog" / "1.png", picture(COLOUR, 1))
    assert load_dataset(f"imagefolder:{tmp_path}?test=0.1").test_labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "junk", ["Thumbs.db", "desktop.ini", ".DS_Store", "._0.png", "__MACOSX/._0.png",
             "@eaDir/0.png", ".ipynb_checkpoints/0.png"]
)  # fmt: skip
def test_what_systems_put_into_folders_is_left_out(tmp_path, junk):
    clean = load(write_all(tmp_path)).fingerprint
    for place in (".", "train", "train/cat"):
        path = tmp_path / place / junk
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\xd0\xcf")
    assert load(tmp_path).fingerprint == clean


def test_accents_of_class_names_are_compared_in_one_form(tmp_path):
    root = write_all(tmp_path)
    (root / "train" / "dog").rename(root / "train" / "caf\u00e9")
    (root / "test" / "dog").rename(root / "test" / "cafe\u0301")
    assert load(root).class_names == ("caf\u00e9", "cat")
    assert load_dataset(f"imagefolder:{root}?classes=cafe\u0301,cat").num_classes == 2
    (root / "train" / "cafe\u0301").mkdir()
    assert "class names must be unique" in refusal(root)


# EXIF, transparency and depth of image files


@pytest.fixture
def special(tmp_path):
    """One photograph that is not upright, one transparent image and one of 16 bits."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned clockwise
    root = write_all(tmp_path)
    write(root / "train" / "cat" / "0.png", picture(COLOUR, 3), exif=exif)
    write(root / "train" / "cat" / "1.png", picture((6, 6, 4), 4))
    write(root / "train" / "dog" / "0.png", DEEP)
    return root


DEEP = np.linspace(0, 65535, 36).astype(np.uint16).reshape(6, 6)


@pytest.mark.parametrize("size", ["", "&size=6"])
def test_by_default_images_are_as_torchvision_loads_them(special, size):
    loader = torchvision.datasets.folder.pil_loader
    with pytest.warns(UserWarning) as warned:
        dataset = load_dataset(f"imagefolder:{special}?classes=cat,dog{size}")
    files = files_below(special / "train")
    expected = np.stack([np.asarray(loader(path)).transpose(2, 0, 1) for path in files])
    assert np.array_equal(dataset.train_images.numpy(), expected)
    messages = " ".join(str(each.message) for each in warned)
    for kind in ("1 of 6 images have an EXIF", "have transparent pixels", "have values above 255"):
        assert kind in messages


@pytest.mark.parametrize("size", ["", "&size=6"])
def test_options_follow_what_the_files_say(special, size):
    dataset = load_dataset(f"imagefolder:{special}?exif=turn&alpha=white&bits=scale{size}")
    turned, transparent, deep, _ = dataset.train_images.numpy()
    assert np.array_equal(turned, np.rot90(picture(COLOUR, 3), -1).transpose(2, 0, 1))
    pixels = picture((6, 6, 4), 4).astype(float)
    alpha = pixels[..., 3:] / 255
    mixed = alpha * pixels[..., :3] + (1 - alpha) * 255
    assert np.abs(transparent.transpose(1, 2, 0) - mixed).max() <= 1
    assert np.array_equal(deep[0], DEEP >> 8)


def test_images_beyond_the_limit_of_pillow(tmp_path, monkeypatch):
    whole = load(write_all(tmp_path)).fingerprint
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # 36 pixels would give a warning
    assert load(tmp_path).fingerprint == whole
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert "Image size (36 pixels) exceeds limit" in (told := refusal(tmp_path))
    assert "add ?large=allow" in told
    allowed = load_dataset(f"imagefolder:{tmp_path}?large=allow")
    assert allowed.fingerprint == whole and Image.MAX_IMAGE_PIXELS == 10
