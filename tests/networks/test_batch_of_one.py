"""A batch of one image, on which batch norm of one pixel cannot be trained, is found beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trajmatch import artifact, networks
from trajmatch.distill import DistillConfig, distill
from trajmatch.distill.problem import prepare
from trajmatch.errors import UserError
from trajmatch.evaluate import EvalConfig, evaluate_artifact
from trajmatch.experts import ExpertConfig, Store, train_experts

#: Its last features are one pixel for images of 8 pixels.
PIXEL = "resnet18:batch,width=2"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """33 training images of 8 pixels in three classes."""
    path, labels = tmp_path_factory.mktemp("data") / "data.npz", np.arange(33) % 3
    noise = np.random.default_rng(0).integers(0, 100, (33, 8, 8, 1))
    images = (noise + 50 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return f"npz:{path}"


def experts(data: str, out: Path, **settings: Any) -> Store:
    small = {"num_experts": 1, "epochs": 1, "batch_size": 15, "workers": 1, "network": PIXEL}
    return train_experts(ExpertConfig(**{"out": out, "data": data, **small, **settings}))


@pytest.fixture(scope="module")
def store(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return experts(data, tmp_path_factory.mktemp("experts") / "store").path


def configuration(store: Path, out: Path, **settings: Any) -> DistillConfig:
    small = {"iterations": 1, "student_steps": 1, "expert_epochs": 1, "lr_img": 1.0}
    return DistillConfig(**{"experts": store, "out": out, **small, **settings})


@pytest.mark.parametrize(
    ("count", "size", "fits"),
    [(33, 16, False), (33, 15, True), (33, None, True), (33, 40, True), (33, 1, False)],
)
def test_only_a_batch_of_one_is_refused(count: int, size: int | None, fits: bool) -> None:
    model = networks.build(networks.specify(PIXEL, 1, 3, 8))
    if fits:
        networks.check_batches(model, count, size, "--size")
        return
    with pytest.raises(ValueError, match=rf"--size {size} .* image \(of {count}\), .* --size \d+$"):
        networks.check_batches(model, count, size, "--size")
    alone = networks.build(networks.specify("convnet:batch,width=2,depth=1", 1, 3, 8))
    networks.check_batches(alone, count, size, "--size")


def test_experts_say_so_before_anything_is_written(data: str, tmp_path: Path) -> None:
    message = r"--batch-size 16 leaves .* a single image \(of 33\), .* e\.g\. --batch-size 15$"
    with pytest.raises(UserError, match=message):
        experts(data, tmp_path / "store", batch_size=16)
    assert not (tmp_path / "store").exists()
    # Images that are held out do not count: 24 are left.
    experts(data, tmp_path / "store", batch_size=16, holdout=0.25)
    with pytest.raises(UserError, match=r"a single image \(of 24\)"):
        experts(data, tmp_path / "other", batch_size=23, holdout=0.25)


def test_networks_that_train_on_one_image_still_do(data: str, tmp_path: Path) -> None:
    plain = {"network": "convnet", "norm": "batch", "width": 2, "depth": 1}
    assert experts(data, tmp_path / "store", batch_size=16, **plain).missing() == []


def test_distillations_say_so_before_the_first_step(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.safetensors"
    with pytest.raises(UserError, match=r"^--batch-syn 2 .* image \(of 3\), .* --batch-syn 3$"):
        distill(configuration(store, out, batch_syn=2))
    with pytest.raises(UserError, match=r"^the batch size of --eval-protocol, 128 .* \(of 129\)"):
        distill(configuration(store, out, ipc=43, init="noise", eval_every=1, eval_protocol="datm"))
    assert not [*tmp_path.iterdir()]


def test_evaluations_say_so_before_the_first_network(
    data: str, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "d.safetensors"
    problem = prepare(configuration(store, out, ipc=2))
    artifact.save(out, problem.artifact(problem.initial_state()))
    small = {"file": out, "data": data, "seeds": 1, "epochs": 1, "batch_size": 16}
    small["random_baseline"] = False
    trained: list[int] = []

    class Progress:
        def update(self, done: int, **numbers: float) -> None:
            trained.append(done)

    with pytest.raises(UserError, match=r"--batch-size 16 .* image \(of 33\), .* --batch-size 15"):
        evaluate_artifact(EvalConfig(**small, whole_real=True), Progress())
    assert trained == []
    # Two steps do not come to the last batch.
    steps = {**small, "epochs": None, "equal_steps": 2}
    assert evaluate_artifact(EvalConfig(**steps, whole_real=True))["whole_real"]["seeds"] == 1
