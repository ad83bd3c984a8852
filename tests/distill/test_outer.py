"""One outer iteration against the same in a few lines of PyTorch, with the whole graph kept."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trajmatch import networks
from trajmatch.data import DSA
from trajmatch.distill.batches import student_batches
from trajmatch.distill.config import DistillConfig
from trajmatch.distill.initialise import SyntheticSet
from trajmatch.distill.matching import Segment, matching_loss
from trajmatch.distill.outer import OuterGradient, StudentSteps, outer_gradient, propose_update
from trajmatch.distill.step_size import StepSize
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
        segment,
        synthetic,
        STEP_SIZE,
        batches,
        steps=StudentSteps(momentum=momentum),
        augment=augment,
    )
    loss, grad_images, grad_lr = unrolled(model, segment, synthetic, batches, momentum, augment)
    assert outer.loss == pytest.approx(loss.item(), rel=1e-10)
    assert outer.step_size == pytest.approx(grad_lr.item(), rel=1e-9)
    error = (outer.images - grad_images).norm() / grad_images.norm()
    assert error < 1e-9
    assert not outer.stands_still


def test_matching_loss_by_hand() -> None:
    segment = Segment(start=torch.tensor([3.0, 0.0]), target=torch.tensor([0.0, 4.0]))
    assert matching_loss(torch.tensor([1.0, 2.0]), segment).item() == pytest.approx(5 / 25)
    assert matching_loss(segment.target, segment).item() == 0
    assert matching_loss(segment.start, segment).item() == pytest.approx(1)


def test_an_expert_that_stands_still_is_seen(model, segment, synthetic) -> None:
    outer = outer_gradient(
        model,
        Segment(segment.start, segment.start.clone()),
        synthetic,
        STEP_SIZE,
        student_batches(7, None, 1, generator(0)),
        steps=StudentSteps(),
        augment=None,
    )
    assert outer.stands_still


def test_update_is_sgd_with_momentum(tmp_path) -> None:
    config = DistillConfig(
        experts=tmp_path, out=tmp_path / "d", lr_img=7.0, momentum_img=0.5, lr_lr=1e-4
    )
    images = torch.randn(3, 1, 4, 4, generator=generator(0))
    parameter = torch.nn.Parameter(images.clone())
    optimiser = torch.optim.SGD([parameter], lr=7.0, momentum=0.5)
    synthetic, buffer = SyntheticSet(images, torch.arange(3)), torch.zeros_like(images)
    step_size = StepSize(0.01)
    for number in range(3):
        grad = torch.randn(images.shape, generator=generator(1, number))
        parameter.grad = grad
        optimiser.step()
        outer = OuterGradient(loss=0.5, images=grad, step_size=2.0, stands_still=False)
        update = propose_update(synthetic, buffer, step_size, outer, config)
        expected = step_size.updated(2.0, 1e-4, 0.5, "exp")
        synthetic, buffer = SyntheticSet(update.images, synthetic.labels), update.buffer
        step_size = update.step_size
        torch.testing.assert_close(synthetic.images, parameter.detach())
        assert step_size == expected
