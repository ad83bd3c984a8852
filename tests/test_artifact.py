"""The distilled file: what it keeps, what it refuses, and what can be done with it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import trajmatch
from trajmatch import artifact, files, networks
from trajmatch.artifact import Artifact, log_probabilities
from trajmatch.data import ChannelNormalisation, load_dataset, zca
from trajmatch.errors import UserError

NETWORK = networks.ConvNet(3, 4, image_size=8, width=4, depth=1).spec()
NAN, INF = float("nan"), float("inf")


def fields(**changes: object) -> dict[str, object]:
    """The arguments of a sound artifact, with some changed."""
    return {
        "images": torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        "labels": torch.arange(4).repeat_interleave(2),
        "label_kind": "index",
        "lr": 0.0123,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.25, 0.3),
        "dsa": "flip_crop",
        "network": NETWORK,
        "class_names": ("T-shirt/top", "caf\u00e9 au lait", "..", "ship"),
        "dataset_name": "things",
        "dataset_fingerprint": "ab" * 32,
        "ipc": 2,
        "recipe": {"lr_img": 100.0, "batch_syn": None},
        "seed": 3,
        "versions": {"trajmatch": "0", "torch": "0"},
        "scores": ({"mean": 71.5, "protocol": {"epochs": 10}},),
        "selection": "last",
        **changes,
    }


@pytest.fixture
def distilled() -> Artifact:
    return Artifact(**fields())


@pytest.fixture
def path(tmp_path: Path, distilled: Artifact) -> Path:
    artifact.save(tmp_path / "d.safetensors", distilled)
    return tmp_path / "d.safetensors"


def rewrite(path: Path, tensors: dict | None = None, **metadata: object) -> None:
    """Changes tensors and description behind the artifact's back."""
    old_tensors, old_metadata = files.load_tensors(path)
    files.save_tensors(
        path, {**old_tensors, **(tensors or {})}, {**old_metadata, **metadata}, allow_nonfinite=True
    )


def test_load_gives_back_what_was_saved(path, distilled) -> None:
    loaded = trajmatch.load(path)
    for name, value in fields().items():
        found = getattr(loaded, name)
        same = torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
        assert same, name
    assert loaded.fingerprint == distilled.fingerprint


def test_same_set_same_bytes(path, distilled, tmp_path) -> None:
    artifact.save(tmp_path / "again", Artifact(**fields()))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    artifact.save(tmp_path / "again", trajmatch.load(path))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "change",
    [{"lr": 0.0124}, {"images": torch.zeros(8, 3, 8, 8)}, {"recipe": {}}, {"scores": ()}],
)
def test_fingerprint_covers_everything(distilled, change) -> None:
    assert Artifact(**fields(**change)).fingerprint != distilled.fingerprint


def test_pixels_are_in_the_file_with_the_normalisation_undone(path, distilled) -> None:
    pixels = files.load_tensors(path)[0]["pixels"]
    assert pixels.dtype == torch.uint8
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (distilled.mean, distilled.std))
    expected = ((distilled.images * std + mean).clamp(0, 1) * 255).round()
    assert (pixels - expected).abs().max() <= 1
    assert torch.equal(pixels, distilled.pixels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(8, 3, 8, 8, dtype=torch.float64)}, "dtype should be float32"),
        ({"images": torch.zeros(8, 8, 8)}, r"shape should be \[n, C, H, W\]"),
        ({"images": torch.zeros(0, 3, 8, 8)}, "shape should be"),
        ({"images": torch.full((8, 3, 8, 8), NAN)}, "finite"),
        ({"images": torch.zeros(8, 1, 8, 8)}, "mean should be 1 numbers"),
        ({"images": torch.zeros(8, 3, 9, 9)}, "network's image_size should be 9, but is 8"),
        ({"labels": torch.arange(7)}, r"labels' shape should be \[8\]"),
        ({"labels": torch.arange(8)}, "every label should be from 0 to 3, but is from 0 to 7"),
        ({"labels": torch.arange(8) - 1}, "from -1 to 6"),
        ({"labels": torch.zeros(8)}, "labels' dtype should be int64"),
        ({"labels": torch.zeros(8, 3), "label_kind": "logit"}, r"should be \[8, 4\]"),
        ({"labels": torch.full((8, 4), INF), "label_kind": "logit"}, "finite"),
        ({"label_kind": "probability"}, "one of index, logit, target, but is 'probability'"),
        ({"lr": 0.0}, "lr should be a finite number above 0, but is 0.0"),
        ({"lr": NAN}, "lr should be a finite number above 0"),
        ({"mean": (0.1, 0.2)}, "mean should be 3 numbers"),
        ({"mean": (0.1, 0.2, "x")}, "mean should be a list, each a finite number"),
        ({"std": (0.1, 0.0, 0.1)}, "std should be a list, each a finite number above 0"),
        ({"std": (0.1, INF, 0.1)}, "std should be a list, each a finite number above 0"),
        ({"dsa": "flip_swirl"}, "swirl"),
        ({"network": {**NETWORK, "num_classes": 5}}, "network's num_classes should be 4"),
        ({"network": {**NETWORK, "norm": "bath"}}, "cannot be built"),
        ({"network": {}}, "cannot be built"),
        ({"class_names": ()}, "class_names should be a list of one or more"),
        (
            {"class_names": ("a", "b", "c", 4)},
            "class_names should be a list of one or more",
        ),
        ({"ipc": 0}, "ipc should be a whole number of at least 1"),
        ({"scores": (71.5,)}, "scores should be a list, each a section"),
        ({"selection": "best"}, "holdout, last, test-max, but is 'best'"),
    ],
)
def test_refuses_what_does_not_fit(change, message) -> None:
    with pytest.raises(UserError, match=message):
        Artifact(**fields(**change))


