"""The unrolled loop and its adjoint against the graph of all steps, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trajmatch import networks, ops, reference
from trajmatch.block import ACTIVATIONS, IMAGE_NORMS, POOLINGS
from trajmatch.data import DSA
from trajmatch.networks import ConvNet

Check = Callable[..., None]

#: The promise: gradients within this relative error of the unrolled graph's.
EXACT = 1e-9


class Attention(nn.Module):
    """Outside the engine: one attention layer over the rows of the images."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(channels * size, 6)
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.out = nn.Linear(6, classes)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.embed(images.transpose(1, 2).flatten(2))
        scores = self.query(rows) @ self.key(rows).transpose(1, 2)
        return self.out((torch.softmax(scores / 6**0.5, dim=-1) @ self.value(rows)).mean(dim=1))


def smooth_net(channels: int, size: int, classes: int) -> nn.Module:
    """Outside the engine too, though made of the layers that it knows."""
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, stride=2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(4 * ((size - 3) // 2 + 1) ** 2, classes),
    )


def set_of(
    model: nn.Module, channels: int, size: int, soft: bool, device: torch.device, classes: int = 4
) -> dict[str, Tensor]:
    """Synthetic set, start and step size, as leaves."""
    theta = networks.flat_parameters(model).double()
    leaves = {
        "theta0": theta + 0.1 * torch.randn_like(theta),
        "images": torch.randn(6, channels, size, size, dtype=torch.float64),
        "labels": (
            torch.randn(6, classes, dtype=torch.float64) if soft else torch.arange(6) % classes
        ),
        "lr": torch.tensor(0.05, dtype=torch.float64),
    }
    return {
        name: each.to(device).requires_grad_(each.is_floating_point())
        for name, each in leaves.items()
    }


def compare(
    model: nn.Module,
    leaves: dict[str, Tensor],
    batches: Any,
    check: Check,
    bound: float = EXACT,
    **choices: Any,
) -> None:
    """Parameters and all gradients of both, for a loss that sees every returned parameter."""
    results = []
    for functions in (ops, reference):
        thetas = functions.unroll(model, **leaves, batches=batches, **choices)
        weights = torch.linspace(-1, 1, thetas.numel(), dtype=thetas.dtype, device=thetas.device)
        loss = (thetas.flatten() * weights).sum() + thetas.square().sum()
        inputs = [each for each in leaves.values() if each.requires_grad]
        results.append([thetas, *torch.autograd.grad(loss, inputs)])
    check(*results, bound)


@pytest.mark.parametrize(
    ("norm", "activation", "pooling"), list(itertools.product(IMAGE_NORMS, ACTIVATIONS, POOLINGS))
)
def test_every_convnet_is_exact(
    device: torch.device, assert_close_as_vectors: Check, norm: str, activation: str, pooling: str
) -> None:
    # Odd and even sizes, 1 and 3 channels, depth 1 to 3; unequal batches with repeated images.
    batches = [torch.tensor(each, device=device) for each in ([0, 1, 2, 3], [4, 5, 0], [1, 1, 5])]
    for channels, size, depth, soft in ((1, 7, 1, False), (3, 8, 2, True), (1, 9, 3, True)):
        model = ConvNet(channels, 4, size, 4, depth, norm, activation, pooling)
        leaves = set_of(model, channels, size, soft, device)
        compare(model, leaves, batches, assert_close_as_vectors, momentum=0.5, loss_scale=1.3)


@pytest.mark.parametrize(("norm", "pooling"), list(itertools.product(IMAGE_NORMS, POOLINGS)))
def test_four_blocks(
    device: torch.device, assert_close_as_vectors: Check, norm: str, pooling: str
) -> None:
    model = ConvNet(3, 4, 16, 4, 4, norm, "relu", pooling)
    leaves = set_of(model, 3, 16, False, device)
    batches = [torch.tensor(each, device=device) for each in ([0, 1, 2, 3], [4, 5, 0])]
    compare(model, leaves, batches, assert_close_as_vectors)


def test_28_pixel_images_are_padded_to_32(
    device: torch.device, assert_close_as_vectors: Check
) -> None:
    model = ConvNet(1, 4, 28, 4, 3)
    leaves = set_of(model, 1, 28, False, device)
    batches = torch.tensor([[0, 1], [2, 3]], device=device)
    compare(model, leaves, batches, assert_close_as_vectors)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("loss_scale", [1.0, 0.6])
@pytest.mark.parametrize("steps", [None, [5], [2, 5, 2], [1, 3]])
def test_momentum_scale_and_intermediate_steps(
    device: torch.device,
    assert_close_as_vectors: Check,
    momentum: float,
    loss_scale: float,
    steps: list[int] | None,
) -> None:
    model = ConvNet(3, 4, 8, 4, 2)
    leaves = set_of(model, 3, 8, True, device)
    batches = torch.tensor([[0, 1, 2], [3, 4, 5], [0, 2, 4], [5, 5, 1], [2, 3, 0]], device=device)
    choices = {"momentum": momentum, "loss_scale": loss_scale, "steps": steps}
    compare(model, leaves, batches, assert_close_as_vectors, **choices)


def test_fifty_steps(device: torch.device, assert_close_as_vectors: Check) -> None:
    model = ConvNet(3, 4, 8, 4, 2)
    leaves = set_of(model, 3, 8, True, device)
    batches = torch.stack([torch.randperm(6)[:4] for _ in range(50)]).to(device)
    compare(model, leaves, batches, assert_close_as_vectors, momentum=0.9, steps=[50, 25])


def shrinking_flip(images: Tensor, step: int) -> Tensor:
    """An augmentation that depends on the step and is differentiable in the images."""
    flipped = images.flip(3) if step % 2 else images
    return flipped * (1 + 0.1 * step) - 0.05 * flipped.square()


@pytest.mark.parametrize("soft", [False, True])
def test_augmentation_is_replayed(
    device: torch.device, assert_close_as_vectors: Check, soft: bool
) -> None:
    model = ConvNet(3, 4, 8, 4, 2)
    leaves = set_of(model, 3, 8, soft, device)
    batches = [torch.tensor(each, device=device) for each in ([0, 1, 2], [3, 3], [4, 5, 0, 1])]
    choices = {"augment": shrinking_flip, "momentum": 0.5, "loss_scale": 0.8, "steps": [1, 3]}
    compare(model, leaves, batches, assert_close_as_vectors, **choices)


class RecordedDsa:
    """DSA by the reference, which autograd differentiates, and by its parameters."""

    def __init__(self, strategy: str, device: torch.device) -> None:
        self.replay, self.device, self.calls = DSA(strategy).replay(seed=3), device, 0

    def __call__(self, images: Tensor, step: int) -> Tensor:
        self.calls += 1
        rows = self.dsa_parameters(step, len(images), *images.shape[2:])
        return reference.dsa(images, rows.to(self.device))

    def dsa_parameters(self, step: int, count: int, height: int, width: int) -> Tensor:
        return self.replay.dsa_parameters(step, count, height, width)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "strategy",
    ["color", "crop", "cutout", "flip", "scale", "rotate", "none", "color_crop_cutout_flip_scale"],
)
def test_dsa_is_exact_inside_of_the_loop(
    device: torch.device, assert_close_as_vectors: Check, strategy: str, soft: bool
) -> None:
    batches = [torch.tensor(each, device=device) for each in ([0, 1, 2], [3, 3], [4, 5, 0, 1, 1])]
    choices = {"momentum": 0.5, "loss_scale": 0.8, "steps": [1, 3]}
    for channels, size in ((1, 9), (3, 8)):
        model = ConvNet(channels, 4, size, 4, 2)
        leaves = set_of(model, channels, size, soft, device)
        augment = RecordedDsa(strategy, device)
        compare(model, leaves, batches, assert_close_as_vectors, augment=augment, **choices)
        assert augment.calls == len(batches)  # by the reference alone


