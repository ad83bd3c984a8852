"""EDF's mask of the images' gradient, by a class activation map of the run's own expert."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from stand_ins import Counting, Interrupter, match_of, objective_of
from torch import Tensor

from trajmatch import networks
from trajmatch.distill import checkpoint, distill, loop
from trajmatch.distill.gradients import Graph
from trajmatch.distill.iteration import outer_iteration
from trajmatch.distill.objectives import Plan
from trajmatch.distill.objectives.gradient_mask import GradientMask, activation_map
from trajmatch.distill.objectives.matching import MatchingLoss
from trajmatch.distill.parameters import MASK
from trajmatch.distill.problem import prepare
from trajmatch.errors import UserError
from trajmatch.experts.final import FinalExperts
from trajmatch.images import find_parametrisation
from trajmatch.networks import ConvNet


def resized(maps: Tensor, size: int) -> Tensor:
    """Bilinear interpolation between the centres of pixels, as a product with a matrix each way."""
    have = maps.shape[-1]
    matrix = torch.zeros(size, have, dtype=maps.dtype)
    for row in range(size):
        at = min(max((row + 0.5) * have / size - 0.5, 0.0), have - 1.0)
        low = min(int(at), have - 2)
        matrix[row, low], matrix[row, low + 1] = 1 - (at - low), at - low
    return matrix @ maps @ matrix.T


@pytest.mark.parametrize("pooling", ["average", "none"])
def test_the_map_by_its_formula(pooling: str) -> None:
    torch.manual_seed(5)
    model = ConvNet(1, 3, image_size=8, width=5, depth=2, pooling=pooling).double().eval()
    model.classifier.weight.data.abs_()  # so that something speaks for every class
    images, classes = torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 2, 1, 2])
    layers = model.features if pooling == "none" else model.features[:-1]
    features = layers(images)
    side, pooled = features.shape[-1], 1 if pooling == "none" else 4
    # After it come a mean over `pooled` pixels and a linear layer, whose gradient is its weight.
    weight = model.classifier.weight[classes].view(4, 5, -1).mean(2) / pooled
    maps = (weight[:, :, None, None] * features).sum(1).relu()
    assert maps.amax((1, 2)).min() > 0 and side == (8 if pooling == "none" else 4)
    for i in range(4):
        maps[i] = (maps[i] - maps[i].min()) / (maps[i].max() - maps[i].min())
    found = activation_map(model, images, classes)
    torch.testing.assert_close(found[:, 0], resized(maps.detach(), 8), rtol=1e-10, atol=1e-12)
    assert not any(module._forward_hooks for module in model.modules())


def test_where_nothing_speaks_for_the_class_the_map_is_0() -> None:
    model = ConvNet(1, 2, image_size=8, width=4, depth=1).eval()
    model.classifier.weight.data.fill_(-1.0)
    assert not activation_map(model, torch.randn(2, 1, 8, 8), torch.tensor([0, 1])).any()


@pytest.mark.parametrize(
    ("name", "size", "side"),
    [
        ("ConvNet", 32, 8),
        ("AlexNet", 32, 8),
        ("VGG11", 64, 4),
        ("ResNet18", 32, 4),
        ("LeNet", 32, 10),
    ],
)
def test_the_map_is_the_last_before_the_pooling(
    monkeypatch: pytest.MonkeyPatch, name: str, size: int, side: int
) -> None:
    sides: list[int] = []

    def watched(maps: Tensor, size: Any, **_: Any) -> Tensor:
        sides.append(maps.shape[-1])
        return maps.new_zeros(len(maps), 1, *size)

    monkeypatch.setattr("trajmatch.distill.objectives.gradient_mask.interpolate", watched)
    model = getattr(networks, name)(3, 2, image_size=size).eval()
    activation_map(model, torch.randn(1, 3, size, size), torch.tensor([1]))
    assert sides == [side]


@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize("soft", [False, True])
def test_the_mask_by_its_formula(configure, threshold: float | None, soft: bool) -> None:
    problem = prepare(configure())
    experts = FinalExperts(problem.store, problem.model, "--mask-gradient")
    images = torch.randn(70, 1, 8, 8, generator=torch.Generator().manual_seed(1))  # two batches
    classes = torch.arange(70) % 3
    labels = torch.nn.functional.one_hot(classes, 3).float() if soft else classes
    mask = GradientMask(experts, 2.0, threshold)(images, labels)
    problem.store.load_into(problem.model, 0, 4)  # the first expert after its last epoch
    maps = activation_map(problem.model.eval(), images, classes)
    for row, of_image in zip(mask, maps, strict=True):
        limit = float(of_image.mean()) if threshold is None else threshold
        wanted = [1.0 if c < limit else c + 2.0 for c in of_image.flatten().tolist()]
        assert row.flatten().tolist() == pytest.approx(wanted)
    assert mask.shape == (70, 1, 8, 8) and 0.1 < (mask > 1).float().mean() < 0.9


def test_it_multiplies_the_gradient_of_the_rendered_images() -> None:
    draw = torch.Generator().manual_seed(2)
    model = ConvNet(1, 3, image_size=8, width=4, depth=1).double()
    theta = networks.flat_parameters(model)
    expert = theta + 0.1 * torch.randn(len(theta), generator=draw, dtype=torch.float64)
    match = match_of(theta, {1: expert}, [torch.arange(6)] * 3)
    mask = 1 + torch.rand(6, 1, 8, 8, generator=draw, dtype=torch.float64)
    small = torch.randn(6, 1, 4, 4, generator=draw, dtype=torch.float64)
    upsample, shape = find_parametrisation("upsample:factor=2"), torch.Size([1, 8, 8])
    pixels = objective_of(model, MatchingLoss())
    others = {"step_size": torch.tensor(0.05).double(), "labels": torch.arange(6) % 3}

    def gradient(objective: Any, **tensors: Tensor) -> Tensor:
        learned = {name: each.clone().requires_grad_() for name, each in tensors.items()}
        fixed = {} if objective is pixels else {MASK: mask}
        return objective.differentiate(match, {**learned, **others, **fixed}, Plan())[2]

    leaf = small.clone().requires_grad_()
    images = upsample.render({"small_images": leaf}, shape)
    plain = gradient(pixels, images=images.detach())
    # A leaf of autograd, and images that are made of one.
    assert torch.equal(gradient(replace(pixels), images=images.detach()), plain * mask)
    resized = replace(pixels, setup=replace(pixels.setup, parametrisation=upsample))
    found = gradient(resized, small_images=small)
    (wanted,) = torch.autograd.grad(images, leaf, plain * mask)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


def test_it_is_renewed_by_the_images_of_the_moment(configure) -> None:
    problem = prepare(configure(mask_gradient=1.0, mask_every=3))
    state = problem.initial_state()
    assert MASK not in state.parameters
    for iteration in range(5):
        if iteration % 3 == 0:
            images, labels = problem.render(state.result)
            wanted = problem.objective.mask(images, labels)
        outer_iteration(problem, state)
        assert torch.equal(state.parameters[MASK].value, wanted)


def test_a_recorded_run_that_was_interrupted_gives_the_same_bytes(
    configure, tmp_path, monkeypatch
) -> None:
    settings = {"mask_gradient": 1.0, "mask_every": 3, "images": "upsample:factor=2"}
    distill(configure(out=tmp_path / "whole", **settings))
    monkeypatch.setattr(
        loop, "gradients_for", lambda problem, _: Graph(problem.objective, Counting())
    )
    part = configure(out=tmp_path / "part", **settings)
    with pytest.raises(KeyboardInterrupt):
        distill(part, Interrupter(5))  # its checkpoint has the mask of iteration 3
    assert MASK in checkpoint.load(part.checkpoint_path, prepare(part)).parameters
    result = distill(replace(part, resume=True))
    assert (tmp_path / "whole").read_bytes() == part.out.read_bytes()
    assert (result.recipe["mask_gradient"], result.recipe["mask_every"]) == (1.0, 3)
    assert MASK not in result.parameters


def test_it_changes_the_images_and_its_absence_is_no_setting(configure, tmp_path) -> None:
    plain = distill(configure(out=tmp_path / "plain", iterations=1))
    masked = distill(configure(out=tmp_path / "masked", iterations=1, mask_gradient=1.0))
    assert not torch.equal(plain.images, masked.images)
    assert not [name for name in plain.recipe if name.startswith("mask")]


@pytest.mark.parametrize("settings", [{"mask_threshold": 0.5}, {"mask_every": 7}])
def test_settings_of_a_mask_that_is_not_asked_for(configure, settings) -> None:
    with pytest.raises(UserError, match="need --mask-gradient"):
        configure(**settings)


def test_what_a_mask_needs_is_checked_before_the_run(configure, make_store) -> None:
    mlp = make_store("mlp", network="mlp", width=128, depth=3)
    with pytest.raises(UserError, match=r"--mask-gradient needs a network .*feature maps.*MLP"):
        prepare(configure(experts=mlp, mask_gradient=1.0))
    short = make_store("short", until_epoch=3)
    with pytest.raises(UserError, match="--mask-gradient"):
        prepare(configure(experts=short, mask_gradient=1.0))
    problem = prepare(configure(mask_gradient=1.0))
    problem.store.manifest["recipe"]["loss"] = "mse"
    with pytest.raises(UserError, match=r"--mask-gradient .*learn target vectors"):
        GradientMask.of(problem)
    config = configure(mask_gradient=1.0)
    assert config.last_epoch_read(range(9)) == 8
