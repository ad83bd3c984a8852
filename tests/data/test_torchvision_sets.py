"""Data sets of torchvision: official files as tiny ones, downloads from a local server."""

import concurrent.futures
import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import tarfile
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from trajmatch._torchvision import torchvision
from trajmatch.data import load_dataset
from trajmatch.data.known_sets import KNOWN_SETS
from trajmatch.errors import UserError

SETS = torchvision.datasets
NAMES = ["cifar10", "cifar100", "svhn", "mnist", "fashion-mnist"]
PLACES = {
    "cifar10": ["cifar-10-batches-py", "."],
    "cifar100": ["cifar-100-python", "."],
    "svhn": ["svhn", "SVHN", "."],
    "mnist": ["MNIST/raw", "MNIST", "raw", "."],
    "fashion-mnist": ["FashionMNIST/raw", "FashionMNIST", "raw", "."],
}
# Of the tiny sets, as version 0.1 read them: stores and distilled files have such numbers.
FINGERPRINTS = {
    "cifar10": "ff4e8f16b56f3f878195be8460114d26de24e1156040090bed017936ccd8b4e3",
    "cifar100": "06bce518ac490364b16116698d679a04163cbab826624522c1ba0276997e6c37",
    "svhn": "ed7b2691ea240e60ae74454e91275c2f0c1c0fcfbf9e1ea6f96de6021ffe9b93",
    "mnist": "8fbc29efe2b981636f52767d284112bb54a54cfb678b9dafb7834687fba105a6",
    "fashion-mnist": "955818cf566565b61e9f4099febe979fbe09d4dc6da3397612d71749ab83b13c",
}


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def content(name):
    """Images [N, C, S, S] and labels [N] of the training and the test part."""
    classes = len(KNOWN_SETS[name].classes)
    shape = (1, 28, 28) if "mnist" in name else (3, 32, 32)
    labels = np.arange(classes)
    return (pixels(classes, *shape, seed=1), labels[::-1].copy()), (
        pixels(classes, *shape, seed=2),
        labels,
    )


def idx(array):
    """An IDX file by its description: 0x800 and the number of axes, their lengths, the bytes."""
    header = [0x800 + array.ndim, *array.shape]
    return b"".join(number.to_bytes(4, "big") for number in header) + array.tobytes()


def idx_files(parts):
    files = {}
    for prefix, (images, labels) in zip(("train", "t10k"), parts, strict=True):
        files[f"{prefix}-images-idx3-ubyte"] = idx(images.reshape(-1, *images.shape[-2:]))
        files[f"{prefix}-labels-idx1-ubyte"] = idx(labels.astype(np.uint8))
    return files


def official_files(name):
    """The files of a set by name, as its authors published them."""
    if name == "svhn":
        files = {}
        for part, (images, labels) in zip(("train", "test"), content(name), strict=True):
            file = io.BytesIO()
            labels = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
            savemat(file, {"X": images.transpose(2, 3, 1, 0), "y": labels})
            files[f"{part}_32x32.mat"] = file.getvalue()
        return files
    if "mnist" in name:
        files = idx_files(content(name)).items()
        return {f"{file}.gz": gzip.compress(data, mtime=0) for file, data in files}
    reader = getattr(SETS, KNOWN_SETS[name].torchvision)
    key, files = ("labels" if name == "cifar10" else "fine_labels"), {}
    lists = zip((reader.train_list, reader.test_list), content(name), strict=True)
    for listed, (images, labels) in lists:
        blocks = zip(np.split(images, len(listed)), np.split(labels, len(listed)), strict=True)
        for (file, _), (some, those) in zip(listed, blocks, strict=True):
            data = {"data": some.reshape(len(some), -1), key: those.tolist()}
            files[file] = pickle.dumps(data)
    files[reader.meta["filename"]] = pickle.dumps({reader.meta["key"]: ["unused"]})
    return files


def md5(data):
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def server(tmp_path):
    """A server of the files in a folder; the paths that it was asked for."""
    folder, asked = tmp_path / "remote", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=[0.01])
        thread.start()
        yield folder, f"http://127.0.0.1:{listening.server_port}/", asked
        listening.shutdown()
        thread.join()


