"""Data sets of the Hugging Face hub: the package ``datasets``, and a stand-in for the hub."""

import io
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image as Pillow

from trajmatch.data import load_dataset
from trajmatch.errors import UserError


class Image:
    """A feature of images, as ``datasets.Image`` is called."""


class Value:
    """A feature of numbers."""


class ClassLabel:
    """A feature of labels with names."""

    def __init__(self, *names):
        self.names = list(names)


class Split:
    """Rows by number, columns by name, as ``datasets.Dataset`` has them."""

    def __init__(self, features, columns):
        self.features, self._columns = features, columns

    def __getitem__(self, key):
        if isinstance(key, str):
            assert not isinstance(self.features[key], Image)  # would decode every image
            return self._columns[key]
        return {name: values[key] for name, values in self._columns.items()}


def pixels(seed, shape=(6, 6, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def split(labels, first, shape=(6, 6, 3), **features):
    features = features or {"img": Image(), "label": ClassLabel("cat", "dog", "fox")}
    columns = {name: labels for name, kind in features.items() if not isinstance(kind, Image)}
    for name in features.keys() - columns.keys():
        columns[name] = [Pillow.fromarray(pixels(first + row, shape)) for row in range(len(labels))]
    return Split(features, columns)


@pytest.fixture
def hub(monkeypatch):
    """What the stand-in has under each name; its calls are kept."""
    content = SimpleNamespace(sets={}, calls=[])

    def load(name, config=None):
        content.calls.append((name, config))
        if name not in content.sets:
            raise FileNotFoundError(f"Couldn't find any data file at {name}")
        return content.sets[name]

    module = ModuleType("datasets")
    module.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", module)
    return content


def test_columns_are_found_by_their_type(hub):
    hub.sets["user/pets"] = {
        "train": split([0, 1, 2, 1], 0),
        "validation": split([0, 1], 20),
        "test": split([2, 1, 0], 10),
    }
    with pytest.warns(UserWarning, match=r"hf:user/pets: not read: 'validation'; .*test=NAME"):
        dataset = load_dataset("hf:user/pets")
    assert dataset.name == "pets"
    assert dataset.class_names == ("cat", "dog", "fox")
    assert dataset.train_labels.tolist() == [0, 1, 2, 1]
    assert dataset.test_labels.tolist() == [2, 1, 0]
    assert np.array_equal(dataset.test_images[1].numpy(), pixels(11).transpose(2, 0, 1))
    assert hub.calls == [("user/pets", None)]


def test_grey_images_other_sizes_and_some_classes(hub):
    hub.sets["pets"] = {"train": split([0, 1, 2, 0], 0, (9, 12)), "test": split([0, 2], 9, (8, 8))}
    dataset = load_dataset("hf:pets?size=8&classes=fox,cat&config=small")
    assert dataset.name == "pets?size=8&classes=fox,cat&config=small"
    assert dataset.train_images.shape == (3, 1, 8, 8)
    assert dataset.train_labels.tolist() == [1, 0, 1]
    assert np.array_equal(dataset.test_images[1, 0].numpy(), pixels(10, (8, 8)))
    assert hub.calls == [("pets", "small")]


def test_without_a_test_split_a_part_is_set_aside_and_said(hub):
    hub.sets["pets"] = {"train": split([0, 1, 2] * 4, 0)}
    with pytest.warns(UserWarning, match="hf:pets has no test images: the same 3 of its 12 images"):
        dataset = load_dataset("hf:pets")
    assert sorted(dataset.test_labels.tolist()) == [0, 1, 2]
    assert len(load_dataset("hf:pets?test=0.5").test_labels) == 6


def test_one_of_several_columns_is_chosen(hub):
    kinds = {"img": Image(), "fine": ClassLabel("cat", "dog"), "coarse": ClassLabel("pet", "wild")}
    hub.sets["pets"] = {"train": split([0, 1], 0, **kinds), "test": split([0, 1], 9, **kinds)}
    with pytest.raises(UserError, match=r"needs \?label=NAME with .*; there are fine, coarse"):
        load_dataset("hf:pets")
    assert load_dataset("hf:pets?label=coarse").class_names == ("pet", "wild")
    with pytest.raises(
        UserError,
        match="label=NAME with the name of the column that holds the labels; "
        "the nearest are coarse",
    ):
        load_dataset("hf:pets?label=coarze")


def test_what_cannot_be_used_is_named(hub):
    for name, splits, message in (
        ("nowhere", None, "hf:nowhere cannot be loaded: Couldn't find any data file"),
        ("notrain", {"all": split([0, 1], 0)}, "has no split 'train'; its splits are all"),
        (
            "text",
            {"train": split([0, 1], 0, text=Value(), label=ClassLabel("a", "b"))},
            r"\(its columns: text \(Value\), label \(ClassLabel\)\) needs \?image=NAME",
        ),
        (
            "sizes",
            {"train": split([0, 1, 2], 0), "test": split([0, 1, 2], 9, (6, 7, 3))},
            "hf:sizes, split test, row 0 is 7 x 6 pixels, which is not square; .* add .size=N",
        ),
    ):
        if splits is not None:
            hub.sets[name] = splits
        with pytest.raises(UserError, match=message):
            load_dataset(f"hf:{name}")
    hub.sets["both"] = {"train": split([0, 1, 2], 0), "test": split([0, 1, 2], 9)}
    with pytest.raises(UserError, match=r"test images of its own, in test; leave out"):
        load_dataset("hf:both?test=0.1")
    with pytest.raises(UserError, match="hf:both has no class 'wolf'"):
        load_dataset("hf:both?classes=wolf")
    with pytest.raises(UserError, match="'hf:' lacks a path; write hf:NAME"):
        load_dataset("hf:")


def test_the_package_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package datasets; pip install trajmatch\[hf\]"):
        load_dataset("hf:cifar10")


def test_the_package_itself_reads_parquet(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog", "fox"])}
    )
    labels = {"train": [0, 1, 2, 1], "test": [2, 0, 1]}
    for name, kinds in labels.items():
        pictures = [Pillow.fromarray(pixels(row)) for row in range(len(kinds))]
        rows = datasets.Dataset.from_dict({"picture": pictures, "kind": kinds}, features=features)
        rows.to_parquet(tmp_path / f"pets/data/{name}-00000-of-00001.parquet")
    dataset = load_dataset(f"hf:{tmp_path / 'pets'}")
    assert dataset.class_names == ("cat", "dog", "fox")
    assert dataset.train_labels.tolist() == labels["train"]
    assert dataset.test_labels.tolist() == labels["test"]
    assert np.array_equal(dataset.train_images[3].numpy(), pixels(3).transpose(2, 0, 1))
    fox = load_dataset(f"hf:{tmp_path / 'pets'}?classes=fox,dog&size=4")
    assert fox.train_labels.tolist() == [1, 0, 1] and fox.image_size == 4
    with pytest.raises(UserError, match=r"hf:.*nowhere cannot be loaded"):
        load_dataset(f"hf:{tmp_path / 'nowhere'}")


def test_the_package_itself_does_not_return_the_files_that_were_there_before(tmp_path):
    pytest.importorskip("datasets")
    card = "---\nconfigs:\n- config_name: default\n  data_files: '*/*.png'\n---\n"
    for seed in (0, 1):
        for label in ("cat", "dog"):
            (tmp_path / label).mkdir(exist_ok=True)
            for name in ("one", "two"):
                Pillow.fromarray(pixels(seed)).save(tmp_path / label / f"{name}.png")
        (tmp_path / "README.md").write_text(card)
        dataset = load_dataset(f"hf:{tmp_path}?test=0.5")
        expected = pixels(seed).transpose(2, 0, 1)
        assert np.array_equal(dataset.train_images[0].numpy(), expected)


def png(seed):
    content = io.BytesIO()
    Pillow.fromarray(pixels(seed)).save(content, "PNG")
    return content.getvalue()


def written(folder, features, names=("train", "test"), **columns):
    datasets = pytest.importorskip("datasets")
    for name in names:
        rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features(datasets)))
        rows.to_parquet(folder / f"pets/data/{name}-00000-of-00001.parquet")
    return f"hf:{folder / 'pets'}"


