"""An objective of a user's own: one file, through a whole run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from stand_ins import Interrupter, lines_of

from trajmatch import artifact
from trajmatch.distill import distill
from trajmatch.distill.problem import prepare
from trajmatch.errors import UserError

#: Gradient matching: one gradient on the synthetic set against one on a batch of real images.
MODULE = """
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from trajmatch.distill.objectives import Draws, Objective
from trajmatch.networks import call_flat

BATCH = 12


@dataclass(frozen=True)
class Draw:
    expert: int
    rows: torch.Tensor

    def logged(self):
        return {"expert": self.expert}


class RandomBatches(Draws):
    def __init__(self, setup):
        super().__init__(setup.config.seed, "rows", "experts")
        self.images, self.experts = len(setup.training.train_images), setup.store.num_experts

    def draw(self, iteration, number, images):
        expert = int(torch.randint(self.experts, (), generator=self.streams["experts"]))
        return Draw(expert, torch.randperm(self.images, generator=self.streams["rows"])[:BATCH])


class MatchGradients(Objective):
    def __init__(self, setup):
        self.setup = setup

    def draws(self):
        return RandomBatches(self.setup)

    def task(self, draw):
        setup, rows = self.setup, draw.rows
        images = setup.training.normalise(setup.training.train_images[rows])
        return setup.store.snapshot(draw.expert, 0), images, setup.training.train_labels[rows]

    def differentiate(self, task, parameters, plan):
        theta, real, labels = task
        theta = theta.clone().requires_grad_()

        def gradient(images, targets, graph):
            loss = cross_entropy(call_flat(self.setup.model, theta, images), targets)
            return torch.autograd.grad(loss, theta, create_graph=graph)[0]

        images, targets = self.setup.synthetic_set(parameters)
        wanted = gradient(real, labels, False)
        loss = (gradient(images, targets, True) - wanted).square().sum() / wanted.square().sum()
        learned = [each for each in parameters.values() if each.requires_grad]
        grads = torch.autograd.grad(loss, learned, materialize_grads=True)
        return loss.detach(), torch.tensor(True), *grads
"""

NAME = "match_gradients:MatchGradients"


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "match_gradients.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_run_lowers_its_loss(configure) -> None:
    config = configure(objective=NAME, iterations=40, init="noise", matches=2, ema=0.5)
    result = distill(config)
    lines = lines_of(config.log_path)
    losses = [line["loss"] for line in lines]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert all(len(line["experts"]) == 2 and line["refused"] is None for line in lines)
    assert result.recipe["objective"] == NAME
    assert artifact.load(config.out).fingerprint == result.fingerprint


def test_an_interrupted_run_goes_on_with_equal_bytes(configure, tmp_path) -> None:
    settings = {"objective": NAME, "labels": "hard", "lr_img": 1.0, "init": "noise"}
    whole = configure(out=tmp_path / "whole" / "d", **settings)
    part = configure(out=tmp_path / "part" / "d", **settings)
    distill(whole)
    with pytest.raises(KeyboardInterrupt):
        distill(part, Interrupter(5))
    distill(replace(part, resume=True))
    assert part.out.read_bytes() == whole.out.read_bytes()
    with pytest.raises(UserError, match="made with objective = match_gradients"):
        distill(replace(part, resume=True, objective="match-trajectory"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "match",
            "has no objective 'match'.*choose from match-trajectory, train-and-test, or give your "
            "own as package.module:NAME",
        ),
        ("json:dumps", "--objective json:dumps failed: TypeError"),
        ("builtins:vars", r"should give an instance of .*\.Objective, but gave a dict"),
    ],
)
def test_what_is_no_objective(configure, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(configure(objective=name))
