"""Whitened images all the way: experts, distillation, the file, its evaluation and its picture."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import each_network

from trajmatch import artifact, pictures
from trajmatch.cli.main import main
from trajmatch.data import load_dataset
from trajmatch.distill import distill
from trajmatch.distill.problem import prepare
from trajmatch.evaluate import EvalConfig, distilled, evaluate_artifact, train_fresh
from trajmatch.experts import ExpertConfig, Store, train_experts


@pytest.fixture(scope="session")
def whitened_store(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    out = tmp_path_factory.mktemp("experts") / "whitened"
    sizes = {"num_experts": 2, "epochs": 4, "batch_size": 8, "width": 4, "depth": 1}
    train_experts(
        ExpertConfig(out=out, data=data, zca=True, lr=0.05, workers=1, holdout=0.25, **sizes)
    )
    return out


def test_the_run_begins_with_whitened_real_images(configure, whitened_store, data) -> None:
    first = prepare(configure(experts=whitened_store)).initial_set()
    transform = Store.open(whitened_store).zca
    every = transform.apply(load_dataset(data).train_images)
    distance = (first.images[:, None] - every[None]).flatten(2).norm(dim=2).amin(dim=1)
    assert distance.max() < 1e-5


def test_the_file_carries_the_whitening(configure, whitened_store, data, tmp_path) -> None:
    chosen = {"select": "holdout", "eval_every": 5, "eval_epochs": 5, "eval_seeds": 1}
    config = configure(experts=whitened_store, lr_img=1.0, **chosen)
    result = distill(config)
    read = artifact.load(config.out)
    assert read.fingerprint == result.fingerprint
    transform = Store.open(whitened_store).zca
    assert read.preprocessing.same_as(transform)
    assert (read.pixels.double() / 255 - transform.invert(read.images).clamp(0, 1)).abs().max() < (
        0.5 / 255 + 1e-6
    )

    score = evaluate_artifact(EvalConfig(file=config.out, data=data, seeds=1, epochs=5))
    again = evaluate_artifact(EvalConfig(file=config.out, data=data, seeds=1, epochs=5))
    assert score == again and score["random_real"] is not None

    assert main(["show", str(config.out), "--clip", "unit", "--scale", "1"]) == 0
    expected = pictures.grid(
        transform.invert(read.images),
        read.hard_labels,
        read.class_names,
        pictures.Look(clip="unit", scale=1),
    )
    shown = np.array(Image.open(config.out.with_suffix(".png")))
    assert np.array_equal(shown, np.array(Image.open(io.BytesIO(expected))))


def test_test_images_are_whitened_by_the_file(
    configure: Callable, whitened_store, data, monkeypatch
) -> None:
    config = configure(experts=whitened_store, iterations=1)
    distill(config)
    seen = []

    def spy(images, labels, network, protocol, test_images, *rest):
        seen.append((test_images, images))
        return train_fresh(images, labels, network, protocol, test_images, *rest)

    monkeypatch.setattr(distilled, "train_networks", each_network(spy))
    evaluate_artifact(EvalConfig(file=config.out, data=data, seeds=1, epochs=1))
    transform = Store.open(whitened_store).zca
    dataset = load_dataset(data)
    expected = transform.apply(dataset.test_images)
    assert all(torch.equal(images, expected) for images, _ in seen)
    random_real = seen[1][1]
    every = transform.apply(dataset.train_images)
    nearest = (random_real[:, None] - every[None]).flatten(2).norm(dim=2).amin(dim=1)
    assert nearest.max() < 1e-5


def test_an_earlier_result_is_brought_into_the_whitening(
    configure, whitened_store, store, tmp_path
) -> None:
    plain = configure(iterations=1, out=tmp_path / "plain.safetensors")
    source = distill(plain)
    problem = prepare(configure(experts=whitened_store, init_from=plain.out))
    transform = Store.open(whitened_store).zca
    torch.testing.assert_close(
        transform.invert(problem.initial_set().images),
        source.preprocessing.invert(source.images),
        rtol=0,
        atol=1e-4,
    )


def test_forty_photographs_to_a_file_and_an_accuracy(tmp_path, capsys) -> None:
    """A user's own folder, one level deep, images of several sizes, no test images."""
    draw = np.random.default_rng(0)
    for level, name in ((60, "night"), (190, "noon")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            shape = (int(draw.integers(20, 40)), int(draw.integers(20, 40)), 3)
            pixels = (level + draw.integers(-50, 51, shape)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    uri, store, out = f"imagefolder:{tmp_path}/photos?size=16&test=0.25", "store", "d.safetensors"
    sizes = "--num-experts 1 --epochs 3 --width 4 --depth 2 --batch-size 8 --workers 1 --quiet"
    commands = [
        f"expert --data {uri} --out {tmp_path}/{store} --zca {sizes}",
        f"distill --experts {tmp_path}/{store} --out {tmp_path}/{out} --ipc 1 --iterations 2 "
        "--student-steps 2 --expert-epochs 1 --max-start-epoch 2 --lr-img 1 --quiet",
        f"eval {tmp_path}/{out} --data {uri} --seeds 1 --epochs 3 --quiet",
    ]
    for command in commands:
        assert main(command.split()) == 0
    assert "photos?size=16&test=0.25" in capsys.readouterr().out