IMAGES = [Pillow.fromarray(pixels(row)) for row in range(6)]


@pytest.mark.parametrize(
    ("dtype", "labels", "names"),
    [
        ("int64", [2, 0, 1, 0, 1, 2], ("0", "1", "2")),
        ("uint8", [10, 9, 10, 9, 9, 10], ("9", "10")),
        ("string", ["owl", "cat", "dog"] * 2, ("cat", "dog", "owl")),
    ],
)
def test_integers_and_strings_are_labels(tmp_path, dtype, labels, names):
    uri = written(
        tmp_path,
        lambda datasets: {"image": datasets.Image(), "kind": datasets.Value(dtype)},
        image=IMAGES,
        kind=labels,
    )
    dataset = load_dataset(uri)
    assert dataset.class_names == names
    assert [names[label] for label in dataset.train_labels] == list(map(str, labels))
    assert load_dataset(f"{uri}?classes={names[-1]},{names[0]}").class_names == (
        names[-1],
        names[0],
    )


def test_bytes_are_images(tmp_path):
    expected = np.stack([pixels(row).transpose(2, 0, 1) for row in range(6)])
    for number, (feature, column) in enumerate(
        (
            (lambda datasets: datasets.Value("binary"), [png(row) for row in range(6)]),
            (
                lambda datasets: {
                    "bytes": datasets.Value("binary"),
                    "path": datasets.Value("string"),
                },
                [{"bytes": png(row), "path": None} for row in range(6)],
            ),
        )
    ):
        uri = written(
            tmp_path / str(number),
            lambda datasets, feature=feature: {
                "picture": feature(datasets),
                "label": datasets.ClassLabel(names=["cat", "dog"]),
            },
            picture=column,
            label=[0, 1] * 3,
        )
        assert np.array_equal(load_dataset(uri).train_images.numpy(), expected)


