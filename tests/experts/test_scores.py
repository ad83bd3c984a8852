"""Difficulty of the images: EL2N scores, PAD's curriculum and SelMatch's choice by them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trajmatch import interruption, networks
from trajmatch.cli.main import main
from trajmatch.data import load_dataset
from trajmatch.distill.config import DistillConfig
from trajmatch.distill.initialise import from_difficulty
from trajmatch.distill.loop import distill
from trajmatch.distill.problem import prepare
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, train_experts
from trajmatch.experts.config import Schedule, ScoreConfig
from trajmatch.experts.epoch import Curriculum
from trajmatch.experts.scores import Scores, path_beside, read_scores, score_images

MakeConfig = Callable[..., ExpertConfig]
Contents = Callable[[Path], dict[str, bytes]]
NO_HOLDOUT = 0.0, 0
BATCH_NORM = {"network": "resnet18:batch,width=4", "width": 128, "depth": 3}


@pytest.fixture
def scores_file(tmp_path: Path) -> Path:
    """Scores of the user's: the number of an image is its difficulty, but 1 is the hardest."""
    values = np.arange(36.0)
    values[1] = 99
    np.save(tmp_path / "mine.npy", values)
    return tmp_path / "mine.npy"


# --- EL2N


@pytest.mark.parametrize("settings", [{}, {"zca": True}, {"norm": "batch"}])
def test_el2n_is_the_mean_distance_of_the_probabilities(
    make_config: MakeConfig, settings: dict[str, Any]
) -> None:
    store = train_experts(make_config(epochs=3, holdout=0.25, **settings))
    dataset = load_dataset(make_config().data)
    result = score_images(ScoreConfig(store=store.path))
    assert (result["epoch"], result["experts"]) == (1, 2)
    seen, _, _ = store.training_set(dataset)
    model, distances = networks.build(store.manifest["network"]).double().eval(), []
    for expert in range(2):
        store.load_into(model, expert, 1)
        with torch.no_grad():
            found = model(seen.normalise(seen.train_images).double()).softmax(1)
        wanted = torch.eye(3, dtype=torch.float64)[seen.train_labels]
        distances.append((found - wanted).square().sum(1).sqrt())
    scores = read_scores(path_beside(store.path), dataset, (0.25, 0), store=store)
    wanted = (distances[0] + distances[1]) / 2
    torch.testing.assert_close(scores.values, wanted, rtol=0, atol=2e-6)


