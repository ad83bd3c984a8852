"""A parametrisation of a user's own, through every command."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from stand_ins import Interrupter
from torch import Tensor
from torch.nn.functional import interpolate

import trajmatch
from trajmatch.cli.main import main
from trajmatch.distill import distill
from trajmatch.distill.objectives import Plan
from trajmatch.distill.problem import prepare
from trajmatch.errors import UserError
from trajmatch.images import Parametrisation, find_parametrisation
from trajmatch.images.pixels import Pixels

MODULE = """
from dataclasses import dataclass

from torch.nn.functional import interpolate

from trajmatch.images import Parametrisation


@dataclass(frozen=True)
class LowResolution(Parametrisation):
    factor: int = 2

    def initial(self, images, classes):
        return {"small_images": interpolate(images, scale_factor=1 / self.factor, mode="area")}

    def render(self, parameters, shape):
        small = parameters["small_images"]
        return interpolate(small, scale_factor=self.factor, mode="bilinear")
"""

SPEC = "low_resolution:LowResolution"


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "low_resolution.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def test_what_is_learned_is_what_the_images_are_made_of(configure) -> None:
    config = configure(images=SPEC, ema=0.5, matches=2)
    problem = prepare(config)
    state = problem.initial_state()
    assert list(state.parameters) == ["small_images", "step_size", "labels"]
    assert state.parameters["small_images"].value.shape == (6, 1, 4, 4)
    result = distill(config)
    assert result.images.shape == (6, 1, 8, 8)
    assert {name: list(each.shape) for name, each in result.parameters.items()} == {
        "small_images": [6, 1, 4, 4]
    }
    assert result.parametrisation == SPEC
    rendered = interpolate(result.parameters["small_images"], scale_factor=2, mode="bilinear")
    assert torch.equal(result.images, rendered)
    assert not torch.equal(result.images, problem.initial_set().images)
    assert {"iteration", "loss", "step_size"} <= json.loads(
        config.log_path.read_text().splitlines()[0]
    ).keys()


def test_its_gradient_is_the_chain_rule(configure) -> None:
    """With one pixel in four learned, its gradient is the sum over the pixels that it makes."""
    problem, pixels = (prepare(configure(images=each)) for each in (SPEC, "pixels"))
    own, whole = problem.initial_state(), pixels.initial_state()
    images = problem.render(own.result).images
    whole.parameters["images"] = replace(whole.parameters["images"], value=images)
    gradients = []
    for state, each in ((own, problem), (whole, pixels)):
        task = each.objective.task(state.draws.draw(0, 0, 6))
        leaves = {
            name: parameter.value.requires_grad_(parameter.optimiser is not None)
            for name, parameter in state.parameters.items()
        }
        gradients.append(each.objective.differentiate(task, leaves, Plan())[2])
    small = own.parameters["small_images"].value.detach().requires_grad_()
    rendered = interpolate(small, scale_factor=2, mode="bilinear")
    (wanted,) = torch.autograd.grad(rendered, small, gradients[1])
    torch.testing.assert_close(gradients[0], wanted)


def test_an_interrupted_run_goes_on_with_equal_bytes(configure, tmp_path) -> None:
    settings = {"images": f"{SPEC}:factor=4", "labels": "soft", "init": "correct", "ema": 0.9}
    whole = configure(out=tmp_path / "whole" / "d", **settings)
    part = replace(whole, out=tmp_path / "part" / "d")
    distill(whole)
    with pytest.raises(KeyboardInterrupt):
        distill(part, Interrupter(5))
    distill(replace(part, resume=True))
    assert part.out.read_bytes() == whole.out.read_bytes()
    with pytest.raises(UserError, match=r"made with images = .*, but this run has images = low_"):
        distill(replace(part, resume=True, images=SPEC))


def test_it_is_evaluated_shown_and_exported(configure, data, tmp_path) -> None:
    config = configure(images=SPEC, iterations=2)
    distill(config)
    out = str(config.out)
    assert main(["eval", out, "--data", data, "--seeds", "1", "--epochs", "2"]) == 0
    assert main(["show", out, "--out", str(tmp_path / "picture.png")]) == 0
    assert main(["export", out, "--to", "torch", "--out", str(tmp_path / "d.pt")]) == 0
    exported = torch.load(tmp_path / "d.pt", weights_only=True)
    assert torch.equal(exported["images"], trajmatch.load(out).images)
    assert main(["report", out, "--out", str(tmp_path / "page.html")]) == 0


def test_a_file_is_read_where_its_parametrisation_is_not(configure, monkeypatch) -> None:
    config = configure(images=SPEC, iterations=1)
    made = distill(config)
    monkeypatch.setattr("trajmatch.importing.import_object", None)
    found = trajmatch.load(config.out)
    assert torch.equal(found.images, made.images)
    assert found.fingerprint == made.fingerprint


@dataclass
class Broken(Parametrisation):
    made: object = None
    rendered: object = None

    def initial(self, images: Tensor, classes: int) -> Mapping[str, Tensor]:
        return {"x": images} if self.made is None else self.made  # type: ignore[return-value]

    def render(self, parameters: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
        return self.rendered  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Broken(made=3), "initial should return a dict of tensors, but returned an int"),
        (Broken(made={"labels": torch.ones(1)}), "the parameter name 'labels' is reserved"),
        (
            Broken(made={"x": torch.ones(1, dtype=torch.int64)}),
            "initial should return at least one floating-point tensor to learn, but returned none",
        ),
        (Broken(rendered=None), "render should return images of shape .*but returned None"),
        (
            Broken(rendered=torch.ones(2)),
            "render should return images of shape .*, but returned a Tensor of shape .2. and type",
        ),
        (
            Broken(rendered=torch.ones(6, 1, 8, 8).double()),
            "render should return .* and type torch.float32, but returned .*torch.float64",
        ),
        (Broken(rendered=torch.full((6, 1, 8, 8), math.nan)), "render returned .* not finite"),
        (
            Broken(rendered=torch.ones(6, 1, 8, 8)),
            "render .* gradient .* but there is none for 'x'",
        ),
        (
            Broken(rendered=torch.ones(6, 1, 8, 8, requires_grad=True)),
            "render .* gradient .* but there is none for 'x'",
        ),
    ],
)
def test_what_is_wrong_with_a_parametrisation_is_said(configure, broken, message) -> None:
    problem = replace(prepare(configure()), parametrisation=broken)
    with pytest.raises(UserError, match=f"--images pixels: {message}"):
        problem.initial_state()


@pytest.mark.parametrize("count", [0, -1, 1.5, None])
def test_a_budget_that_pays_for_no_image(configure, monkeypatch, count: object) -> None:
    monkeypatch.setattr(Pixels, "images_per_class", lambda *_: count)
    with pytest.raises(UserError, match=f"--images pixels: images_per_class .*returned {count}"):
        prepare(configure())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pixel", "has no parametrisation 'pixel'.*did you mean pixels"),
        (
            "pixels:size=3",
            "unexpected keyword argument .size.; pixels takes no settings",
        ),
        ("no_such_module:x", "there is no Python module 'no_such_module'"),
        ("fractions:Fraction", "should give an instance of trajmatch.images.*Parametrisation"),
        (f"{SPEC}:factor=2,3", "'3' should be NAME=VALUE, like the one before it"),
    ],
)
def test_what_is_no_parametrisation(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_parametrisation(spec)
