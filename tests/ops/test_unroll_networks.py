"""The adjoint of every network's steps against an unrolled loop written out, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from trajmatch import networks, ops
from trajmatch.block import IMAGE_NORMS

Check = Callable[..., None]
EXACT = 1e-9
MOMENTUM = 0.9


def network(text: str, size: int, device: torch.device) -> nn.Module:
    model = networks.build(networks.specify(text, 3, 4, size))
    networks.initialise(model, torch.Generator().manual_seed(0))
    return model.double().to(device)


def leaves_of(model: nn.Module, size: int, device: torch.device) -> dict[str, Tensor]:
    theta = networks.flat_parameters(model)
    leaves = {
        "theta0": theta + 0.05 * torch.randn_like(theta),
        "images": torch.randn(5, 3, size, size, dtype=torch.float64, device=device),
        "labels": torch.randn(5, 4, dtype=torch.float64, device=device),
        "lr": torch.tensor(0.05, dtype=torch.float64, device=device),
    }
    return {name: each.requires_grad_() for name, each in leaves.items()}


def steps(device: torch.device) -> list[Tensor]:
    return [torch.tensor(each, device=device) for each in ([0, 1, 2], [3, 4, 0, 1], [2, 2, 4])]


def unrolled(model: nn.Module, leaves: dict[str, Tensor], batches: list[Tensor]) -> Tensor:
    """The same steps by PyTorch alone, with the graph of all of them kept."""
    model = copy.deepcopy(model)
    names = [name for name, _ in model.named_parameters()]
    shapes = [each.shape for each in model.parameters()]
    theta, momentum = leaves["theta0"], torch.zeros_like(leaves["theta0"])
    for batch in batches:
        parts = theta.split([shape.numel() for shape in shapes])
        values = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        logits = functional_call(
            model, dict(zip(names, values, strict=True)), leaves["images"][batch]
        )
        loss = F.cross_entropy(logits, leaves["labels"][batch].softmax(dim=1))
        (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
        momentum = MOMENTUM * momentum + grad
        theta = theta - leaves["lr"] * momentum
    return theta


@pytest.mark.parametrize(
    ("text", "size"), [("convnet:batch,width=4,depth=2", 8), ("resnet18:batch,width=4", 16)]
)
def test_running_statistics_are_used_in_evaluation_mode(
    device: torch.device, assert_close_as_vectors: Check, text: str, size: int
) -> None:
    model = network(text, size, device)
    assert ops.engine_for(model.eval()) == "autograd"
    check_exact(model, size, False, assert_close_as_vectors)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("alexnet:width=4", 16),
        ("alexnet:width=4", 28),  # padded
        ("alexnet:width=4", 64),  # with a stride
        ("lenet", 20),
        ("lenet", 28),
        ("lenet", 64),
        ("mlp:width=5", 6),
        ("mlp:width=5", 64),  # one hidden layer
        *((f"vgg11:{norm},width=4", 32) for norm in IMAGE_NORMS),
        ("vgg11:width=4", 28),
        ("vgg11:none,width=4", 64),  # pooled twice at the end
        *((f"resnet18:{norm},width=4", 16) for norm in ("none", "instance", "batch")),
        ("vgg11:batch,width=4", 32),
        ("convnet:batch,width=4,depth=2", 8),
        ("convnet:batch,width=20,depth=2", 9),  # an odd number of rows
        ("resnet18:width=4", 64),  # with a stride
        ("resnet18_ap:layer,width=4", 16),
    ],
)
@pytest.mark.parametrize("tape_bytes", [0, 1 << 30])
def test_networks_on_the_engine_are_exact(
    device: torch.device, assert_close_as_vectors: Check, text: str, size: int, tape_bytes: int
) -> None:
    model = network(text, size, device)
    assert ops.engine_for(model) == "engine"
    assert ops.tape_bytes(model, [3, 4, 3], torch.float64, device="cuda") > 0
    check_exact(model, size, True, assert_close_as_vectors, tape_bytes=tape_bytes)


def check_exact(
    model: nn.Module, size: int, training: bool, assert_close_as_vectors: Check, **choices: int
) -> None:
    device = next(model.parameters()).device
    model(torch.randn(4, 3, size, size, dtype=torch.float64, device=device))  # running statistics
    model.train(training)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    leaves, batches = leaves_of(model, size, device), steps(device)
    results = []
    for theta in (
        ops.unroll(model, **leaves, batches=batches, momentum=MOMENTUM, **choices),
        unrolled(model, leaves, batches),
    ):
        weights = torch.linspace(-1, 1, theta.numel(), dtype=theta.dtype, device=device)
        loss = (theta * weights).sum() + theta.square().sum()
        results.append([theta, *torch.autograd.grad(loss, list(leaves.values()))])
    assert_close_as_vectors(*results, EXACT)
    # Neither the steps nor their repetition count in the running statistics.
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_statistics_of_the_batch_are_differentiated(device: torch.device) -> None:
    model = network("convnet:batch,width=4,depth=1", 8, device)
    leaves, batches = leaves_of(model, 8, device), steps(device)

    def image_gradient() -> Tensor:
        theta = ops.unroll(model, **leaves, batches=batches)
        return torch.autograd.grad(theta.square().sum(), leaves["images"])[0]

    in_training = image_gradient()
    model.eval()
    assert not torch.allclose(in_training, image_gradient(), rtol=1e-3)


def test_derivatives_of_one_gradient_with_batch_norm(
    device: torch.device, assert_close_as_vectors: Check
) -> None:
    # Smooth, so that differences mean something.
    model = network("convnet:batch,width=4,depth=2,activation=sigmoid", 8, device)
    leaves = leaves_of(model, 8, device)
    theta, images, labels = (leaves[name].detach() for name in ("theta0", "images", "labels"))
    tangent, step = torch.randn_like(theta), 1e-5
    got = ops.gradient_jvp(model, theta, images, labels, tangent)
    _, grad = ops.gradient(model, theta, images, labels)
    assert_close_as_vectors([got.directional], [grad.dot(tangent)], EXACT)
    ahead, behind = (
        ops.gradient(model, theta + sign * step * tangent, images, labels)[1] for sign in (1, -1)
    )
    assert_close_as_vectors([got.grad_theta], [(ahead - behind) / (2 * step)], 1e-5)


def test_one_gradient_counts_once_in_the_running_statistics(device: torch.device) -> None:
    model = network("convnet:batch,width=4,depth=2", 8, device)
    leaves = leaves_of(model, 8, device)
    theta, images, labels = (leaves[name].detach() for name in ("theta0", "images", "labels"))
    wanted = copy.deepcopy(model)
    networks.load_flat_parameters(wanted, theta)
    own = networks.flat_parameters(model)
    for count in (1, 2):
        wanted(images)
        ops.gradient(model, theta, images, labels, update_buffers=True)
        torch.testing.assert_close(networks.flat_buffers(model), networks.flat_buffers(wanted))
        assert model.features[1].num_batches_tracked == count
    kept = networks.flat_buffers(model)
    ops.gradient(model, theta, images, labels)
    ops.gradient_jvp(model, theta, images, labels, theta)
    assert torch.equal(networks.flat_buffers(model), kept)
    assert torch.equal(networks.flat_parameters(model), own)


def test_buffers_follow_the_parameters(device: torch.device) -> None:
    # A float32 module on the CPU, and parameters in float64 on the device.
    model = networks.build(networks.specify("convnet:batch,width=4,depth=1", 3, 4, 8))
    theta = networks.flat_parameters(model).double().to(device)
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64, device=device)
    _, grad = ops.gradient(model, theta, images, torch.arange(3, device=device))
    assert grad.dtype == torch.float64