def test_refuses_a_missing_file(tmp_path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        artifact.load(tmp_path / "nowhere")


def test_refuses_a_cut_file(path) -> None:
    whole = path.read_bytes()
    for length in (0, 3, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=str(path)):
            artifact.load(path)


@pytest.mark.parametrize("content", [b"", b"hello" * 100, b"\x80\x04\x95" + bytes(50)])
def test_refuses_a_foreign_file(tmp_path, content) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path / "f")):
        artifact.load(tmp_path / "f")


def test_refuses_a_file_of_another_kind_and_says_which(tmp_path) -> None:
    files.save_tensors(tmp_path / "f", {"x": torch.zeros(1)}, {"format": "trajmatch something"})
    with pytest.raises(UserError, match="not a distilled set: its format is 'trajmatch something'"):
        artifact.load(tmp_path / "f")


def test_refuses_a_later_format(path) -> None:
    rewrite(path, format_version=99)
    with pytest.raises(UserError, match="format version 99"):
        artifact.load(path)


def test_refuses_a_changed_pixel(path) -> None:
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    images = json.loads(content[8 : 8 + header])["images"]["data_offsets"]
    content[8 + header + images[0]] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="does not match its checksum"):
        artifact.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": "0.01"},
        {"lr": None},
        {"lr": True},
        {"mean": 0.5},
        {"network": [1]},
        {"class_names": "abcd"},
        {"scores": {}},
        {"ipc": 2.5},
        {"seed": None},
        {"lr": 0.0124},
    ],
)
def test_refuses_a_changed_description(path, change) -> None:
    rewrite(path, **change)
    with pytest.raises(UserError, match="is damaged"):
        artifact.load(path)


@pytest.mark.parametrize(
    "tensors",
    [{"images": torch.full((8, 3, 8, 8), NAN)}, {"labels": torch.full((8,), 9)}],
)
def test_refuses_changed_tensors(path, tensors) -> None:
    rewrite(path, tensors)
    with pytest.raises(UserError, match="is damaged"):
        artifact.load(path)


@pytest.mark.parametrize("name", ["images", "labels", "pixels"])
def test_refuses_a_file_without_a_tensor(path, name) -> None:
    tensors, metadata = files.load_tensors(path)
    del tensors[name]
    files.save_tensors(path, tensors, metadata)
    with pytest.raises(UserError, match=f"has no '{name}'"):
        artifact.load(path)


def test_a_network_of_absurd_size_allocates_nothing() -> None:
    spec = {**NETWORK, "width": 10**9}
    with pytest.raises(UserError, match=r"take .* GB of memory, but .* are free; use a smaller"):
        Artifact(**fields(network=spec))


def test_unwritable_place(distilled, tmp_path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        artifact.save(tmp_path / "no" / "folder", distilled)


def test_probabilities_are_kept_as_their_logarithm(tmp_path) -> None:
    soft = torch.softmax(torch.randn(8, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    soft[0] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    made = Artifact(**fields(labels=log_probabilities(soft), label_kind="logit"))
    artifact.save(tmp_path / "soft", made)
    loaded = artifact.load(tmp_path / "soft")
    assert loaded.label_kind == "logit"
    torch.testing.assert_close(loaded.labels.softmax(dim=1), soft)
    assert torch.equal(loaded.hard_labels, soft.argmax(dim=1))


@pytest.mark.parametrize(
    "rows",
    [
        torch.tensor([[0.5, 0.6]]),
        torch.tensor([[1.5, -0.5]]),
        torch.tensor([[NAN, 1.0]]),
        torch.tensor([[1, 0]]),
        torch.tensor([0.5, 0.5]),
    ],
)
def test_refuses_what_is_no_probability(rows) -> None:
    with pytest.raises(UserError, match="probabilities should be"):
        log_probabilities(rows)


def test_dataset_goes_into_a_data_loader(distilled) -> None:
    loader = torch.utils.data.DataLoader(distilled.dataset(), batch_size=3)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [3, 3, 2]
    assert torch.equal(torch.cat([images for images, _ in batches]), distilled.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), distilled.labels)


@pytest.mark.parametrize("kind", ["index", "logit"])
def test_train_fits_the_set(kind) -> None:
    labels = fields()["labels"]
    given = labels if kind == "index" else torch.eye(4)[labels] * 10
    distilled = Artifact(**fields(dsa="none", lr=0.05, labels=given, label_kind=kind))

    def trained(seed: int) -> torch.nn.Module:
        model = networks.build(distilled.network)
        networks.initialise(model, torch.Generator().manual_seed(0))
        assert distilled.train(model, epochs=60, seed=seed) is model
        return model

    model = trained(0)
    assert torch.equal(model(distilled.images).argmax(dim=1), labels)
    assert torch.equal(networks.flat_parameters(model), networks.flat_parameters(trained(0)))


def test_train_takes_any_module(distilled) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4))
    before = networks.flat_parameters(model)
    distilled.train(model, epochs=2)
    assert not torch.equal(networks.flat_parameters(model), before)