def test_dsa_inside_and_outside_of_the_loop_agree(
    device: torch.device, assert_close_as_vectors: Check
) -> None:
    model = ConvNet(3, 4, 8, 4, 2)
    leaves = set_of(model, 3, 8, False, device)
    batches = torch.stack([torch.randperm(6)[:4] for _ in range(20)]).to(device)
    replay = DSA().replay(seed=1)
    results = []
    for augment in (replay, lambda images, step: replay(images, step)):
        theta = ops.unroll(model, **leaves, batches=batches, momentum=0.9, augment=augment)
        inputs = (leaves["theta0"], leaves["images"], leaves["lr"])
        results.append([theta, *torch.autograd.grad(theta.square().sum(), inputs)])
    assert_close_as_vectors(*results, 1e-11)


def test_an_augmentation_that_ignores_the_images(
    device: torch.device, assert_close_as_vectors: Check
) -> None:
    model = ConvNet(3, 4, 8, 4, 1)
    leaves = set_of(model, 3, 8, False, device)
    batches = torch.tensor([[0, 1], [2, 3]], device=device)

    def blank(images: Tensor, step: int) -> Tensor:
        return 0 * images + step

    compare(model, leaves, batches, assert_close_as_vectors, augment=blank)


@pytest.mark.parametrize("build", [Attention, smooth_net])
@pytest.mark.parametrize("augment", [None, shrinking_flip, DSA("color_rotate").replay(seed=0)])
def test_modules_outside_the_engine_are_exact(
    device: torch.device, assert_close_as_vectors: Check, build: Callable, augment: Any
) -> None:
    model = build(3, 8, 4).double().to(device)
    assert ops.engine_for(model) == "autograd"
    leaves = set_of(model, 3, 8, True, device)
    batches = [torch.tensor(each, device=device) for each in ([0, 1, 2], [3, 3], [4, 5, 0, 1])]
    choices = {"augment": augment, "momentum": 0.9, "loss_scale": 0.7, "steps": [3, 1]}
    compare(model, leaves, batches, assert_close_as_vectors, **choices)


