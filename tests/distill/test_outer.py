"""One outer iteration against the same in a few lines of PyTorch, with the whole graph kept."""

import pytest
import torch
import torch.nn.functional as F
from stand_ins import gradients_of, match_of, objective_of
from torch import Tensor

from trajmatch import networks
from trajmatch.data import DSA
from trajmatch.distill.objectives import OuterGradient, student_batches
from trajmatch.distill.objectives.match_trajectory import Match, MatchTrajectory
from trajmatch.distill.objectives.matching import MatchingLoss
from trajmatch.distill.objectives.start import balance
from trajmatch.distill.parameters import SyntheticSet
from trajmatch.distill.terms import find_term
from trajmatch.random import generator

STEPS = 5
STEP_SIZE = 0.03


@pytest.fixture
def model() -> torch.nn.Module:
    network = networks.ConvNet(1, 3, image_size=8, width=4, depth=2)
    return networks.initialise(network, generator(0, "network")).double()


@pytest.fixture
def ends(model: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """An expert's parameters at the start and at the end."""
    start = networks.flat_parameters(model)
    step = torch.randn(len(start), generator=generator(0, "target"), dtype=torch.float64)
    return start, start + 0.05 * step


@pytest.fixture
def synthetic() -> SyntheticSet:
    images = torch.randn(7, 1, 8, 8, generator=generator(0, "images"), dtype=torch.float64)
    return SyntheticSet(images, torch.tensor([0, 0, 1, 1, 2, 2, 2]))


def outer_gradient(objective: MatchTrajectory, match: Match, synthetic) -> OuterGradient:
    images, labels = synthetic
    lr = torch.tensor(STEP_SIZE, dtype=torch.float64)
    parameters = {"images": images.clone().requires_grad_(), "step_size": lr.requires_grad_()}
    parameters["labels"] = labels.clone().requires_grad_(labels.is_floating_point())
    (found,) = gradients_of(objective, [match], parameters)
    return found


def unrolled(model, ends, synthetic, batches, momentum, augment) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients by MTT's own algorithm."""
    images = synthetic.images.clone().requires_grad_()
    lr = torch.tensor(STEP_SIZE, dtype=torch.float64, requires_grad=True)
    start, target = ends
    theta = start.clone().requires_grad_()
    velocity = torch.zeros_like(theta)
    for step, batch in enumerate(batches):
        x = images[batch]
        if augment is not None:
            x = augment(x, step)
        loss = F.cross_entropy(networks.call_flat(model, theta, x), synthetic.labels[batch])
        (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
        velocity = momentum * velocity + grad
        theta = theta - lr * velocity
    travelled = (start - target).square().sum()
    matching = (theta - target).square().sum() / travelled
    return matching.detach(), *torch.autograd.grad(matching, (images, lr))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_loss_and_gradients_are_those_of_the_unrolled_graph(
    model, ends, synthetic, batch_size, augmented, momentum
) -> None:
    batches = student_batches(7, batch_size, STEPS, generator(0, "batches"))
    augment = DSA().replay(seed=5) if augmented else None
    objective = objective_of(model, MatchingLoss(), student_momentum=momentum)
    outer = outer_gradient(objective, match_of(ends[0], {1: ends[1]}, batches, augment), synthetic)
    loss, grad_images, grad_lr = unrolled(model, ends, synthetic, batches, momentum, augment)
    assert outer.loss == pytest.approx(loss.item(), rel=1e-10)
    assert outer.gradients["step_size"].item() == pytest.approx(grad_lr.item(), rel=1e-9)
    error = (outer.gradients["images"] - grad_images).norm() / grad_images.norm()
    assert error < 1e-9
    assert outer.meaningful


@pytest.mark.parametrize("augmented", [False, True])
def test_all_parts_together_are_those_of_the_unrolled_graph(
    model, ends, synthetic, augmented
) -> None:
    """Soft labels, balance, momentum and terms in between, with everything written out."""
    draw = generator(3, "together")
    soft = torch.randn(7, 3, generator=draw, dtype=torch.float64)
    start, target = ends
    middle = start + 0.03 * torch.randn(len(start), generator=draw, dtype=torch.float64)
    batches = student_batches(7, 3, STEPS, generator(0, "batches"))
    augment = DSA().replay(seed=5) if augmented else None
    kappa, mu = balance(1, 12), 0.9
    terms = (find_term("final"), find_term("intermediate-rising"))
    outer = outer_gradient(
        objective_of(model, MatchingLoss(terms, epochs=2), student_momentum=mu),
        match_of(start, {1: middle, 2: target}, batches, augment, kappa),
        SyntheticSet(synthetic.images, soft),
    )

    images, labels = (each.clone().requires_grad_() for each in (synthetic.images, soft))
    lr = torch.tensor(STEP_SIZE, dtype=torch.float64, requires_grad=True)
    theta, velocity, passed = start, torch.zeros_like(start), []
    for step, batch in enumerate(batches):
        theta = theta.clone().requires_grad_() if step == 0 else theta
        x = images[batch] if augment is None else augment(images[batch], step)
        log_p = F.log_softmax(networks.call_flat(model, theta, x), dim=1)
        loss = -kappa * (labels[batch].softmax(dim=1) * log_p).sum(dim=1).mean()
        (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
        velocity = mu * velocity + grad
        theta = theta - lr * velocity
        passed.append(theta)

    def distance(student: Tensor, expert: Tensor) -> Tensor:
        return (student - expert).square().sum() / (start - expert).square().sum()

    # floor(5 / 2) = 2 steps to the first of two epochs, whose weight is 1 / 2
    wanted = distance(theta, target) + 0.5 * distance(passed[1], middle)
    grads = torch.autograd.grad(wanted, (images, labels, lr))
    assert outer.loss == pytest.approx(wanted.item(), rel=1e-10)
    for name, expected in zip(("images", "labels"), grads[:2], strict=True):
        found = outer.gradients[name]
        assert (found - expected).norm() / expected.norm() < 1e-9
    assert outer.gradients["step_size"].item() == pytest.approx(grads[2].item(), rel=1e-9)


@pytest.mark.parametrize(
    "spec", ["automatic", "deep:0.5", "dropout:0.25", "layers:*=0.5,*.bias=0,classifier.*=2"]
)
def test_terms_of_later_papers_are_those_of_the_unrolled_graph(model, synthetic, spec) -> None:
    images = synthetic.images.clone().requires_grad_()
    lr = torch.tensor(STEP_SIZE, dtype=torch.float64, requires_grad=True)
    start = networks.flat_parameters(model)
    batches = student_batches(7, 3, STEPS, generator(0, "batches"))
    theta, passed = start.clone().requires_grad_(), []
    for batch in batches:
        loss = F.cross_entropy(
            networks.call_flat(model, theta, images[batch]), synthetic.labels[batch]
        )
        theta = theta - lr * torch.autograd.grad(loss, theta, create_graph=True)[0]
        passed.append(theta)
    # An expert near the third of five steps, so that the nearest is not the last.
    noise = torch.randn(len(start), generator=generator(0, "target"), dtype=torch.float64)
    target = passed[2].detach() + 1e-3 * noise
    far = torch.stack([(each - target).abs().sum() for each in passed])
    errors = (theta - target).detach().square()
    kept = torch.ones_like(start)
    if spec == "automatic":
        theta = passed[int(far.argmin())]
        assert far.argmin() == 2
    elif spec == "deep:0.5":
        kept[: len(start) // 2] = 0
    elif spec == "dropout:0.25":
        kept[errors.argsort()[: len(start) // 4]] = 0
    else:
        for name, part in networks.split(kept, networks.parameter_shapes(model)).items():
            part.fill_(2.0 if name.startswith("classifier") else 0.0 if "bias" in name else 0.5)
    wanted = (kept * (theta - target) ** 2).sum() / (kept * (start - target) ** 2).sum()
    exact = torch.autograd.grad(wanted, (images, lr))
    objective = objective_of(model, MatchingLoss((find_term(spec),)))
    outer = outer_gradient(objective, match_of(start, {1: target}, batches), synthetic)
    assert outer.loss == pytest.approx(wanted.item(), rel=1e-10)
    assert outer.gradients["step_size"].item() == pytest.approx(exact[1].item(), rel=1e-9)
    error = (outer.gradients["images"] - exact[0]).norm() / exact[0].norm()
    assert error < 1e-9


def test_an_expert_that_stands_still_is_seen(model, ends, synthetic) -> None:
    still = match_of(ends[0], {1: ends[0].clone()}, student_batches(7, None, 1, generator(0)))
    assert not outer_gradient(objective_of(model, MatchingLoss()), still, synthetic).meaningful
