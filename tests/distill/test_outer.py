"""One outer iteration against the same in a few lines of PyTorch, with the whole graph kept."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trajmatch import networks
from trajmatch.data import DSA
from trajmatch.distill.balance import balance
from trajmatch.distill.batches import student_batches
from trajmatch.distill.config import DistillConfig
from trajmatch.distill.initialise import SyntheticSet
from trajmatch.distill.matching import MatchingLoss, Segment
from trajmatch.distill.outer import (
    Match,
    OuterGradient,
    StudentSteps,
    outer_gradient,
    propose_update,
)
from trajmatch.distill.schedule import ExpertOrder
from trajmatch.distill.state import State, Streams
from trajmatch.distill.step_size import StepSize
from trajmatch.distill.terms import find_term
from trajmatch.random import generator

STEPS = 5
STEP_SIZE = 0.03


@pytest.fixture
def model() -> torch.nn.Module:
    network = networks.ConvNet(1, 3, image_size=8, width=4, depth=2)
    return networks.initialise(network, generator(0, "network")).double()


@pytest.fixture
def segment(model: torch.nn.Module) -> Segment:
    start = networks.flat_parameters(model)
    step = torch.randn(len(start), generator=generator(0, "target"), dtype=torch.float64)
    return Segment(start, start + 0.05 * step)


@pytest.fixture
def synthetic() -> SyntheticSet:
    images = torch.randn(7, 1, 8, 8, generator=generator(0, "images"), dtype=torch.float64)
    return SyntheticSet(images, torch.tensor([0, 0, 1, 1, 2, 2, 2]))


def unrolled(
    model, segment, synthetic, batches, momentum, augment
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients by MTT's own algorithm."""
    images = synthetic.images.clone().requires_grad_()
    lr = torch.tensor(STEP_SIZE, dtype=torch.float64, requires_grad=True)
    theta = segment.start.clone().requires_grad_()
    velocity = torch.zeros_like(theta)
    for step, batch in enumerate(batches):
        x = images[batch]
        if augment is not None:
            x = augment(x, step)
        loss = F.cross_entropy(networks.call_flat(model, theta, x), synthetic.labels[batch])
        (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
        velocity = momentum * velocity + grad
        theta = theta - lr * velocity
    travelled = (segment.start - segment.target).square().sum()
    matching = (theta - segment.target).square().sum() / travelled
    return matching.detach(), *torch.autograd.grad(matching, (images, lr))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_loss_and_gradients_are_those_of_the_unrolled_graph(
    model, segment, synthetic, batch_size, augmented, momentum
) -> None:
    batches = student_batches(7, batch_size, STEPS, generator(0, "batches"))
    augment = DSA().replay(seed=5) if augmented else None
    outer = outer_gradient(
        model,
        Match(segment, batches, augment),
        synthetic,
        STEP_SIZE,
        steps=StudentSteps(momentum=momentum),
        loss=MatchingLoss(),
    )
    loss, grad_images, grad_lr = unrolled(model, segment, synthetic, batches, momentum, augment)
    assert outer.loss == pytest.approx(loss.item(), rel=1e-10)
    assert outer.step_size == pytest.approx(grad_lr.item(), rel=1e-9)
    error = (outer.images - grad_images).norm() / grad_images.norm()
    assert error < 1e-9
    assert not outer.stands_still


@pytest.mark.parametrize("augmented", [False, True])
def test_all_parts_together_are_those_of_the_unrolled_graph(
    model, segment, synthetic, augmented
) -> None:
    """Soft labels, balance, momentum and terms in between, with everything written out."""
    draw = generator(3, "together")
    soft = torch.randn(7, 3, generator=draw, dtype=torch.float64)
    middle = segment.start + 0.03 * torch.randn(
        len(segment.start), generator=draw, dtype=torch.float64
    )
    segment = Segment(segment.start, segment.target, {1: middle})
    batches = student_batches(7, 3, STEPS, generator(0, "batches"))
    augment = DSA().replay(seed=5) if augmented else None
    kappa, mu = balance(1, 12), 0.9
    outer = outer_gradient(
        model,
        Match(segment, batches, augment, kappa),
        SyntheticSet(synthetic.images, soft),
        STEP_SIZE,
        steps=StudentSteps(momentum=mu),
        loss=MatchingLoss((find_term("final"), find_term("intermediate-rising")), epochs=2),
    )

    images, labels = (each.clone().requires_grad_() for each in (synthetic.images, soft))
    lr = torch.tensor(STEP_SIZE, dtype=torch.float64, requires_grad=True)
    theta, velocity, passed = segment.start, torch.zeros_like(segment.start), []
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
        return (student - expert).square().sum() / (segment.start - expert).square().sum()

    # floor(5 / 2) = 2 steps to the first of two epochs, whose weight is 1 / 2
    wanted = distance(theta, segment.target) + 0.5 * distance(passed[1], middle)
    grads = torch.autograd.grad(wanted, (images, labels, lr))
    assert outer.loss == pytest.approx(wanted.item(), rel=1e-10)
    assert outer.labels is not None
    for found, expected in zip((outer.images, outer.labels), grads[:2], strict=True):
        assert (found - expected).norm() / expected.norm() < 1e-9
    assert outer.step_size == pytest.approx(grads[2].item(), rel=1e-9)


def test_an_expert_that_stands_still_is_seen(model, segment, synthetic) -> None:
    still = Segment(segment.start, segment.start.clone())
    outer = outer_gradient(
        model,
        Match(still, student_batches(7, None, 1, generator(0)), None),
        synthetic,
        STEP_SIZE,
        steps=StudentSteps(),
        loss=MatchingLoss(),
    )
    assert outer.stands_still


def test_update_is_sgd_with_momentum(tmp_path) -> None:
    config = DistillConfig(
        experts=tmp_path, out=tmp_path / "d", lr_img=7.0, momentum_img=0.5, lr_lr=1e-4
    )
    images = torch.randn(3, 1, 4, 4, generator=generator(0))
    state = state_of(SyntheticSet(images, torch.arange(3)))
    parameter = torch.nn.Parameter(images.clone())
    optimiser = torch.optim.SGD([parameter], lr=7.0, momentum=0.5)
    for number in range(3):
        grad = torch.randn(images.shape, generator=generator(1, number))
        parameter.grad = grad
        optimiser.step()
        outer = OuterGradient(loss=0.5, images=grad, step_size=2.0, stands_still=False)
        expected = state.step_size.updated(2.0, 1e-4, 0.5, "exp")
        update = propose_update(state, outer, config)
        assert update.labels is update.label_buffer is None
        state.synthetic = SyntheticSet(update.images, state.synthetic.labels)
        state.buffer, state.step_size = update.buffer, update.step_size
        torch.testing.assert_close(state.synthetic.images, parameter.detach())
        assert state.step_size == expected


def test_labels_have_an_optimiser_of_their_own(tmp_path) -> None:
    config = DistillConfig(
        experts=tmp_path, out=tmp_path / "d", labels="soft", lr_label=3.0, momentum_label=0.8
    )
    labels = torch.randn(3, 4, generator=generator(0))
    state = state_of(SyntheticSet(torch.zeros(3, 1, 4, 4), labels))
    state.label_buffer = torch.zeros_like(labels)
    parameter = torch.nn.Parameter(labels.clone())
    optimiser = torch.optim.SGD([parameter], lr=3.0, momentum=0.8)
    for number in range(3):
        grad = torch.randn(labels.shape, generator=generator(1, number))
        parameter.grad = grad
        optimiser.step()
        outer = OuterGradient(0.5, torch.zeros(3, 1, 4, 4), 0.0, False, labels=grad)
        update = propose_update(state, outer, config)
        state.synthetic = SyntheticSet(update.images, update.labels)
        state.label_buffer = update.label_buffer
        torch.testing.assert_close(state.synthetic.labels, parameter.detach())


def state_of(synthetic: SyntheticSet) -> State:
    return State(
        synthetic=synthetic,
        buffer=torch.zeros_like(synthetic.images),
        step_size=StepSize(0.01),
        lr_init=0.01,
        streams=Streams.of_seed(0),
        order=ExpertOrder(1),
    )
