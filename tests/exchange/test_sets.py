"""Distilled sets of the papers' scripts: to one file and back, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trajmatch import artifact
from trajmatch.artifact import Artifact
from trajmatch.data import load_dataset
from trajmatch.errors import UserError
from trajmatch.exchange.config import ConvertConfig
from trajmatch.exchange.convert import convert

from .conftest import data_for

ORIGIN = {"network": "convnet:width=4,depth=1", "preprocessing": "data", "dsa": "flip_crop"}
LABELS = torch.arange(3).repeat_interleave(2)


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 1, 8, 8)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a set as the scripts do; returns its folder."""

    def write(suffix: str = "_best", **tensors: Any) -> Path:
        folder = tmp_path / "Normal"
        folder.mkdir(exist_ok=True)
        for name, content in tensors.items():
            torch.save(content, folder / f"{name}{suffix}.pt")
        return folder

    return write


@pytest.fixture
def read(tmp_path: Path, data: str) -> Callable[..., Artifact]:
    def read(source: Path, **flags: Any) -> Artifact:
        given = {"data": data, **ORIGIN, **flags}
        convert(ConvertConfig(source=source, out=tmp_path / "out.safetensors", **given))
        return artifact.load(tmp_path / "out.safetensors")

    return read


def test_an_ending_of_another_kind_of_file_is_warned_of(file, distilled, tmp_path, data) -> None:
    convert(ConvertConfig(source=file, out=tmp_path / "set"))
    kind = None if distilled.label_kind == "index" else distilled.label_kind
    given = {"data": data_for(kind, data), **ORIGIN, "preprocessing": "data", "labels": kind}
    with pytest.warns(UserWarning, match="out.pt will be a safetensors file"):
        convert(ConvertConfig(source=tmp_path / "set", out=tmp_path / "out.pt", **given))


# --- there and back


def test_a_distilled_set_comes_back_to_the_bit(file, distilled, tmp_path, read, data) -> None:
    made = convert(ConvertConfig(source=file, out=tmp_path / "set"))
    assert "images.pt, labels.pt and lr.pt of 6 images" in made
    kind = None if distilled.label_kind == "index" else distilled.label_kind
    preprocessing = "zca" if distilled.zca is not None else "data"
    given = {"data": data_for(kind, data), "labels": kind, "preprocessing": preprocessing}
    again = read(tmp_path / "set", **given)
    assert torch.equal(again.images, distilled.images)
    assert torch.equal(again.labels, distilled.labels)
    assert (again.label_kind, again.lr) == (distilled.label_kind, distilled.lr)
    assert again.preprocessing.same_as(distilled.preprocessing)
    for name in ("network", "dsa", "class_names", "dataset_name", "dataset_fingerprint", "ipc"):
        assert getattr(again, name) == getattr(distilled, name)


@pytest.mark.parametrize("labels", [LABELS, torch.randn(6, 3)])
def test_files_of_the_scripts_come_back_to_the_bit(write, read, tmp_path, labels) -> None:
    folder = write(images=images(), labels=labels, lr=torch.tensor(0.0123))
    read(folder, labels="logit" if labels.is_floating_point() else None)
    convert(ConvertConfig(source=tmp_path / "out.safetensors", out=tmp_path / "again"))
    for name in ("images", "labels", "lr"):
        first, second = (
            torch.load(path, weights_only=True)
            for path in (folder / f"{name}_best.pt", tmp_path / "again" / f"{name}.pt")
        )
        assert torch.equal(first, second) and first.dtype == second.dtype


@pytest.mark.parametrize(("kind", "other"), [("target", "logit"), ("logit", "target")])
def test_targets_and_data_with_targets_need_each_other(write, read, data, kind, other) -> None:
    folder = write(images=images(), labels=torch.randn(6, 3), lr=torch.tensor(0.01))
    with pytest.raises(UserError, match=r"--labels target needs --data with \?targets=NAME"):
        read(folder, labels=kind, data=data_for(other, data))