def test_the_command_tells_what_it_took(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = train_experts(make_config())
    assert main(["score", str(store.path), "--quiet"]) == 0
    assert "averaged over 2 experts after epoch 1" in capsys.readouterr().out
    again = ["--out", str(tmp_path / "s.safetensors"), "--experts", "1", "--epoch", "2", "--json"]
    assert main(["score", str(store.path), *again]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == {"file": again[1], "dataset": "tiny", "epoch": 2, "experts": 1}


def test_scores_that_do_not_fit(
    make_config: MakeConfig, other_data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = train_experts(make_config()), tmp_path / "x.safetensors"
    score_images(ScoreConfig(store=store.path))
    dataset, file = load_dataset(make_config().data), path_beside(store.path)
    for wrong, message in (
        ({}, "already exists"),
        ({"out": out, "experts": 3}, "experts 3 is more than .* has: 2"),
        ({"out": out, "epoch": 7}, "epochs 0-2, but 7"),
        ({"out": out, "data": other_data}, "other images"),
        ({"out": out, "experts": 0}, "experts should be a whole number of at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            score_images(ScoreConfig(store=store.path, **wrong))
    with pytest.raises(UserError, match=rf"{file} were computed for npz:.*tiny.*other.npz holds"):
        read_scores(file, load_dataset(other_data), NO_HOLDOUT, other_data)
    other = train_experts(make_config(out=tmp_path / "other", seed=1))
    with pytest.raises(UserError, match=rf"{file} was computed with other experts than .*other"):
        read_scores(file, dataset, NO_HOLDOUT, store=other)
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.arange(35.0), r"each of the 36 training images of tiny.*\[35\] of float64"),
        (np.full(36, np.nan), "a finite number for each.*holds 36 that are not finite"),
        (np.array(["a"] * 36), "<U1"),
        (np.array([None] * 36), "is damaged or not a .npy file"),
    ],
)
def test_a_users_scores_that_cannot_be_used(
    tiny_data: str, tmp_path: Path, content: Any, message: str
) -> None:
    np.save(tmp_path / "mine.npy", content)
    with pytest.raises(UserError, match=message):
        read_scores(tmp_path / "mine.npy", load_dataset(tiny_data), NO_HOLDOUT)


def test_a_users_scores_of_any_type_are_the_same(
    tiny_data: str, tmp_path: Path, scores_file: Path
) -> None:
    values = np.load(scores_file)
    np.save(tmp_path / "a.npy", values.astype(np.int16))
    (tmp_path / "bad.npy").write_bytes(b"no")
    np.savez(tmp_path / "a.npz", scores=values)
    (tmp_path / "a.npz").rename(tmp_path / "zip.npy")
    save_file({"c-score": torch.from_numpy(values)}, tmp_path / "a.safetensors")
    dataset = load_dataset(tiny_data)
    found = [read_scores(path, dataset, NO_HOLDOUT) for path in (scores_file, tmp_path / "a.npy")]
    assert found[0].fingerprint == found[1].fingerprint
    assert all(each.values.tolist() == values.tolist() for each in found)
    for name, message in (
        ("bad.npy", "is damaged"),
        ("zip.npy", "is damaged or not a .npy file"),
        (
            "a.safetensors",
            "should be a .npy file .*a.safetensors is .* not one that trajmatch wrote",
        ),
        ("none.npy", "--scores: there is no .*none.npy; `trajmatch score STORE`"),
    ):
        with pytest.raises(UserError, match=message):
            read_scores(tmp_path / name, dataset, NO_HOLDOUT)


# --- PAD's curriculum


def test_the_schedule_is_that_of_pads_settings() -> None:
    schedule = Schedule.parse("0.75,20", "40:0.1,60:0.2")
    whole = (0.0, 1.0)
    assert [schedule.part(epoch) for epoch in (0, 10, 20, 40)] == [
        (0, 0.75),
        (0, 0.875),
        whole,
        whole,
    ]
    assert [schedule.part(epoch) for epoch in (41, 60, 61, 99)] == [
        (0.1, 1),
        (0.1, 1),
        (0.2, 1),
        (0.2, 1),
    ]


def test_each_class_is_cut_by_itself(tiny_data: str) -> None:
    dataset = load_dataset(tiny_data)  # 12 of each class, in turn
    curriculum = Curriculum(
        Schedule.parse("0.25,2", "2:0.5"), dataset, Scores(-torch.arange(36.0), "")
    )
    sizes = [torch.bincount(dataset.train_labels[curriculum.images(e)]).tolist() for e in range(4)]
    assert sizes == [[3] * 3, [7] * 3, [12] * 3, [6] * 3]
    assert sorted(curriculum.images(0).tolist()) == list(range(27, 36))
    assert sorted(curriculum.images(3).tolist()) == list(range(18))


def test_experts_of_a_curriculum_are_the_same_in_every_way(
    make_config: MakeConfig, tmp_path: Path, contents: Contents, scores_file: Path, stop_at: Any
) -> None:
    settings = dict(epochs=4, curriculum="0.4,2", drop_easy="2:0.5", scores=scores_file, dsa="none")
    whole = train_experts(make_config(out=tmp_path / "whole", **settings))
    recipe = whole.manifest["recipe"]
    assert {"curriculum", "drop_easy", "scores"} <= recipe.keys()
    plain = train_experts(make_config(out=tmp_path / "plain", epochs=4, dsa="none"))
    assert not {"curriculum", "drop_easy", "scores"} & plain.manifest["recipe"].keys()
    assert not torch.equal(plain.snapshot(0, 1), whole.snapshot(0, 1))
    train_experts(make_config(out=tmp_path / "two", workers=2, **settings))
    assert contents(tmp_path / "two") == contents(tmp_path / "whole")
    stop_at(3)  # inside the second epoch
    with pytest.raises(interruption.Interrupted):
        train_experts(make_config(resume=True, **settings))
    train_experts(make_config(resume=True, **settings))
    assert contents(make_config().out) == contents(tmp_path / "whole")
    np.save(tmp_path / "other.npy", np.arange(36))
    other = make_config(resume=True, **{**settings, "scores": tmp_path / "other.npy"})
    with pytest.raises(UserError, match=r"was made with recipe.scores = "):
        train_experts(other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curriculum": "0.5"}, "curriculum should be IR,AEE: a fraction"),
        ({"curriculum": "0,5"}, "curriculum should be IR,AEE: a fraction"),
        ({"curriculum": "nan,5"}, "curriculum should be IR,AEE: a fraction"),
        (
            {"curriculum": "0.5,0"},
            r"curriculum should be IR,AEE: a fraction.*: Expected `int` >= 1",
        ),
        ({"drop_easy": "40"}, r"--drop-easy should be E:R.*, but is 40: Expected"),
        ({"drop_easy": "1:0.1"}, "limited to epochs below 1, the last epoch of --epochs 2"),
        ({"drop_easy": "4:1"}, "--drop-easy should be E:R"),
        ({"drop_easy": "6:0.1,4:0.2"}, "should ascend"),
        (
            {"curriculum": "0.5,5", "drop_easy": "4:0.2"},
            "ascend, from 5 on, the first epoch that sees all images",
        ),
        (
            {"curriculum": "0.5,5", "scores": None},
            "need the difficulty of the images",
        ),
        ({}, "--scores needs one of them"),
        ({"curriculum": "0.05,5"}, r"leaves no image of class '0' \(it has 12\)"),
        (
            {"curriculum": "0.25,1", "batch_size": 8, **BATCH_NORM},
            r"a single image \(of 9\)",
        ),
    ],
)
def test_curricula_that_cannot_be(
    make_config: MakeConfig, scores_file: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_experts(make_config(**{"scores": scores_file, **settings}))
    assert not make_config().out.exists()


# --- SelMatch's choice


def test_the_hardest_are_left_out_and_the_next_taken_in_order(
    tiny_data: str, scores_file: Path
) -> None:
    dataset = load_dataset(tiny_data)
    scores = read_scores(scores_file, dataset, NO_HOLDOUT).values
    found = from_difficulty(dataset, 3, scores, 0.5)  # the first of each class is left out
    wanted = [30, 27, 24, 34, 31, 28, 32, 29, 26]
    assert torch.equal(found.images, dataset.normalise(dataset.train_images[wanted]))
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with pytest.raises(
        UserError, match=r"leaves out the hardest 18 images .* class '0' has only 12"
    ):
        from_difficulty(dataset, 6, scores, 3)


def test_a_distillation_begins_with_them(
    make_config: MakeConfig, tmp_path: Path, scores_file: Path
) -> None:
    store = train_experts(make_config())
    out, small = tmp_path / "d.safetensors", dict(iterations=1, student_steps=1, expert_epochs=1)

    def config(**settings: Any) -> DistillConfig:
        settings = {"init": "difficulty", "experts": store.path, "out": out, **small, **settings}
        return DistillConfig(**settings)

    with pytest.raises(UserError, match=r"there is no .*store.scores.safetensors"):
        distill(config())
    assert not out.exists()
    score_images(ScoreConfig(store=store.path))
    identity = prepare(config()).identity
    assert identity["init"] == "difficulty" and "init_beta" not in identity
    assert identity["scores"] == prepare(config()).scores.fingerprint
    assert identity["scores"] != prepare(config(scores=scores_file)).identity["scores"]
    assert "scores" not in prepare(config(init="real")).identity
    distilled = distill(config(scores=scores_file, init_beta=1.0, lr_img=0.0))
    dataset = load_dataset(make_config().data)
    assert torch.equal(distilled.images, dataset.normalise(dataset.train_images[[30, 34, 32]]))
    for wrong in ({"init": "real", "init_beta": 1.0}, {"init": "real", "scores": scores_file}):
        with pytest.raises(UserError, match="applies only to --init difficulty"):
            config(**wrong)