@pytest.fixture
def official(server, monkeypatch):
    """Puts the tiny files of a set on the server, and tells torchvision their sums."""
    folder, url, _ = server

    def publish(name):
        reader, files = getattr(SETS, KNOWN_SETS[name].torchvision), official_files(name)
        sums = {file: md5(data) for file, data in files.items()}
        if "mnist" in name:
            monkeypatch.setattr(reader, "mirrors", [url])
            monkeypatch.setattr(reader, "resources", [*sums.items()])
        elif name == "svhn":
            rows = {file.partition("_")[0]: [url + file, file, sums[file]] for file in files}
            monkeypatch.setattr(reader, "split_list", rows)
        else:
            for part in ("train_list", "test_list"):
                listed = [[file, sums[file]] for file, _ in getattr(reader, part)]
                monkeypatch.setattr(reader, part, listed)
            meta = {**reader.meta, "md5": sums[reader.meta["filename"]]}
            monkeypatch.setattr(reader, "meta", meta)
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w:gz") as archive:
                for file, data in files.items():
                    member = tarfile.TarInfo(f"{reader.base_folder}/{file}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
            (folder / reader.filename).write_bytes(packed.getvalue())
            monkeypatch.setattr(reader, "url", url + reader.filename)
            monkeypatch.setattr(reader, "tgz_md5", md5(packed.getvalue()))
            return files
        for file, data in files.items():
            (folder / file).write_bytes(data)
        return files

    return publish


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        (folder / file).write_bytes(data)


def check(dataset, name):
    """The data set is what the files say, by an independent reading."""
    (images, labels), (test_images, test_labels) = content(name)
    assert dataset.name == name and dataset.class_names == KNOWN_SETS[name].classes
    assert np.array_equal(dataset.train_images.numpy(), images)
    assert np.array_equal(dataset.test_images.numpy(), test_images)
    assert dataset.train_labels.tolist() == labels.tolist()
    assert dataset.test_labels.tolist() == test_labels.tolist()
    assert dataset.train_images.is_contiguous() and dataset.train_labels.dtype == torch.int64
    assert dataset.fingerprint == FINGERPRINTS[name]


def refusal(uri):
    with pytest.raises(UserError) as caught:
        load_dataset(uri)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name in NAMES for place in PLACES[name]]
)
def test_official_files_are_read_in_every_usual_place(tmp_path, official, server, name, place):
    write(tmp_path / "data" / place, official(name))
    check(load_dataset(f"{name}:{tmp_path / 'data'}"), name)
    assert not server[2]  # nothing was downloaded


@pytest.mark.parametrize("name", NAMES)
def test_pictures_give_the_same_as_arrays(tmp_path, official, name):
    write(tmp_path, official(name))
    uri = f"{name}:{tmp_path}?classes=3,1"
    size = 28 if "mnist" in name else 32
    assert load_dataset(f"{uri}&size={size}").fingerprint == load_dataset(uri).fingerprint
    assert load_dataset(f"{uri}&size=8").image_size == 8


@pytest.mark.parametrize("place", PLACES["mnist"])
def test_unpacked_files_of_mnist(tmp_path, place):
    write(tmp_path / place, idx_files(content("mnist")))
    check(load_dataset(f"mnist:{tmp_path}"), "mnist")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_is_downloaded_if_that_is_asked_for(tmp_path, official, server, name):
    official(name)
    root = tmp_path / "data"
    message = refusal(f"{name}:{root}")
    assert f"{name}:{root} cannot be read (Dataset not found" in message
    assert "add ?download=true to the data's address" in message
    assert not server[2] and not root.exists()
    check(load_dataset(f"{name}:{root}?download=true"), name)
    asked = len(server[2])
    assert asked > 0
    check(load_dataset(f"{name}:{root}"), name)
    check(load_dataset(f"{name}:{root}?download=true"), name)
    assert len(server[2]) == asked  # what is there is not downloaded again


@pytest.mark.parametrize("name", NAMES)
def test_a_download_that_was_interrupted_is_made_again(tmp_path, official, server, name):
    files = official(name)
    load_dataset(f"{name}:{tmp_path}?download=true")
    last = sorted(files)[-1].removesuffix(".gz")
    for path in tmp_path.rglob(last):
        if "remote" not in path.parts:
            path.write_bytes(path.read_bytes()[:-1])
    assert "cannot be read (" in refusal(f"{name}:{tmp_path}")
    if "mnist" in name:  # torchvision knows the sums of packed files only
        for path in tmp_path.glob("*/raw/*"):
            path.unlink()
    check(load_dataset(f"{name}:{tmp_path}?download=true"), name)