def test_labels_that_were_learned_are_read(write, read) -> None:
    """DATM saves labels that require a gradient."""
    labels = torch.randn(6, 3, requires_grad=True)
    folder = write(images=images(), labels=labels, lr=torch.tensor(0.01))
    assert torch.equal(read(folder, labels="logit").labels, labels.detach())


def test_probabilities_become_logits(write, read) -> None:
    rows = torch.rand(6, 3).softmax(1)
    folder = write(images=images(), labels=rows, lr=torch.tensor(0.01))
    torch.testing.assert_close(read(folder, labels="probability").labels.softmax(1), rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_of_other_precisions_become_those_of_float32(write, read, dtype) -> None:
    wanted, logits = images().to(dtype).float(), torch.randn(6, 3).to(dtype).float()
    folder = write(images=wanted.to(dtype), labels=logits.to(dtype), lr=torch.tensor(0.01))
    result = read(folder, labels="logit")
    assert torch.equal(result.images, wanted) and torch.equal(result.labels, logits)


def test_numbers_that_float32_does_not_have_are_rounded_with_a_warning(write, read) -> None:
    wanted = images().double() / 3
    folder = write(images=wanted, labels=LABELS[:, None], lr=torch.tensor(0.01))
    with pytest.warns(UserWarning, match=r"images_best\.pt holds numbers of torch\.float64, which"):
        result = read(folder)
    assert torch.equal(result.images, wanted.float())
    assert torch.equal(result.labels, LABELS)  # from a column


def test_one_set_of_several_is_given_by_its_images(write, read) -> None:
    wanted = images()
    write("_0", images=images(), labels=LABELS)
    folder = write("_1000", images=wanted, labels=LABELS)
    write("_zca_1000", images=images())
    with pytest.raises(UserError, match=r"several sets \(images_0.pt, images_1000.pt\)"):
        read(folder, lr=0.1)
    assert torch.equal(read(folder / "images_1000.pt", lr=0.1).images, wanted)


def test_statistics_of_the_flags_are_those_of_the_file(write, read) -> None:
    folder = write(images=images(), labels=LABELS, lr=torch.tensor(0.01))
    result = read(folder, preprocessing=None, mean=(0.4,), std=(0.3,))
    assert (result.mean, result.std) == ((0.4,), (0.3,))


def test_a_converted_set_says_what_it_is_of(write, read, data: str) -> None:
    folder = write(images=images(12), labels=LABELS.repeat_interleave(2), lr=torch.tensor(0.01))
    result = read(folder)
    assert result.ipc == 4
    assert result.dataset_fingerprint == load_dataset(data).fingerprint
    assert result.recipe["converted_from"] == "images"


# --- what the files do not say


def test_the_step_size_is_asked_for_where_there_is_no_file(write, read) -> None:
    folder = write(images=images(), labels=LABELS)
    with pytest.raises(UserError, match=r"also give --lr .* no lr_best\.pt"):
        read(folder)
    assert read(folder, lr=0.02).lr == 0.02


def test_the_kind_of_the_labels_is_asked_for(write, read) -> None:
    folder = write(images=images(), labels=torch.randn(6, 3), lr=torch.tensor(0.01))
    with pytest.raises(UserError, match=r"also give --labels .*logit, probability or target"):
        read(folder)


def test_everything_that_is_lacking_is_named_at_once(write, tmp_path: Path) -> None:
    folder = write(images=images(), labels=torch.randn(6, 3))
    with pytest.raises(UserError) as raised:
        convert(ConvertConfig(source=folder, out=tmp_path / "out.safetensors"))
    flags = ("--data", "--network", "--preprocessing", "--dsa", "--lr", "--labels", "--recipe")
    assert [flag for flag in flags if flag not in str(raised.value)] == []


def test_labels_are_asked_for(write, read) -> None:
    with pytest.raises(UserError, match=r"no labels beside it; put them there as labels_best.pt"):
        read(write(images=images()))


def test_a_copy_to_look_at_is_refused(write, read) -> None:
    folder = write("_zca_best", images=images(), labels=LABELS)
    with pytest.raises(UserError, match=r"copy for viewing.*images_best\.pt"):
        read(folder / "images_zca_best.pt")


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [1, 2]}, "images_best.pt should hold one tensor, but holds a list"),
        ({"images": images(7)}, r"holds 7 images, but .* at least one, for each of the 3 classes"),
        ({"images": torch.tensor(1.0)}, "holds 0 images"),
        ({"images": torch.zeros(1).expand(6, 1, 80, 80)}, "larger than the file"),
        ({"images": images().to(torch.uint8)}, "dtype should be float32"),
        ({"images": torch.randn(6, 3, 8, 8)}, "mean should be 3 numbers"),
        ({"images": torch.randn(6, 1, 9, 9)}, "network's image_size should be 9"),
        ({"images": images() / 0}, "finite"),
        ({"labels": LABELS + 1}, "every label should be from 0 to 2, but is from 1 to 3"),
        ({"labels": LABELS[:5]}, r"labels' shape should be \[6\]"),
        ({"labels": "text"}, "labels_best.pt should hold one tensor, but holds a str"),
        ({"lr": torch.tensor(-0.1)}, "positive number, but holds -0.1"),
        ({"lr": torch.tensor(float("nan"))}, "positive number, but holds nan"),
        ({"lr": torch.ones(2)}, r"holds tensor\(\[1"),
        ({"lr": torch.tensor(1)}, "positive number, but holds 1"),
        ({"lr": {}}, "holds {}"),
    ],
)
def test_wrong_content_is_refused_by_name(write, read, tmp_path, changes, message) -> None:
    content = {"images": images(), "labels": LABELS, "lr": torch.tensor(0.01), **changes}
    with pytest.raises(UserError, match=message):
        read(write(**content))
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"lr": 0.1}, "contains the learned step size; leave out --lr"),
        ({"labels": "logit"}, "holds class indices .*; leave out --labels"),
        ({"keep": "0-1"}, "is a distilled set of the papers' scripts: --keep does not apply"),
        ({"preprocessing": None}, "also give --preprocessing"),
    ],
)
def test_flags_that_do_not_fit(write, read, flags, message) -> None:
    with pytest.raises(UserError, match=message):
        read(write(images=images(), labels=LABELS, lr=torch.tensor(0.01)), **flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"mean": (0.5,)}, "belong together"),
        ({"mean": (0.5,), "std": (0.0,)}, "--std should be a list, each a finite number above 0"),
        ({"mean": (float("nan"),), "std": (1.0,)}, "--mean should be a list, each a finite"),
        ({"mean": (0.5,), "std": (1.0,), "preprocessing": "zca"}, "in place|take the place"),
        ({"lr": 0.0}, "--lr should be a finite number above 0"),
        ({"per_file": 0}, "--per-file should be a whole number of at least 1"),
    ],
)
def test_values_out_of_range(flags, message) -> None:
    with pytest.raises(UserError, match=message):
        ConvertConfig(source=Path("a"), out=Path("b"), **flags)


def test_nothing_is_written_over(file, tmp_path) -> None:
    with pytest.raises(UserError, match="already exists"):
        convert(ConvertConfig(source=file, out=file))
    with pytest.raises(UserError, match="already exists"):
        convert(ConvertConfig(source=file, out=tmp_path))


@pytest.mark.parametrize("name", ["nothing.pt", "data.npz", "folder"])
def test_what_is_none_of_the_kinds(tmp_path: Path, name: str) -> None:
    if "." in name:
        (tmp_path / name).write_bytes(b"x")
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="cannot be converted"):
        convert(ConvertConfig(source=tmp_path / name, out=tmp_path / "out"))
    with pytest.raises(UserError, match="there is no"):
        convert(ConvertConfig(source=tmp_path / "missing", out=tmp_path / "out"))


def test_a_folder_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"cannot read .*Permission denied"):
        convert(ConvertConfig(source=tmp_path, out=tmp_path / "out"))
