"""FTD's and AST's parts of expert training against hand computations in float64."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trajmatch import networks
from trajmatch.data import DSA, Dataset, load_dataset
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, Store, train_experts
from trajmatch.experts.config import kept_epochs
from trajmatch.experts.epoch import learning_rate, loss_scale
from trajmatch.experts.step import Adam, GradientPenalty, Gsam, Sgd
from trajmatch.random import generator


@pytest.fixture(scope="module")
def dataset(tiny_data: str) -> Dataset:
    return load_dataset(tiny_data)


def problem(**options: Any) -> tuple[networks.ConvNet, Tensor, Tensor, Tensor]:
    """A small network with parameters, images and labels in float64."""
    draw = generator(1, "problem")
    model = networks.ConvNet(3, 4, 8, **{"width": 4, "depth": 2, **options})
    theta = networks.flat_parameters(networks.initialise(model, draw)).double()
    images = torch.randn(5, 3, 8, 8, generator=draw, dtype=torch.float64)
    return model.double(), theta, images, torch.tensor([0, 1, 2, 3, 0])


def penalty_by_hand(
    model: torch.nn.Module, theta: Tensor, images: Tensor, weight: float, over: Any
) -> Tensor:
    images = images.clone().requires_grad_()
    total = networks.call_flat(model, theta, images).sum()
    (slope,) = torch.autograd.grad(total, images, create_graph=True)
    return weight * (slope.square().sum(dim=over).sqrt() - 1).square().mean()


@pytest.mark.parametrize(("norm", "over"), [("pixel", 1), ("image", (1, 2, 3))])
@pytest.mark.parametrize("network", ["engine", "autograd"])
def test_the_gradient_of_the_penalty(norm: str, over: Any, network: str) -> None:
    model, theta, images, _ = problem(activation="sigmoid")
    if network == "autograd":
        model = torch.nn.Sequential(model)  # type: ignore[assignment]
    theta.requires_grad_()
    wanted = penalty_by_hand(model, theta, images, 2.0, over)
    (grad,) = torch.autograd.grad(wanted, theta)
    penalty = GradientPenalty(2.0, norm)
    found = penalty.gradient(model, theta.detach(), images)
    assert (found - grad).norm() / grad.norm() < 1e-10


def test_pixels_without_a_gradient_pull_in_no_direction() -> None:
    penalty = GradientPenalty(1.0)
    slope = torch.zeros(1, 3, 2, 2)
    slope[0, :, 0, 0] = torch.tensor([3.0, 0.0, 4.0])
    pull = penalty._pull(slope)
    assert pull.isfinite().all()
    assert torch.allclose(pull[0, :, 0, 0], 2 / 4 * 4 * torch.tensor([0.6, 0.0, 0.8]))
    assert pull[0, :, 1:, :].count_nonzero() == 0


def test_a_step_of_gsam() -> None:
    model, theta, images, labels = problem()
    rho, alpha = 0.05, 0.4

    def gradient(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        loss = F.cross_entropy(networks.call_flat(model, at, images), labels)
        return torch.autograd.grad(loss, at)[0]

    first = gradient(theta)
    distance = math.sqrt(
        sum((abs(t) * g) ** 2 for t, g in zip(theta.tolist(), first.tolist(), strict=True))
    )
    away = torch.tensor(
        [rho * t * t * g / distance for t, g in zip(theta.tolist(), first.tolist(), strict=True)],
        dtype=torch.float64,
    )
    second = gradient(theta + away)
    cosine = F.cosine_similarity(first, second, dim=0)
    orthogonal = first - cosine * first.norm() * second / second.norm()
    assert abs(orthogonal @ second) < 1e-12
    wanted = second - alpha * orthogonal
    gsam = Gsam(rho, alpha)
    found = gsam.direction(first, gradient(gsam.nearby(theta, first)))
    assert (found - wanted).norm() / wanted.norm() < 1e-9
    assert (found - first).norm() / first.norm() > 1e-3


@pytest.mark.parametrize(
    ("optimiser", "reference"),
    [
        (Sgd(0.9), partial(torch.optim.SGD, momentum=0.9)),
        (Sgd(), torch.optim.SGD),
        (Adam(), torch.optim.Adam),
    ],
)
def test_optimisers_are_those_of_pytorch(optimiser: Any, reference: Any) -> None:
    """Two experts with learning rates of their own, each beside PyTorch's optimiser."""
    draw, rates = generator(2), torch.tensor([0.03, 0.1], dtype=torch.float64)
    theta = torch.randn(2, 7, generator=draw, dtype=torch.float64)
    parameters = [torch.nn.Parameter(each.clone()) for each in theta]
    references = [
        reference([each], lr=float(lr)) for each, lr in zip(parameters, rates, strict=True)
    ]
    memory = optimiser.memory(theta)
    for _ in range(5):
        grad = torch.randn(2, 7, generator=draw, dtype=torch.float64)
        for parameter, own, each in zip(parameters, grad, references, strict=True):
            parameter.grad = own.clone()
            each.step()
        optimiser(theta, grad, rates, memory)
        wanted = torch.stack([each.detach() for each in parameters])
        torch.testing.assert_close(theta, wanted, rtol=1e-12, atol=1e-14)