def test_images_normalised_otherwise(distilled) -> None:
    assert distilled.images_preprocessed_by(distilled.preprocessing) is distilled.images
    plain = ChannelNormalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    images = distilled.images_preprocessed_by(plain)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (distilled.mean, distilled.std))
    torch.testing.assert_close(images, distilled.images * std + mean)


@pytest.fixture
def whitened() -> Artifact:
    """An artifact whose images are whitened ones of real pixels."""
    pixels = torch.randint(0, 256, (60, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    transform = zca.fit(pixels.to(torch.uint8))
    return Artifact(**fields(images=transform.apply(pixels[:8].to(torch.uint8)), zca=transform))


def test_whitening_is_in_the_file(whitened, tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    artifact.save(path, whitened)
    read = artifact.load(path)
    assert read.fingerprint == whitened.fingerprint
    assert read.preprocessing.same_as(whitened.zca) and read.zca is read.preprocessing
    assert torch.equal(read.images, whitened.images)
    tensors, metadata = files.load_tensors(path)
    assert metadata["format_version"] == 2  # older releases would normalise test images wrongly
    original = torch.randint(0, 256, (60, 3, 8, 8), generator=torch.Generator().manual_seed(1))[:8]
    assert (tensors["pixels"].int() - original).abs().max() <= 1
    artifact.save(tmp_path / "again.safetensors", read)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_without_whitening_the_file_is_of_the_first_version(path) -> None:
    tensors, metadata = files.load_tensors(path)
    assert metadata["format_version"] == 1
    assert "zca" not in metadata and tensors.keys() == {"images", "labels", "pixels"}


def test_damaged_whitening_is_found(whitened, tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    artifact.save(path, whitened)
    triangle = files.load_tensors(path)[0]["zca_triangle"]
    rewrite(path, {"zca_triangle": triangle * 1.01})
    with pytest.raises(UserError, match="does not match its checksum"):
        artifact.load(path)
    rewrite(path, {"zca_triangle": triangle[:5]})
    with pytest.raises(UserError, match="is damaged: a ZCA transform should have"):
        artifact.load(path)
    rewrite(path, zca="yes")
    with pytest.raises(UserError, match="is damaged: a ZCA transform should have"):
        artifact.load(path)
    small = zca.fit(torch.randint(0, 256, (9, 3, 4, 4)).to(torch.uint8))
    with pytest.raises(UserError, match=r"ZCA's images should be \[3, 8, 8\], but is"):
        Artifact(**fields(zca=small))


def test_whitened_images_for_another_preprocessing(whitened, distilled) -> None:
    assert whitened.images_preprocessed_by(whitened.zca) is whitened.images
    plain = ChannelNormalisation((0.0,) * 3, (1.0,) * 3)
    pixels = whitened.images_preprocessed_by(plain)
    torch.testing.assert_close(pixels, whitened.pixels / 255, rtol=0, atol=1 / 255)
    there = distilled.images_preprocessed_by(whitened.zca)
    torch.testing.assert_close(
        whitened.zca.invert(there),
        distilled.preprocessing.invert(distilled.images),
        rtol=0,
        atol=1e-4,
    )


def test_to_images_writes_one_png_each_in_the_order_of_the_classes(distilled, tmp_path) -> None:
    root = tmp_path / "out" / "images"
    distilled.to_images(root)
    folders = sorted(path.name for path in root.iterdir())
    assert folders == ["0_T-shirt_top", "1_caf_au_lait", "2_..", "3_ship"]
    for index, folder in enumerate(folders):
        pictures = sorted((root / folder).iterdir())
        assert [path.name for path in pictures] == ["0000.png", "0001.png"]
        for number, picture in enumerate(pictures):
            found = torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1)
            assert torch.equal(found, distilled.pixels[2 * index + number])


def test_to_images_never_writes_into_a_folder_that_holds_something(distilled, tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty"):
        distilled.to_images(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_score_is_added_to_a_copy(distilled) -> None:
    scored = distilled.with_score({"mean": 80.0})
    assert scored.scores == (*distilled.scores, {"mean": 80.0})
    assert len(distilled.scores) == 1


def test_what_holds_tensors_is_shown_in_a_line(distilled) -> None:
    dataset = load_dataset(None)
    whitening = zca.fit(dataset.train_images[:50, :, :8, :8])
    for each in (distilled, dataset, whitening):
        text = repr(each)
        assert len(text) < 160 and "tensor(" not in text and "\n" not in text
        assert text.startswith(f"<{type(each).__name__} of ") or dataset.name in text
    assert f"{len(distilled.images)} images" in repr(distilled)