def test_float32_is_close_to_float64(device: torch.device) -> None:
    # A smooth activation, so that no input of a ReLU falls on the other side of 0.
    model = ConvNet(3, 4, 16, 16, 2, activation="sigmoid")
    leaves = set_of(model, 3, 16, False, device)
    batches = torch.arange(6, device=device).repeat(10, 1)
    grads = []
    for dtype in (torch.float32, torch.float64):
        own = {
            name: each.detach().float().to(dtype).requires_grad_()
            if each.is_floating_point()
            else each
            for name, each in leaves.items()
        }
        out = ops.unroll(model, **own, batches=batches)
        grads.append(torch.autograd.grad(out.square().sum(), (own["images"], own["lr"])))
    for single, double in zip(*grads, strict=True):
        assert ((single.double() - double).norm() / double.norm()).item() < 1e-4


def test_gradients_that_nobody_asks_for_are_left_out(device: torch.device) -> None:
    model = ConvNet(3, 4, 8, 4, 1)
    leaves = {name: each.detach() for name, each in set_of(model, 3, 8, True, device).items()}
    batches = torch.tensor([[0, 1], [2, 3]], device=device)
    assert not ops.unroll(model, **leaves, batches=batches).requires_grad
    leaves["lr"].requires_grad_()
    (grad,) = torch.autograd.grad(ops.unroll(model, **leaves, batches=batches).sum(), leaves["lr"])
    assert grad.shape == ()


