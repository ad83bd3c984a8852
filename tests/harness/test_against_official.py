"""benchmarks/against_official.py, with a small program of our own in place of a published one."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import against_official as program
import numpy as np
import pytest
import torch
from official.recorder import dsa_rows
from official.runs import program_of
from torch.nn.functional import affine_grid, grid_sample

from trajmatch import files, ops
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, Store, train_experts

pytestmark = pytest.mark.harness

PUBLISHED = Path(__file__).parent / "published"


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two experts of ten classes of noise, of one colour each."""
    folder, draw = tmp_path_factory.mktemp("experts"), np.random.default_rng(0)
    labels = np.arange(40) % 10
    pixels = draw.integers(0, 100, (40, 32, 32, 3), dtype=np.uint8)
    pixels += (15 * labels[:, None, None, None]).astype(np.uint8)
    parts = {"x_train": pixels[:20], "y_train": labels[:20]}
    np.savez(folder / "data.npz", **parts, x_test=pixels[20:], y_test=labels[20:])
    uri = f"npz:{folder / 'data.npz'}"
    config = ExpertConfig(
        out=folder / "store", data=uri, width=32, num_experts=2, epochs=5, batch_size=5, workers=1
    )
    return train_experts(config)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learn the step size slowly: on so few images its gradient is large."""
    monkeypatch.setitem(program.SETTINGS, "lr_lr", 1e-9)


def run(experts: Store, checkout: Path, record: Path) -> int:
    return program.main([str(checkout), f"--experts={experts.path}", "--quick", f"--out={record}"])


def test_a_program_that_computes_the_same(experts: Store, tmp_path: Path, capsys) -> None:
    assert run(experts, PUBLISHED, tmp_path / "record.json") == 0
    record = files.read_json(tmp_path / "record.json")
    assert record["program"] == "MTT"
    differences = record["exact"]["differences"]
    assert {*differences} == {
        "loss",
        "gradient of images",
        "gradient of step_size",
        "images after 2 iterations",
        "step_size after 2 iterations",
        "network after 5 epochs",
    }
    assert max(differences.values()) < 1e-12
    accuracy = record["exact"]["accuracy"]
    assert accuracy["published"] == pytest.approx(accuracy["trajmatch"])
    course = record["course"]
    assert course["ratio"] == course["seconds"]["published"] / course["seconds"]["trajmatch"] > 0
    by = course["accuracy_of_set_by_evaluation"]
    assert all(len(each[name]) == 1 for each in by.values() for name in ("published", "trajmatch"))
    assert "gradient of images: relative difference" in capsys.readouterr().out


def test_a_program_that_computes_something_else(experts: Store, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(PUBLISHED, checkout)
    script = checkout / "distill.py"
    script.write_text(
        script.read_text().replace("/ (start - target)", "/ 1.001 / (start - target)")
    )
    assert run(experts, checkout, tmp_path / "record.json") == 1
    differences = files.read_json(tmp_path / "record.json")["exact"]["differences"]
    assert differences["loss"] == pytest.approx(0.001, rel=1e-2)


CONSTANTS = SimpleNamespace(
    prob_flip=0.5,
    ratio_scale=1.2,
    ratio_rotate=15.0,
    ratio_cutout=0.5,
    brightness=1.0,
    saturation=2.0,
    contrast=0.5,
)


@pytest.mark.parametrize("group", ["scale", "rotate"])
def test_sampled_augmentations_are_those_of_grid_sample(group: str) -> None:
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    draws = [torch.rand(4, dtype=torch.float64) for _ in range(2 if group == "scale" else 1)]
    zero = torch.zeros(4, dtype=torch.float64)
    if group == "scale":
        across, down = (each * (1.2 - 1 / 1.2) + 1 / 1.2 for each in draws)
        theta = [across, zero, zero, zero, down, zero]
    else:
        angle = (draws[0] - 0.5) * 2 * 15 / 180 * math.pi
        theta = [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero]
    grid = affine_grid(torch.stack(theta, 1).view(4, 2, 3), [4, 3, 8, 8], align_corners=True)
    wanted = grid_sample(images, grid, align_corners=True)
    rows = dsa_rows(group, draws, CONSTANTS, images.shape[2:])
    torch.testing.assert_close(ops.dsa(images, rows), wanted)


def test_crop_and_cutout_are_those_of_indices() -> None:
    images = torch.rand(1, 1, 4, 4, dtype=torch.float64) + 1
    shifted = dsa_rows("crop", [torch.tensor([1]), torch.tensor([0])], CONSTANTS, images.shape[2:])
    found = ops.dsa(images, shifted)
    assert torch.equal(found[0, 0, :3], images[0, 0, 1:]) and not found[0, 0, 3].any()
    centre = [torch.tensor([0]), torch.tensor([3])]
    found = ops.dsa(images, dsa_rows("cutout", centre, CONSTANTS, images.shape[2:]))
    cut = [(int(y), int(x)) for y, x in (found[0, 0] == 0).nonzero()]
    assert cut == [(0, 2), (0, 3)]  # a square of 2 x 2 that begins above the image


def test_batches_are_taken_from_the_end() -> None:
    permutations = [torch.arange(5), torch.arange(5, 10)]
    batches = [each.tolist() for each in program._batches(permutations, 2, 4)]
    assert batches == [[4], [2, 3], [0, 1], [9]]


def test_a_folder_without_a_program(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"should be a checkout with .* distill\.py \(MTT\)"):
        program_of(tmp_path)


def test_a_network_that_they_have_no_name_for(experts: Store, tmp_path: Path) -> None:
    config = ExpertConfig(
        out=tmp_path / "store",
        data=experts.manifest["data"],
        width=4,
        num_experts=1,
        epochs=1,
        batch_size=5,
        workers=1,
    )
    with pytest.raises(UserError, match="width 32, 64, 128 or 256"):
        program.model_name(train_experts(config))


@pytest.mark.parametrize("method", ["mtt", "datm"])
def test_the_page_has_the_numbers_of_the_record(method: str) -> None:
    root = Path(program.__file__).parent
    page = (root.parent / "docs" / "comparison.md").read_text().partition("## Beside the published")
    record = files.read_json(root / "results" / f"against_{method}.json")
    assert max(record["exact"]["differences"].values()) < 1e-14
    for difference in record["exact"]["differences"].values():
        assert difference == 0 or f" {difference:.1e} " in page[2]
    course = record["course"]
    first, second = course["seconds"]["published"], course["seconds"]["trajmatch"]
    assert f"| {first:.3f} | {second:.3f} ({course['ratio']:.1f}x) |" in page[2]
    for ends in course["losses"].values():
        assert f" {ends[0]:.3f}, {ends[1]:.3f} " in page[2]
    for by in course["accuracy_of_set_by_evaluation"].values():
        assert all(f" {fmean(each):.1f} " in page[2] for each in by.values())
