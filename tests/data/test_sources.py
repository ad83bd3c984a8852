"""URIs of data sets, and finding a set by its name."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trajmatch.data import SHIPPED, load_dataset, resolve_uri
from trajmatch.data.sources import absolute_uri, moved_uri, of_recipe
from trajmatch.distill import DistillConfig
from trajmatch.distill.problem import prepare
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, train_experts


@pytest.mark.parametrize("uri", ["pets", "pets:/data", "/data/pets.npz", "Cifar10:/data", ":x"])
def test_an_unknown_source_lists_the_known_ones(uri):
    with pytest.raises(UserError, match="there is no data source") as refusal:
        load_dataset(uri)
    for form in (SHIPPED, "fashion-mnist:ROOT", "mnist:ROOT", "cifar10:ROOT", "cifar100:ROOT",
                 "imagefolder:PATH", "npz:FILE", "svhn:ROOT", "tiny-imagenet:ROOT", "imagenet:ROOT",
                 "hf:NAME", "package.module:function"):  # fmt: skip
        assert form in str(refusal.value)


@pytest.mark.parametrize("uri", ["", "?classes=0,1"])
def test_an_address_without_a_source_names_the_flag(uri):
    with pytest.raises(UserError, match=r"--data '.*' names no data set; give one of .*npz:FILE"):
        load_dataset(uri)


@pytest.mark.parametrize(("uri", "form"), [("cifar10:", "cifar10:ROOT"), ("npz", "npz:FILE")])
def test_a_source_without_a_path_is_refused(uri, form):
    with pytest.raises(UserError, match=f"'{uri}' lacks a path; write {form}"):
        load_dataset(uri)


def test_a_set_with_a_fixed_name_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("TRAJMATCH_DATA", str(tmp_path))
    with pytest.raises(
        UserError, match=f"'mnist' is in no folder that .*{tmp_path}.*--data mnist:ROOT"
    ):
        load_dataset("mnist")
    gone = tmp_path / "gone"
    monkeypatch.setenv("TRAJMATCH_DATA", f"{tmp_path}{os.pathsep}{gone}")
    with pytest.raises(UserError, match=rf"\({tmp_path}, {gone}\)"):
        load_dataset("mnist")
    monkeypatch.setenv("TRAJMATCH_DATA", str(tmp_path))
    images, labels = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])
    images[1] = 9
    for folder in ("train", "test"):
        for number, label in enumerate(labels):
            path = tmp_path / "mnist" / folder / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[number]).save(path)
    assert len(load_dataset("mnist").train_images) == 4


def test_what_the_system_refuses_is_a_message(monkeypatch):
    for scheme in ("cifar10", "imagefolder", "npz"):
        with pytest.raises(UserError, match=r"cannot (read|be read) .*File name too long"):
            load_dataset(f"{scheme}:" + "x" * 5000)
    monkeypatch.setenv("TRAJMATCH_DATA", "y" * 5000)
    with pytest.raises(UserError, match=r"cannot read .*: File name too long; check the path"):
        resolve_uri("cifar10")


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"cannot read {tmp_path}/nowhere.npz"):
        load_dataset("npz:~/nowhere.npz")


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


FIXED = {
    "cifar10": ["cifar-10-batches-bin/data_batch_1.bin", "cifar-10-batches-py/test_batch"],
    "cifar100": ["cifar-100-binary/test.bin", "cifar-100-python/train"],
    "mnist": ["MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-images-idx3-ubyte.gz"],
    "fashion-mnist": ["FashionMNIST/raw/train-images-idx3-ubyte"],
}


@pytest.mark.parametrize("name", FIXED)
def test_known_sets_are_found_in_the_folders_of_the_variable(tmp_path, monkeypatch, name):
    monkeypatch.delenv("TRAJMATCH_DATA", raising=False)
    assert resolve_uri(name) is None
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    monkeypatch.setenv(
        "TRAJMATCH_DATA", f"{tmp_path / 'missing'}{os.pathsep}{empty}{os.pathsep}{full}"
    )
    assert resolve_uri(name) is None
    touch(full / FIXED[name][0])
    if "python" not in FIXED[name][-1] and "-py" not in FIXED[name][-1]:
        touch(full / FIXED[name][-1])
    assert resolve_uri(name) == f"{name}:{full}"
    assert all(resolve_uri(other) is None for other in FIXED if other != name)


def test_the_python_version_is_found_too(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAJMATCH_DATA", str(tmp_path))
    touch(tmp_path / "cifar-10-batches-py" / "test_batch")
    assert resolve_uri("cifar10") is None  # not enough to be the set
    touch(tmp_path / "cifar-10-batches-py" / "data_batch_1")
    assert resolve_uri("cifar10") == f"cifar10:{tmp_path}"


def test_a_users_own_sets_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAJMATCH_DATA", str(tmp_path))
    (tmp_path / "pets" / "train").mkdir(parents=True)
    for name in ("red", "blue"):
        (tmp_path / "colours" / name).mkdir(parents=True)
    touch(tmp_path / "plants.npz")
    assert resolve_uri("colours?size=64") == f"imagefolder:{tmp_path / 'colours'}?size=64"
    assert resolve_uri("pets") == f"imagefolder:{tmp_path / 'pets'}"
    assert resolve_uri("plants") == f"npz:{tmp_path / 'plants.npz'}"
    assert resolve_uri("planets") is None


def test_a_name_that_is_a_path_finds_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAJMATCH_DATA", str(tmp_path / "inner"))
    (tmp_path / "pets" / "train").mkdir(parents=True)
    (tmp_path / "inner" / "train").mkdir(parents=True)
    for name in ("../pets", str(tmp_path / "pets"), "", ".", ".."):
        assert resolve_uri(name) is None


def test_the_shipped_set_needs_no_folder(monkeypatch):
    monkeypatch.delenv("TRAJMATCH_DATA", raising=False)
    assert resolve_uri(SHIPPED) == SHIPPED


# Did you mean


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("photos", "imagefolder:photos"),
        ("./photos", "imagefolder:./photos"),
        ("ImageFolder:photos", "imagefolder"),
        ("image-folder:photos", "imagefolder"),
        ("pets.npz", "npz:pets.npz"),
        ("NPZ:pets.npz", "npz"),
        ("CIFAR10", "cifar10"),
        ("cifar-10:ROOT", "cifar10"),
        ("CIFAR100:", "cifar100"),
        ("FashionMNIST:root", "fashion-mnist"),
        ("fashion_mnist_mini", "fashion-mnist-mini"),
        ("tiny_imagenet:/x", "tiny-imagenet"),
    ],
)
def test_what_was_meant_is_said(tmp_path, monkeypatch, given, meant):
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    touch(tmp_path / "pets.npz")
    with pytest.raises(UserError) as refusal:
        load_dataset(given)
    assert f"no data source {given!r} (did you mean {meant}?)" in str(refusal.value)


def test_a_full_path_is_explained_and_nonsense_is_not(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=rf"\(did you mean imagefolder:{tmp_path}\?\)"):
        load_dataset(str(tmp_path))
    with pytest.raises(UserError, match=r"no data source 'qqq'; give one of"):
        load_dataset("qqq")


def test_an_address_that_is_not_utf8_is_refused():
    with pytest.raises(UserError, match=r"address of the data set 'imagefolder:caf\\udce9' is not"):
        load_dataset("imagefolder:caf\udce9")
    with pytest.raises(UserError, match="contains a zero byte"):
        load_dataset("npz:\0")


# Paths of data sets


@pytest.mark.parametrize(
    ("given", "absolute"),
    [
        ("imagefolder:photos?size=8&test=0.5", "imagefolder:{here}/photos?size=8&test=0.5"),
        ("npz:../a.npz", "npz:{above}/a.npz"),
        ("cifar10:~/data", "cifar10:{home}/data"),
        ("hf:photos", "hf:{here}/photos"),
        ("hf:user/name", "hf:user/name"),
        ("cifar10?classes=1,2", "cifar10?classes=1,2"),
        ("module:function", "module:function"),
        (None, None),
    ],
)
def test_paths_are_made_absolute(tmp_path, monkeypatch, given, absolute):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    places = {"here": tmp_path, "above": tmp_path.parent, "home": tmp_path / "home"}
    assert absolute_uri(given) == (absolute and absolute.format(**places))


def test_data_that_moved_with_a_store_is_found(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "data" / "photos").mkdir(parents=True)
    (old / "runs" / "experts").mkdir(parents=True)
    uri = f"imagefolder:{old}/data/photos?size=8"
    assert moved_uri(uri, old / "runs" / "experts") == uri
    old.rename(new)
    found = f"imagefolder:{new}/data/photos?size=8"
    assert moved_uri(uri, new / "runs" / "experts") == found
    assert moved_uri("imagefolder:data/photos?size=8", new / "runs" / "experts") == found
    (new / "data").rename(tmp_path / "gone")
    assert moved_uri(uri, new / "runs" / "experts") == uri


# Recipes


@pytest.mark.parametrize(
    ("given", "wanted", "completed"),
    [
        ("cifar10:R", "cifar10?statistics=published", "cifar10:R?statistics=published"),
        ("imagenet:R?size=8&subset=fruit", "imagenet?subset=fruit&size=8", None),
        ("imagenet:R", "imagenet?subset=fruit", "imagenet:R?subset=fruit"),
        ("imagefolder:a/cifar10", "cifar10", None),
        ("cifar10", "cifar10", None),
        ("npz:x.npz", "", None),
        (None, "cifar10", None),
    ],
)
def test_options_of_a_recipe_hold_for_the_same_set(given, wanted, completed):
    assert of_recipe(given, wanted, "r") == (completed or given)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("cifar100:R", "cifar10"),
        ("imagefolder:photos?size=32", "cifar10?statistics=published"),
        ("cifar10:R?statistics=pixels", "cifar10?statistics=published"),
        ("cifar10:R?classes=cat,dog", "cifar10"),
        ("imagenet:R?subset=woof", "imagenet?subset=fruit"),
        ("fashion-mnist-mini", "fashion-mnist"),
    ],
)
def test_a_recipe_of_another_data_set_says_so(given, wanted):
    with pytest.warns(UserWarning, match=r"recipe mtt/x is for the data set .*, but the data is"):
        assert of_recipe(given, wanted, "mtt/x") == given


def test_a_store_finds_its_data_from_another_folder_and_after_both_moved(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    images, labels = np.arange(512, dtype=np.uint16).reshape(8, 8, 8) % 251, np.arange(8) % 2
    images = images.astype(np.uint8)
    np.savez(old / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    monkeypatch.chdir(old)
    train_experts(
        ExpertConfig(
            out=Path("experts"), data="npz:a.npz", num_experts=1, epochs=1, width=4, depth=1
        )
    )
    monkeypatch.chdir(tmp_path)
    config = DistillConfig(experts=old / "experts", out=tmp_path / "x", ipc=1, expert_epochs=1)
    found = prepare(replace(config, max_start_epoch=1))
    assert found.store.manifest["data"] == f"npz:{old / 'a.npz'}"
    old.rename(new)
    moved = prepare(replace(config, experts=new / "experts", max_start_epoch=1))
    assert moved.dataset.fingerprint == found.dataset.fingerprint
