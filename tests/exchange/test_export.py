"""Exports: other programs read them, and find what is in the distilled set."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trajmatch import artifact, networks
from trajmatch.artifact import Artifact
from trajmatch.cli.main import main
from trajmatch.data import load_dataset
from trajmatch.errors import UserError
from trajmatch.exchange.config import ExportConfig
from trajmatch.exchange.export import export


def picture(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path)))


# --- pixels


@pytest.mark.parametrize(("form", "root"), [("imagefolder", "."), ("huggingface", "train")])
def test_pictures_are_the_pixels_in_a_folder_for_each_class(
    file: Path, distilled: Artifact, tmp_path: Path, form: str, root: str
) -> None:
    made = export(ExportConfig(file=file, to=form, out=tmp_path / "out"))
    assert "6 images of 3 classes; " in made and "they lie outside 0 to 255" in made
    written = sorted((tmp_path / "out" / root).glob("*/*.png"))
    order = distilled.hard_labels.argsort(stable=True)
    assert len(written) == len(order)
    for path, index in zip(written, order.tolist(), strict=True):
        assert path.parent.name.startswith(f"{int(distilled.hard_labels[index])}_")
        assert torch.equal(picture(path), distilled.pixels[index, 0])


def test_the_description_beside_the_pictures(file, distilled, tmp_path) -> None:
    export(ExportConfig(file=file, to="imagefolder", out=tmp_path / "out"))
    described = json.loads((tmp_path / "out" / "distilled.json").read_text())
    assert described["lr"] == distilled.lr
    assert described["preprocessing"] == distilled.preprocessing.spec()
    assert described["dsa"] == distilled.dsa and described["network"] == distilled.network
    for index, entry in enumerate(described["images"]):
        shown = picture(tmp_path / "out" / entry["file_name"])
        assert torch.equal(shown, distilled.pixels[index, 0])
        assert entry["label"] == distilled.hard_labels[index]
        if distilled.label_kind == "index":
            assert entry.keys() == {"file_name", "label"}
        else:
            written = torch.tensor(entry[f"{distilled.label_kind}s"])
            assert torch.equal(written, distilled.labels[index])


def test_what_8_bits_cannot_hold_is_counted(file, distilled, tmp_path) -> None:
    export(ExportConfig(file=file, to="imagefolder", out=tmp_path / "out"))
    described = json.loads((tmp_path / "out" / "distilled.json").read_text())
    pixels = distilled.preprocessing.invert(distilled.images.double()) * 255
    outside = ((pixels < -0.5) | (pixels > 255.5)).double().mean()
    assert described["clipped"] == pytest.approx(outside.item(), abs=0.01)
    assert described["clipped"] > 0.1


def test_torchvision_reads_the_folder_of_pictures(file, distilled, tmp_path) -> None:
    from trajmatch._torchvision import torchvision

    export(ExportConfig(file=file, to="imagefolder", out=tmp_path / "out"))
    read = torchvision.datasets.ImageFolder(tmp_path / "out")
    assert sorted(read.targets) == sorted(distilled.hard_labels.tolist())
    assert read.classes == ["0_0", "1_1", "2_2"]


def test_our_own_source_reads_the_folder_of_pictures(file, distilled, tmp_path) -> None:
    export(ExportConfig(file=file, to="imagefolder", out=tmp_path / "out"))
    (tmp_path / "out" / "distilled.json").unlink()
    assert load_dataset(f"imagefolder:{tmp_path / 'out'}?test=0.5").num_classes == 3


def test_the_card_of_the_hugging_face_folder_gives_the_types(file, distilled, tmp_path) -> None:
    yaml = pytest.importorskip("yaml")
    export(ExportConfig(file=file, to="huggingface", out=tmp_path / "out"))
    _, head, text = (tmp_path / "out" / "README.md").read_text().split("---\n")
    (config,) = yaml.safe_load(head)["configs"]
    assert distilled.fingerprint in config["description"]
    features = {each["name"]: each for each in config["features"]}
    names = features["label"]["dtype"]["class_label"]["names"]
    assert [names[str(index)] for index in range(3)] == list(distilled.class_names)
    assert features.keys() - {"image", "label", f"{distilled.label_kind}s"} == set()
    assert len(features) == (2 if distilled.label_kind == "index" else 3)
    assert f"step size: {distilled.lr!r}" in text


def test_the_hub_s_package_tells_two_sets_apart(file, distilled, tmp_path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("first", "second"):
        read = dataclasses.replace(distilled, images=torch.randn_like(distilled.images))
        artifact.save(tmp_path / f"{name}.safetensors", read)
        folder = tmp_path / name / "dataset"
        folder.parent.mkdir()
        export(ExportConfig(file=tmp_path / f"{name}.safetensors", to="huggingface", out=folder))
        (rows,) = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "c")).values()
        shown = torch.from_numpy(np.array(rows[0]["image"]))
        assert any(torch.equal(shown, pixels[0]) for pixels in read.pixels)


def test_the_hub_s_package_reads_its_folder(file, distilled, tmp_path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    export(ExportConfig(file=file, to="huggingface", out=tmp_path / "out"))
    (read,) = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "c")).values()
    assert read.features["label"].names == list(distilled.class_names)
    order = [row["label"] for row in read]
    assert sorted(order) == sorted(distilled.hard_labels.tolist())
    first = torch.from_numpy(np.array(read[0]["image"]))
    assert any(torch.equal(first, pixels[0]) for pixels in distilled.pixels)
    assert load_dataset(f"hf:{tmp_path / 'out'}?test=0.5").num_classes == 3


# --- numbers


def check(content: dict, distilled: Artifact) -> None:
    """Arrays or tensors are those of the set, and whiten or normalise as it says."""
    for name in ("images", "labels", "pixels"):
        assert np.array_equal(np.asarray(content[name]), getattr(distilled, name).numpy())
    assert float(content["lr"]) == distilled.lr
    assert [str(name) for name in content["class_names"]] == list(distilled.class_names)
    assert json.loads(str(content["description"]))["fingerprint"] == distilled.fingerprint
    pixels = torch.rand(5, 1, 8, 8)
    if distilled.zca is not None:
        rows = (pixels.numpy() - np.asarray(content["zca_mean"])).reshape(5, -1)
        ours = rows @ np.asarray(content["zca_matrix"])
    else:
        mean, std = (np.asarray(content[name]).reshape(-1, 1, 1) for name in ("mean", "std"))
        ours = ((pixels.numpy() - mean) / std).reshape(5, -1)
    expected = distilled.preprocessing.apply(pixels).flatten(1).numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_arrays_of_numpy(file, distilled, tmp_path) -> None:
    export(ExportConfig(file=file, to="npz", out=tmp_path / "d.npz"))
    with np.load(tmp_path / "d.npz", allow_pickle=False) as content:
        check(dict(content), distilled)


def test_tensors(file, distilled, tmp_path) -> None:
    export(ExportConfig(file=file, to="torch", out=tmp_path / "d.pt"))
    content = torch.load(tmp_path / "d.pt", weights_only=True)
    check(content, distilled)
    dataset = torch.utils.data.TensorDataset(content["images"], content["labels"])
    assert torch.equal(dataset[1][0], distilled.images[1])


@pytest.mark.parametrize("form", ["npz", "torch"])
def test_same_set_same_bytes(file, tmp_path, form) -> None:
    suffix = {"npz": ".npz", "torch": ".pt"}[form]
    first, second = (tmp_path / f"{name}{suffix}" for name in "ab")
    for path in (first, second):
        export(ExportConfig(file=file, to=form, out=path))
    assert first.read_bytes() == second.read_bytes()


# --- what is refused


@pytest.mark.parametrize("form", ["imagefolder", "huggingface", "npz", "torch"])
def test_nothing_is_written_over(file, tmp_path, form) -> None:
    out = tmp_path / "out.npz" if form == "npz" else tmp_path / "out.pt"
    out.write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        export(ExportConfig(file=file, to=form, out=out))
    assert out.read_text() == "mine"


@pytest.mark.parametrize(("form", "suffix"), [("npz", ".npz"), ("torch", ".pt")])
def test_the_name_of_the_file_says_what_it_is(form: str, suffix: str) -> None:
    with pytest.raises(UserError, match=rf"named \*{suffix} for --to {form}, but is out"):
        ExportConfig(file=Path("d"), to=form, out=Path("out"))


def test_a_class_name_stays_in_its_folder(tmp_path: Path, data: str) -> None:
    """Names come from files; they must not lead elsewhere, nor break the card's YAML."""
    yaml = pytest.importorskip("yaml")
    dataset = load_dataset(data)
    names = ("../../evil", "/etc/passwd", 'a": b\n---')
    sound = Artifact(
        images=torch.zeros(3, 1, 8, 8),
        labels=torch.arange(3),
        label_kind="index",
        lr=0.1,
        mean=dataset.mean,
        std=dataset.std,
        dsa="none",
        network=networks.specify("mlp:width=2", 1, 3, 8),
        class_names=names,
        dataset_name="x",
        dataset_fingerprint="0",
        ipc=1,
        recipe={},
        seed=0,
        versions={},
    )
    artifact.save(tmp_path / "d.safetensors", sound)
    config = ExportConfig(file=tmp_path / "d.safetensors", to="huggingface", out=tmp_path / "out")
    export(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.safetensors", "out"]
    assert len([*(tmp_path / "out" / "train").glob("*/*.png")]) == 3
    head = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)[1]
    found = yaml.safe_load(head)["configs"][0]["features"][1]["dtype"]["class_label"]["names"]
    assert tuple(found.values()) == names


# --- the commands


def test_the_commands(file, distilled, tmp_path, capsys) -> None:
    assert main(["export", str(file), "--to", "npz", "--out", str(tmp_path / "d.npz")]) == 0
    assert f"{tmp_path / 'd.npz'}: 6 images of 3 classes" in capsys.readouterr().out
    assert main(["convert", str(file), "--out", str(tmp_path / "set")]) == 0
    assert "images.pt, labels.pt and lr.pt" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "set"), "--out", str(tmp_path / "x")]) == 2
    assert "also give --data" in capsys.readouterr().err