def test_without_gradients_nothing_is_kept(device: torch.device) -> None:
    model = ConvNet(3, 4, 8, 4, 1)
    leaves = set_of(model, 3, 8, False, device)
    batches = torch.tensor([[0, 1], [2, 3]], device=device)
    with torch.no_grad():
        alone = ops.unroll(model, **leaves, batches=batches, momentum=0.5)
    kept = ops.unroll(model, **leaves, batches=batches, momentum=0.5)
    assert torch.equal(alone, kept.detach())


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("optimiser", [None, ops.SGD(0.5, weight_decay=0.01), ops.Adam()])
def test_opcheck(device: torch.device, grad: bool, optimiser: ops.SGD | ops.Adam | None) -> None:
    model = ConvNet(3, 4, 8, 4, 1)
    leaves = list(set_of(model, 3, 8, True, device).values())
    rows = 0 if optimiser is None else optimiser.state_rows
    leaves.append(torch.rand(rows, len(leaves[0]), dtype=torch.float64, device=device))
    leaves = [each.detach().requires_grad_(grad) for each in leaves]
    flat = torch.tensor([0, 1, 2, 3, 4], device=device)
    numbers = (optimiser or ops.SGD(0.5)).numbers()
    choices = ([2, 3], [2, 1], networks.engine_description(model), numbers, 7, 0, 0.9)
    op = torch.ops.trajmatch
    augmentation = ops.dsa_parameters.rotate(torch.linspace(-0.2, 0.2, 5)).to(device)
    kept = (True, 1 << 20)
    torch.library.opcheck(op.student_unroll.default, (*leaves, flat, *choices, *kept))
    torch.library.opcheck(op.student_unroll.default, (*leaves, flat, *choices, *kept, augmentation))
    theta0, *given = (each.detach() for each in leaves)
    thetas, state, *path = op.student_unroll(theta0, *given, flat, *choices, *kept)
    for last in ((), (augmentation,)):
        above = (torch.randn_like(thetas), torch.randn_like(state))
        torch.library.opcheck(
            op.student_unroll_adjoint.default, (*above, *path, *given, flat, *choices, *last)
        )


@pytest.mark.parametrize("augment", [None, shrinking_flip, DSA().replay(seed=0)])
def test_is_bitwise_repeatable(device: torch.device, augment: Any) -> None:
    model = ConvNet(3, 4, 8, 8, 2)
    leaves = {
        name: each.detach().float().requires_grad_() if each.is_floating_point() else each
        for name, each in set_of(model, 3, 8, False, device).items()
    }
    batches = torch.tensor([[0, 1, 0], [2, 3, 0]], device=device)
    grads = [
        torch.autograd.grad(
            ops.unroll(model, **leaves, batches=batches, augment=augment).sum(), leaves["images"]
        )[0]
        for _ in range(2)
    ]
    assert torch.equal(*grads)


@pytest.mark.parametrize("augment", [None, shrinking_flip, DSA().replay(seed=0)])
def test_errors_say_what_came(device: torch.device, augment: Any) -> None:
    model = ConvNet(3, 4, 8, 4, 1)
    leaves = set_of(model, 3, 8, False, device)
    batches = torch.tensor([[0, 1], [2, 3]], device=device)

    def raises(kind: type[Exception], match: str, **changes: Any) -> None:
        with pytest.raises(kind, match=match):
            ops.unroll(model, **{**leaves, "batches": batches, "augment": augment, **changes})

    message = r"expected theta0 to have shape .*, but got \[2\]"
    raises(ValueError, message, theta0=leaves["theta0"][:2])
    for shift, wrong in ((3, 6), (-1, -1)):
        if device.type == "cpu":
            told = rf"expected batches to hold indices in \[0, 6\), but got {wrong}"
            raises(ValueError, told, batches=batches + shift)
        elif augment is None:  # to look at them would be to wait for the device
            assert ops.unroll(model, **leaves, batches=batches + shift).isnan().any()
    raises(ValueError, "expected batches to have 2 dimensions", batches=batches[0])
    raises(ValueError, "expected every batch to have 1 dimension", batches=[batches])
    raises(ValueError, "expected steps to have at least one", steps=[])
    raises(ValueError, r"lr to have shape \[\], \[2\].*, but got \[1\]", lr=leaves["lr"][None])
    raises(ValueError, "expected tape_bytes to be at least 0, but got -1", tape_bytes=-1)