@pytest.mark.parametrize("name", NAMES)
def test_a_download_of_something_else_is_refused(tmp_path, official, server, name):
    official(name)
    for path in server[0].iterdir():
        path.write_bytes(b"another file")
    message = refusal(f"{name}:{tmp_path / 'data'}?download=true")
    assert "orrupted" in message and "check the connection" in message


def test_a_server_that_is_away_is_said(tmp_path, official, monkeypatch):
    official("mnist")
    monkeypatch.setattr(SETS.MNIST, "mirrors", ["http://127.0.0.1:1/"])
    message = refusal(f"mnist:{tmp_path}?download=true")
    assert "Connection refused" in message and "check the connection" in message


def test_of_several_processes_one_downloads(tmp_path, official, server):
    official("mnist")
    load_dataset(f"mnist:{tmp_path / 'alone'}?download=true")
    asked = len(server[2])
    uri = f"mnist:{tmp_path / 'shared'}?download=true"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for dataset in pool.map(load_dataset, [uri] * 4):
            check(dataset, "mnist")
    assert len(server[2]) == 2 * asked


def test_downloading_is_no_part_of_the_name(tmp_path, official):
    official("mnist")
    dataset = load_dataset(f"mnist:{tmp_path}?download=true&classes=3,1")
    assert dataset.name == "mnist?classes=3,1" and dataset.class_names == ("3", "1")
    with pytest.raises(UserError, match="mnist:ROOT: download should be true or false, but is"):
        load_dataset(f"mnist:{tmp_path}?download=maybe")


# Damage


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"", lambda data: b"no"])
def test_damaged_files_are_refused(tmp_path, official, name, damage):
    files = official(name)
    for file in files:
        write(tmp_path / PLACES[name][0], {**files, file: damage(files[file])})
        assert f"{name}:{tmp_path} cannot be read (" in refusal(f"{name}:{tmp_path}")


@pytest.mark.parametrize("file", idx_files(content("mnist")))
@pytest.mark.parametrize(
    "damage",
    [
        *(lambda data, kept=kept: data[:kept] for kept in (0, 3, 7, -1)),
        lambda data: data + b"\0",
        lambda data: data[:4] + b"\x7f" + data[5:],  # a size that only the header claims
        lambda data: data[:3] + bytes([data[3] ^ 2]) + data[4:],
    ],
)
def test_damaged_unpacked_files_of_mnist_are_refused(tmp_path, file, damage):
    files = idx_files(content("mnist"))
    write(tmp_path, {**files, file: damage(files[file])})
    assert "mnist" in refusal(f"mnist:{tmp_path}")


def test_labels_out_of_range_are_refused(tmp_path):
    files = idx_files(content("mnist"))
    labels = files["train-labels-idx1-ubyte"]
    write(tmp_path, {**files, "train-labels-idx1-ubyte": labels[:-1] + bytes([10])})
    assert "training labels should run from 0 to 9" in refusal(f"mnist:{tmp_path}")


# Code in files


class Trap:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").is_dir()


