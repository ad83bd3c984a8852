"""Distillation for networks that regress target vectors (MKDT's setting)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from trajmatch import artifact, networks, ops
from trajmatch.cli.main import main
from trajmatch.data import load_dataset
from trajmatch.distill import DistillConfig, distill
from trajmatch.distill.objectives import Plan
from trajmatch.distill.parameters import LABELS, STEP_SIZE, leaves
from trajmatch.distill.problem import prepare
from trajmatch.errors import UserError
from trajmatch.evaluate import EvalConfig, evaluate_artifact
from trajmatch.experts import ExpertConfig, train_experts
from trajmatch.inference import measured
from trajmatch.protocol import Protocol
from trajmatch.random import derive_seed
from trajmatch.training import train_fresh

OUTPUTS = 5
Configure = Callable[..., DistillConfig]


@pytest.fixture(scope="session")
def target_store(tmp_path_factory: pytest.TempPathFactory, target_data: str) -> Path:
    path = tmp_path_factory.mktemp("experts") / "targets"
    small = {"num_experts": 2, "epochs": 4, "batch_size": 8, "lr": 0.05, "width": 4, "depth": 1}
    train_experts(ExpertConfig(out=path, data=target_data, workers=1, holdout=0.25, **small))
    return path


def test_the_result_has_the_targets_of_its_first_images(
    configure: Configure, target_store: Path, target_data: str
) -> None:
    config = configure(experts=target_store, ipc=2)
    problem = prepare(config)
    first = problem.initial_set()
    distilled = distill(config)
    assert distilled.label_kind == "target" and distilled.loss == "mse"
    assert (distilled.num_outputs, distilled.num_classes) == (OUTPUTS, 3)
    assert torch.equal(distilled.labels, first.labels) and distilled.labels.shape == (6, OUTPUTS)
    assert not torch.equal(distilled.images, first.images)
    assert distilled.hard_labels.tolist() == [0, 0, 1, 1, 2, 2]
    dataset = load_dataset(target_data)
    shown = problem.training.normalise(dataset.train_images)
    for image, target in zip(first.images, first.labels, strict=True):
        row = int((shown - image).flatten(1).norm(dim=1).argmin())
        assert torch.equal(dataset.train_answers[row], target)
    assert distilled.recipe["loss"] == "mse" and "target labels" in repr(distilled)
    assert artifact.load(config.out).fingerprint == distilled.fingerprint


def test_students_step_along_the_squared_error(configure: Configure, target_store: Path) -> None:
    problem = prepare(configure(experts=target_store, dsa="none", loss="mse"))
    assert ops.engine_for(problem.model) == "engine"
    state = problem.initial_state()
    task = problem.objective.task(state.draws.draw(0, 0, 6))
    parameters = leaves(state.parameters, "cpu")
    value, _, *grads = problem.objective.differentiate(task, parameters, Plan(0, None))

    given = {**parameters, **problem.render(parameters)._asdict()}
    images: Tensor = given["images"].double().requires_grad_()
    theta = task.start.double()
    shapes = networks.parameter_shapes(problem.model)
    for batch in task.batches:
        theta = theta.detach().requires_grad_() if not theta.requires_grad else theta
        values = networks.split(theta, shapes)
        loss = F.mse_loss(
            functional_call(problem.model, values, images[batch]), given[LABELS][batch].double()
        )
        (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - parameters[STEP_SIZE].item() * grad
    goal = task.expert[1].double()
    wanted = (theta - goal).square().sum() / (task.start.double() - goal).square().sum()
    assert value.item() == pytest.approx(wanted.item(), rel=1e-4)
    (grad,) = torch.autograd.grad(wanted, images)
    found = next(each for each in grads if each.shape == grad.shape)
    assert (found - grad).norm() < 1e-3 * grad.norm()


@pytest.mark.parametrize("select", ["holdout", "test-max"])
def test_the_iterate_with_the_least_error_is_chosen(
    configure: Configure, target_store: Path, tmp_path: Path, select: str
) -> None:
    choice = {"eval_every": 2, "eval_seeds": 1, "eval_epochs": 8, "select": select}
    shown: list[dict[str, float]] = []

    class Shown:
        def update(self, done: int, **numbers: float) -> None:
            shown.append(numbers)

    distilled = distill(configure(experts=target_store, lr_img=1e3, **choice), Shown())
    means = [score["mean"] for score in distilled.scores]
    assert shown[-1]["error"] == means[-1] and "accuracy" not in shown[-1]
    best = 2 * (1 + means.index(min(means)))
    assert means.index(min(means)) != means.index(max(means)) and best < 10
    shorter = configure(
        experts=target_store, lr_img=1e3, iterations=best, out=tmp_path / "shorter.safetensors"
    )
    assert torch.equal(distill(shorter).images, distilled.images)


def test_a_network_trains_on_the_targets(configure: Configure, target_store: Path) -> None:
    distilled = distill(configure(experts=target_store, iterations=1))
    model = networks.build(distilled.network)
    before = measured(model, distilled.images, distilled.labels)
    distilled.train(model, epochs=60)
    assert measured(model, distilled.images, distilled.labels) < 0.5 * before


def test_a_run_goes_on_from_a_result_of_its_kind(
    configure: Configure, target_store: Path, tmp_path: Path
) -> None:
    source = distill(configure(experts=target_store, iterations=1))
    into = {"init_from": tmp_path / "distilled.safetensors", "out": tmp_path / "more.safetensors"}
    more = distill(configure(experts=target_store, iterations=1, ipc=3, **into))
    kept = more.labels.unflatten(0, (3, 3))[:, :2].flatten(0, 1)
    assert torch.equal(kept, source.labels)
    with pytest.raises(UserError, match="the training loss mse, and the run on"):
        distill(configure(init_from=tmp_path / "distilled.safetensors", out=tmp_path / "x"))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"loss": "cross_entropy"}, "--loss cross_entropy contradicts the data set .* with mse"),
        ({"labels": "soft"}, "--labels soft is for networks that classify, .* --labels hard keeps"),
        ({"init": "noise"}, "--init noise is for networks that classify, .* take real images"),
        ({"init": "correct"}, "--init correct is for .*; take --init real or representative"),
    ],
)
def test_choices_for_classes_are_refused(
    configure: Configure, target_store: Path, settings: dict[str, Any], match: str
) -> None:
    with pytest.raises(UserError, match=match):
        distill(configure(experts=target_store, **settings))


def test_experts_that_classify_stay_as_they_were(configure: Configure) -> None:
    with pytest.raises(UserError, match=r"--loss mse contradicts .* with \?targets=NAME"):
        prepare(configure(loss="mse"))
    identity = prepare(configure()).identity
    assert "loss" not in identity
    assert prepare(configure(loss="cross_entropy")).identity == identity


def test_an_evaluation_tells_errors(
    configure: Configure,
    target_store: Path,
    target_data: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    distilled = distill(configure(experts=target_store, iterations=1))
    dataset, file = load_dataset(target_data), str(tmp_path / "distilled.safetensors")
    flags = [
        file,
        "--data",
        target_data,
        "--epochs",
        "3",
        "--seeds",
        "2",
        "--quiet",
        "--whole-real",
    ]
    assert main(["eval", *flags, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    protocol = Protocol(lr=distilled.lr, dsa=distilled.dsa, epochs=3)
    tests = (distilled.preprocessing.apply(dataset.test_images), dataset.test_answers)
    for kind, train in (
        ("distilled", (distilled.images, distilled.labels)),
        (
            "whole_real",
            (distilled.preprocessing.apply(dataset.train_images), dataset.train_answers),
        ),
    ):
        seed = derive_seed(0, "evaluate", 1)
        outcome = train_fresh(*train, distilled.network, protocol, *tests, seed)
        assert result[kind]["errors"][1] == pytest.approx(outcome.accuracy, rel=1e-6)
        assert "accuracies" not in result[kind]
    assert {each["labels"] for each in result["sets"].values()} == {"target"}
    assert len(result["random_real"]["errors"]) == 2
    assert main(["eval", *flags]) == 0
    table = capsys.readouterr().out
    assert "test error" in table and "%" not in table
    assert f"{result['distilled']['mean']:.4g} +- " in table
    with pytest.raises(UserError, match="--robust is for sets with classes as labels"):
        evaluate_artifact(EvalConfig(file=Path(file), data=target_data, robust=True))


def test_a_whole_run_of_targets(
    tmp_path: Path, target_data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mkdt.toml"
    recipe.write_text(
        """
title = "targets"
data = ""
[expert]
loss = "mse"
num_experts = 1
epochs = 3
width = 4
depth = 1
[distill]
loss = "mse"
iterations = 2
student_steps = 2
expert_epochs = 1
eval_every = 1
eval_seeds = 1
eval_epochs = 2
[evaluate]
seeds = 1
epochs = 2
"""
    )
    out = tmp_path / "run"
    command = ["run", "--recipe", str(recipe), "--data", target_data, "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "test error" in said and "%" not in said and "points over" not in said
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["experts"]["errors"]) == 1 and "improvement" not in summary
    page = (out / "report.html").read_text()
    assert "Mean squared test error, mean" in page and "target vectors" in page
    assert "Error of fresh networks" in page and "standard error of" not in page