def test_errors_of_an_augmentation_say_what_came(device: torch.device) -> None:
    model = ConvNet(3, 4, 8, 4, 1)
    leaves = set_of(model, 3, 8, False, device)
    batches = torch.tensor([[0, 1], [2, 3]], device=device)

    class OneRow(RecordedDsa):
        def dsa_parameters(self, step: int, count: int, height: int, width: int) -> Tensor:
            return super().dsa_parameters(step, 1, height, width)

    with pytest.raises(
        ValueError, match=r"unroll: expected augmentation to have shape \[4, 5\], but got \[2, 5\]"
    ):
        ops.unroll(model, **leaves, batches=batches, augment=OneRow("flip", device))
    leaves["images"] = leaves["images"][0]
    with pytest.raises(ValueError, match=r"images to have 4 dimensions, but got \[3, 8, 8\]"):
        ops.unroll(model, **leaves, batches=batches, augment=DSA().replay(seed=0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own
def test_compiles_with_inductor(device: torch.device) -> None:
    model = ConvNet(3, 4, 8, 4, 1)
    leaves = list(set_of(model, 3, 8, True, device).values())
    batches = torch.tensor([[0, 1], [2, 3]], device=device)

    def pipeline(*inputs: Tensor) -> Tensor:
        theta = ops.unroll(model, *inputs, batches, momentum=0.5)
        _, grad = ops.gradient(model, theta, inputs[1], inputs[2])
        theta, _ = ops.sgd_step(theta, grad, inputs[3])
        pooled = ops.norm_act_pool(inputs[1]).sum()
        return ops.param_distance(theta, inputs[0] + 1, inputs[0]) + pooled

    compiled = torch.compile(pipeline, fullgraph=True)
    got = torch.autograd.grad(compiled(*leaves), leaves)
    torch.testing.assert_close(got, torch.autograd.grad(pipeline(*leaves), leaves))


@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize("augmented", [False, True])
def test_the_inexact_gradient_is_teslas(
    device: torch.device, assert_close_as_vectors: Check, engine: bool, augmented: bool
) -> None:
    """Every ``theta_t`` a constant: with ``v = -lr dL/dtheta_N`` the gradient in ``x_t`` is that of
    ``v^T g_t``, and that in ``lr`` is ``-dL/dtheta_N^T sum g_t``."""
    model = ConvNet(1, 4, 8, 4, 2) if engine else smooth_net(1, 8, 4)
    leaves = set_of(model, 1, 8, True, device)
    batches = [torch.tensor(each, device=device) for each in ([0, 1, 2], [3, 4], [5, 0])]
    augment = DSA().replay(3) if augmented else None
    choices = {"batches": batches, "augment": augment}
    end = ops.unroll(model, **leaves, **choices, exact=False)
    above = torch.linspace(-1, 1, len(end), dtype=end.dtype, device=device)
    inputs = [leaves[name] for name in ("images", "labels", "lr", "theta0")]
    found = torch.autograd.grad(end, inputs, above)

    images, labels, lr, theta = (each.detach() for each in inputs)
    images.requires_grad_()
    labels.requires_grad_()
    wanted = [torch.zeros_like(each) for each in (images, labels, lr)]
    for step, batch in enumerate(batches):
        theta.requires_grad_()
        shown = images[batch] if augment is None else augment(images[batch], step)
        value = reference.loss_value(model, theta, shown, labels[batch], "cross_entropy")
        (grad,) = torch.autograd.grad(value, theta, create_graph=True)
        shares = torch.autograd.grad(-lr * (above @ grad), (images, labels))
        wanted = [wanted[0] + shares[0], wanted[1] + shares[1], wanted[2] - above @ grad.detach()]
        theta = (theta - lr * grad).detach()
    # All of dL/dtheta_N goes on to theta_0.
    assert_close_as_vectors(found, [*wanted, above], EXACT)
    exact = ops.unroll(model, **leaves, **choices)
    assert torch.equal(end, exact)
    difference = torch.autograd.grad(exact, inputs[:1], above)[0] - found[0]
    assert difference.norm() > 1e-3 * found[0].norm()