@pytest.mark.parametrize("download", ["", "?download=true"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_no_pickle_is_opened_before_all_sums_are_right(tmp_path, official, name, download):
    files = official(name)
    archive = tmp_path / "remote" / getattr(SETS, KNOWN_SETS[name].torchvision).filename
    archive.write_bytes(b"another file")
    for file in files:
        hostile = {**files, file: pickle.dumps(Trap(tmp_path / "sprung"))}
        write(tmp_path / PLACES[name][0], hostile)
        assert "cannot be read (" in refusal(f"{name}:{tmp_path}{download}")
        assert not (tmp_path / "sprung").exists()


def test_other_files_run_no_code(tmp_path):
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    for name, file in (("MNIST", "training.pt"), ("MNIST", "test.pt"), ("KMNIST", "training.pt")):
        write(tmp_path / name / "processed", {file: trap})
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "KMNIST" / "processed" / "test.pt")
    for uri in (f"mnist:{tmp_path}", f"torchvision:KMNIST:{tmp_path}"):
        assert "cannot be read (" in refusal(uri)
    for name in ("LSUN", "LSUNClass"):
        assert f"torchvision:{name} is not read: files of that set can run code" in refusal(
            f"torchvision:{name}:{tmp_path}"
        )
    assert not (tmp_path / "sprung").exists()


def test_no_other_set_of_torchvision_unpickles():
    """A new release with one more is to be looked at."""
    folder = os.path.dirname(SETS.__file__)
    found = []
    for file in sorted(os.listdir(folder)):
        if file.endswith(".py"):
            with open(os.path.join(folder, file), encoding="utf-8") as source:
                text = source.read()
            unsafe = text.count("torch.load(") != text.count("weights_only=True")
            if unsafe or any(word in text for word in ("pickle.load", "allow_pickle", "eval(")):
                found.append(file)
    assert found == ["cifar.py", "lsun.py"]


# Any class of torchvision


def picture(path, seed, shape=(12, 12, 3), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(*shape, seed=seed)).save(path, **options)


def country211(root):
    """Three parts of two classes, in PNG files under another ending."""
    for number, part in enumerate(("train", "valid", "test")):
        for label, country in enumerate(("AD", "ZW")):
            for image in range(3 - number):
                path = root / "country211" / part / country / f"{image}.png"
                picture(path, 100 * number + 10 * label + image)


def test_a_set_of_image_files(tmp_path):
    country211(tmp_path)
    uri = f"torchvision:Country211:{tmp_path}"
    dataset = load_dataset(uri)
    assert dataset.name == "torchvision:Country211" and dataset.class_names == ("AD", "ZW")
    assert dataset.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.test_labels.tolist() == [0, 1]
    expected = [pixels(12, 12, 3, seed=seed).transpose(2, 0, 1) for seed in (0, 1, 2, 10, 11, 12)]
    assert np.array_equal(dataset.train_images.numpy(), np.stack(expected))
    reader = SETS.Country211(tmp_path, split="test")
    assert np.array_equal(dataset.test_images[1].permute(1, 2, 0), np.asarray(reader[1][0]))
    other = load_dataset(f"{uri}?test=valid&classes=ZW,0&size=6")
    assert other.class_names == ("ZW", "AD") and other.image_size == 6
    assert other.test_labels.tolist() == [1, 1, 0, 0]
    assert "Valid values are" in refusal(f"{uri}?test=holdout")
    assert "takes no ?test=0.5" in refusal(f"{uri}?test=0.5")
    path = tmp_path / "country211" / "train" / "AD" / "1.png"
    path.write_bytes(path.read_bytes()[:40])
    assert "training image 1 cannot be read as an image" in refusal(uri)


def test_a_set_of_pictures_that_torchvision_decodes(tmp_path):
    folder = tmp_path / "gtsrb" / "GTSRB"
    rows = []
    for label in (0, 1):
        for image in range(2):
            picture(folder / "Training" / f"0000{label}" / f"{image}.ppm", 10 * label + image)
        picture(folder / "Final_Test" / "Images" / f"{label}.ppm", 100 + label, (15, 9, 3))
        rows.append(f"{label}.ppm;{label}")
    (tmp_path / "gtsrb" / "GT-final_test.csv").write_text("\n".join(["Filename;ClassId", *rows]))
    uri = f"torchvision:GTSRB:{tmp_path}"
    assert "test image 0 is 9 x 15 pixels, which is not square" in refusal(uri)
    dataset = load_dataset(f"{uri}?size=12")
    assert dataset.class_names == ("0", "1")
    expected = [pixels(12, 12, 3, seed=seed).transpose(2, 0, 1) for seed in (0, 1, 10, 11)]
    assert np.array_equal(dataset.train_images.numpy(), np.stack(expected))


def test_sets_that_torchvision_keeps_as_arrays(tmp_path, monkeypatch):
    (images, labels), (test_images, test_labels) = content("mnist")
    parts = (images, labels), (test_images, test_labels)
    write(tmp_path / "KMNIST" / "raw", idx_files(parts))
    dataset = load_dataset(f"torchvision:KMNIST:{tmp_path}")
    assert dataset.class_names[0] == "o" and dataset.train_labels.tolist() == labels.tolist()
    assert np.array_equal(dataset.train_images.numpy(), images)
    assert load_dataset(f"torchvision:KMNIST:{tmp_path}?size=14").image_size == 14
    # Letters are labelled from 1, after a class that has no images.
    letters = [(each, which % 5 + 1) for each, which in parts]
    files = {
        file.replace("t10k", "test").replace("train-", "emnist-letters-train-"): data
        for file, data in idx_files(letters).items()
    }
    files = {file.replace("test-", "emnist-letters-test-"): data for file, data in files.items()}
    write(tmp_path / "EMNIST" / "raw", files)
    dataset = load_dataset(f"torchvision:EMNIST:{tmp_path}?split=letters&classes=b,a")
    assert dataset.class_names == ("b", "a")
    assert len(dataset.train_labels) == 4
    assert "Valid values are {'byclass'" in refusal(f"torchvision:EMNIST:{tmp_path}")
    # STL-10 has its images turned, and says the sums of its files.
    for file, data in (
        ("train_X.bin", pixels(10, 3, 96, 96, seed=1)),
        ("test_X.bin", pixels(10, 3, 96, 96, seed=2)),
        ("train_y.bin", np.arange(10, dtype=np.uint8) + 1),
        ("test_y.bin", np.arange(10, dtype=np.uint8) + 1),
    ):
        write(tmp_path / "stl10_binary", {file: data.tobytes()})
    assert "Dataset not found or corrupted" in refusal(f"torchvision:STL10:{tmp_path}")
    monkeypatch.setattr(SETS.STL10, "_check_integrity", lambda self: True)
    dataset = load_dataset(f"torchvision:STL10:{tmp_path}")
    expected = pixels(10, 3, 96, 96, seed=1).transpose(0, 1, 3, 2)
    assert np.array_equal(dataset.train_images.numpy(), expected)
    assert dataset.class_names == tuple("0123456789")


def test_a_set_without_a_test_part_is_split_with_a_word(tmp_path):
    for label, name in enumerate(("Forest", "River")):
        for image in range(4):
            picture(tmp_path / "eurosat" / "2750" / name / f"{image}.png", 10 * label + image)
    uri = f"torchvision:EuroSAT:{tmp_path}"
    with pytest.warns(
        UserWarning, match="EuroSAT:.* has no test images: the same 2 of its 8 images"
    ):
        assert load_dataset(uri).class_names == ("Forest", "River")
    assert len(load_dataset(f"{uri}?test=0.5").test_labels) == 4
    assert "torchvision:EuroSAT takes no ?test=val; leave it out" in refusal(f"{uri}?test=val")
    assert "torchvision:EuroSAT takes no ?train=x" in refusal(f"{uri}?train=x")


@pytest.mark.parametrize(
    "name",
    [
        "CocoDetection",
        "Kinetics",
        "FakeData",
        "PhotoTour",
        "VOCDetection",
        "SintelStereo",
        "VisionDataset",
    ],
)
def test_a_set_of_another_kind_is_refused_by_its_arguments(tmp_path, name):
    assert f"torchvision:{name} is not a data set for classification" in refusal(
        f"torchvision:{name}:{tmp_path}"
    )


def test_a_set_of_another_kind_is_refused_by_its_items(tmp_path):
    moving = np.zeros((20, 3, 64, 64), np.uint8)
    (tmp_path / "MovingMNIST").mkdir()
    np.save(tmp_path / "MovingMNIST" / "mnist_test_seq.npy", moving)
    assert "is not a data set for classification: it has no pictures with one label" in refusal(
        f"torchvision:MovingMNIST:{tmp_path}"
    )


def test_a_name_that_torchvision_has_not_is_refused(tmp_path):
    assert "torchvision has no data set 'STL01'; the nearest are STL10" in refusal(
        f"torchvision:STL01:{tmp_path}"
    )
    for uri in ("torchvision", "torchvision:", "torchvision:STL10", "torchvision:STL10:"):
        assert "lacks a path; write torchvision:NAME:ROOT" in refusal(uri)
    assert "torchvision:FER2013 takes no ?download=True" in refusal(
        f"torchvision:FER2013:{tmp_path}?download=true"
    )