def test_schedules() -> None:
    ast = {"lr": 0.003, "lr_decay": 0.6, "epochs": 50, "loss_scale": "rising"}
    rates = [learning_rate(ast, index) for index in range(50)]
    assert rates[:27] == [0.003] * 27
    assert rates[27:] == [pytest.approx(0.0018)] * 23
    scales = [loss_scale(ast, index) for index in range(12)]
    assert scales == pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1, 1])
    assert loss_scale({"loss_scale": "constant"}, 0) == 1


AST = {
    "momentum": 0.9,
    "weight_decay": 1e-3,
    "lr": 0.02,
    "lr_decay": 0.6,
    "loss_scale": "rising",
    "penalty": 0.5,
    "epochs": 4,
}
FTD = {"rho": 0.05, "alpha": 0.3, "epochs": 2}
# Before a norm a bias has no gradient but rounding, of which Adam would make whole steps.
ADAM = {
    "norm": "none",
    "optimiser": "adam",
    "epochs": 2,
    "lr": 1e-3,
    "lr_decay": 0.5,
    "weight_decay": 0.1,
}


@pytest.mark.parametrize("parts", [AST, FTD, {**AST, **FTD, "lr_decay": 1.0}, ADAM])
def test_an_expert_against_a_loop_of_pytorch(
    dataset: Dataset, make_config: Any, parts: dict[str, Any]
) -> None:
    """The whole training once more, by ``torch.optim`` and double backward."""
    config: ExpertConfig = make_config(num_experts=1, **parts)
    store = train_experts(config)
    model = networks.build(store.manifest["network"])
    networks.initialise(model, generator(config.seed, "expert", 0, "initialisation"))
    order = generator(config.seed, "expert", 0, "order")
    augmentation, dsa = generator(config.seed, "expert", 0, "dsa"), DSA(config.dsa)
    theta = torch.nn.Parameter(networks.flat_parameters(model))

    def new_optimiser(index: int) -> torch.optim.Optimizer:
        lr = config.lr * (config.lr_decay if index > config.epochs // 2 + 1 else 1.0)
        if config.optimiser == "adam":
            return torch.optim.Adam([theta], lr=lr, weight_decay=config.weight_decay)
        return torch.optim.SGD(
            [theta], lr=lr, momentum=config.momentum, weight_decay=config.weight_decay
        )

    def gradient(at: Tensor, shown: Tensor, plain: Tensor, labels: Tensor, scale: float) -> Tensor:
        at = at.detach().requires_grad_()
        loss = scale * F.cross_entropy(networks.call_flat(model, at, shown), labels)
        if config.penalty:
            loss = loss + penalty_by_hand(model, at, plain, config.penalty, 1)
        return torch.autograd.grad(loss, at)[0]

    optimiser = new_optimiser(0)
    for index in range(config.epochs):
        if index == config.epochs // 2 + 2:
            optimiser = new_optimiser(index)
        scale = 0.5 + 0.05 * index if config.loss_scale == "rising" else 1.0
        shuffled = torch.randperm(len(dataset.train_labels), generator=order)
        for batch in torch.split(shuffled, config.batch_size):
            plain = dataset.normalise(dataset.train_images[batch])
            shown = dsa(plain, augmentation)
            problem = shown, plain, dataset.train_labels[batch], scale
            grad = gradient(theta, *problem)
            if config.rho:
                gsam = Gsam(config.rho, config.alpha)
                there = gradient(gsam.nearby(theta.detach(), grad), *problem)
                grad = gsam.direction(grad, there)
            theta.grad = grad
            optimiser.step()
        kept = store.snapshot(0, index + 1)
        assert (kept - theta.detach()).norm() / (kept - store.snapshot(0, 0)).norm() < 2e-3


def test_health_is_that_of_every_epoch(dataset: Dataset, make_config: Any) -> None:
    store = train_experts(make_config(num_experts=1, epochs=3, test_every=1))
    metrics = store.metrics(0)
    snapshots = [store.snapshot(0, epoch).double() for epoch in range(4)]
    steps = [(new - old).norm().item() for old, new in pairwise(snapshots)]
    assert metrics["displacement"] == pytest.approx(steps, rel=1e-5)
    assert len(metrics["train_loss"]) == len(metrics["accuracy"]) == 3
    # So few test images are all looked at.
    assert metrics["accuracy"][-1] == metrics["test_accuracy"]
    model = networks.build(store.manifest["network"])
    networks.load_flat_parameters(model, store.snapshot(0, 1))
    found = model(dataset.normalise(dataset.test_images)).argmax(dim=1)
    share = (found == dataset.test_labels).double().mean().item()
    assert metrics["accuracy"][0] == pytest.approx(100 * share)


@pytest.mark.parametrize(
    ("test_every", "workers", "tested"),
    [(1, 1, {1, 2, 3, 4, 5}), (2, 2, {2, 4, 5}), (9, 1, {5}), (0, 1, {3, 5})],
)
def test_the_last_epoch_is_tested_and_others_now_and_then(
    make_config: Any, test_every: int, workers: int, tested: set[int]
) -> None:
    """By itself after every third epoch: 15 test images are less than a fifth of 3 times 36."""
    heard: list[dict[str, float]] = []
    progress = SimpleNamespace(update=lambda done, **numbers: heard.append(numbers))
    config = make_config(epochs=5, test_every=test_every, workers=workers)
    store = train_experts(config, progress)
    accuracies = store.metrics(1)["accuracy"]
    assert {epoch for epoch in range(1, 6) if accuracies[epoch - 1] is not None} == tested
    assert accuracies[-1] == store.metrics(1)["test_accuracy"]
    # The latest test of an expert is shown until its next one.
    shown = [each.get("accuracy") for each in heard if each.get("expert") == 1]
    assert shown == [
        next((each for each in accuracies[epoch::-1] if each is not None), None)
        for epoch in range(5)
    ]


def test_how_often_experts_are_tested_changes_no_snapshot(make_config: Any, tmp_path: Any) -> None:
    rare = train_experts(make_config(num_experts=1, test_every=9))
    often = train_experts(make_config(num_experts=1, test_every=1, out=tmp_path / "often"))
    assert rare.manifest == often.manifest
    assert torch.equal(rare.snapshot(0, 2), often.snapshot(0, 2))
    grown = train_experts(make_config(num_experts=2, test_every=1, resume=True))
    assert grown.metrics(0)["accuracy"][0] is None and grown.metrics(1)["accuracy"][0] is not None


def test_a_batch_size_beyond_the_set_is_the_set(make_config: Any, tmp_path: Any) -> None:
    whole = train_experts(make_config(num_experts=1, batch_size=36))
    more = train_experts(make_config(num_experts=1, batch_size=10**15, out=tmp_path / "more"))
    assert torch.equal(more.snapshot(0, 2), whole.snapshot(0, 2))


def test_only_the_epochs_asked_for_are_kept(make_config: Any, tmp_path: Any) -> None:
    whole = train_experts(make_config(num_experts=1, epochs=4, out=tmp_path / "whole"))
    part = train_experts(make_config(num_experts=1, epochs=4, out=tmp_path / "part", keep="1-2"))
    assert part.snapshots_kept == [1, 2, 4]
    for epoch in (1, 2, 4):
        assert torch.equal(part.snapshot(0, epoch), whole.snapshot(0, epoch))
    with pytest.raises(UserError, match="but 3 was asked for"):
        part.snapshot(0, 3)
    assert part.metrics(0) == whole.metrics(0)


def test_bfloat16_halves_a_store(make_config: Any, tmp_path: Any) -> None:
    settings = {"num_experts": 1, "epochs": 4, "width": 32}
    whole = train_experts(make_config(out=tmp_path / "whole", **settings))
    half = train_experts(make_config(out=tmp_path / "half", dtype="bfloat16", **settings))
    reopened = Store.open(half.path)
    for epoch in range(5):
        exact, kept = whole.snapshot(0, epoch), reopened.snapshot(0, epoch)
        assert kept.dtype == torch.float32
        assert torch.equal(kept, exact.bfloat16().float())
    sizes = [store.expert_path(0).stat().st_size for store in (whole, half)]
    assert 0.5 <= sizes[1] / sizes[0] < 0.55


@pytest.mark.parametrize(
    ("keep", "epochs"),
    [("all", [0, 1, 2, 3]), ("0", [0, 3]), ("0-1", [0, 1, 3]), ("2, 0-1,3", [0, 1, 2, 3])],
)
def test_lists_of_epochs(keep: str, epochs: list[int]) -> None:
    assert kept_epochs(keep, 3) == epochs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": "0-x"}, "--keep 0-x should list .*, but contains '0-x'"),
        ({"keep": "0-9"}, "--keep 0-9 should list epochs from 0 to 2 .*, but contains '0-9'"),
        ({"keep": "2-1"}, "--keep 2-1 should list .*, but contains '2-1'"),
        ({"alpha": 0.3}, "--alpha 0.3 has no effect, because --rho 0 turns GSAM off"),
        ({"rho": -0.1}, "--rho should be a finite number of at least 0"),
        ({"penalty": math.inf}, "--penalty should be a finite number of at least 0"),
        ({"lr_decay": 0.0}, "--lr-decay should be a finite number above 0"),
        ({"optimiser": "adam", "momentum": 0.9}, "--momentum should be 0 for --optimiser adam"),
        ({"optimiser": "lion"}, "--optimiser should be one of adam, sgd"),
        ({"dtype": "float16"}, "--dtype should be one of bfloat16, float32"),
    ],
)
def test_settings_that_do_not_fit(make_config: Any, settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_config(**{"epochs": 2, **settings})


def test_sgd_is_that_of_pytorch() -> None:
    draw = generator(3)
    theta = torch.randn(6, generator=draw, dtype=torch.float64)
    parameter = torch.nn.Parameter(theta.clone())
    reference = torch.optim.SGD([parameter], lr=0.1, momentum=0.8)
    memory = Sgd().memory(theta)
    for _ in range(4):
        grad = torch.randn(6, generator=draw, dtype=torch.float64)
        parameter.grad = grad.clone()
        reference.step()
        lr = torch.tensor(0.1, dtype=torch.float64)
        Sgd(0.8)(theta, grad, lr, memory)
        torch.testing.assert_close(theta, parameter.detach(), rtol=1e-12, atol=1e-14)