def test_columns_that_could_be_labels_are_said(tmp_path):
    uri = written(
        tmp_path,
        lambda datasets: {
            "image": datasets.Image(),
            "coarse": datasets.Value("string"),
            "label": datasets.Value("int64"),
            "id": datasets.Value("int64"),
        },
        image=IMAGES,
        coarse=["pet", "wild"] * 3,
        label=[0, 1, 2] * 2,
        id=list(range(6)),
    )
    with pytest.raises(UserError, match=r"needs \?label=NAME with .*; there are coarse, label, id"):
        load_dataset(uri)
    assert load_dataset(f"{uri}?label=label").num_classes == 3
    assert load_dataset(f"{uri}?label=coarse").class_names == ("pet", "wild")
    with pytest.raises(UserError, match="'id' has a different value in every row, so it"):
        load_dataset(f"{uri}?label=id")


def test_rows_without_a_label_are_said_and_a_split_of_them_is_refused(hub):
    hub.sets["some"] = {"train": split([0, 1, 2, -1], 0), "test": split([0, 1, 2], 9)}
    with pytest.warns(UserWarning, match=r"split train: 1 of 4 rows have a missing .* left out"):
        assert len(load_dataset("hf:some").train_labels) == 3
    hub.sets["none"] = {
        "train": split([0, 1, 2], 0),
        "test": split([-1, -1], 9),
        "validation": split([2, 1, 0], 9),
    }
    with (
        pytest.warns(UserWarning, match="not read: 'validation'; "),
        pytest.raises(UserError, match=r"split test: 2 of 2 rows have a missing .*\?test=NAME"),
    ):
        load_dataset("hf:none")
    assert load_dataset("hf:none?test=validation").test_labels.tolist() == [2, 1, 0]
    hub.sets["all"] = {"all": split([0, 1, 2] * 3, 0)}
    assert len(load_dataset("hf:all?train=all&test=0.3").test_labels) == 3
