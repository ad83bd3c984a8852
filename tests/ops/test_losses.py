"""Losses other than cross-entropy with logits, and inputs other than images, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from trajmatch import networks, ops, reference

Check = Callable[..., None]
#: The promise: gradients within this relative error of the unrolled graph's.
EXACT = 1e-9
IMAGES, CLASSES, WORDS = 6, 4, 11


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss with a second derivative in both arguments."""
    return (1 + (outputs - targets).square()).sqrt().mean()


def pairwise(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of labels ``[n, 2, 3]`` that are no floating numbers."""
    return outputs.sigmoid().sum(dim=1).mul(targets.sum(dim=(1, 2))).mean()


#: Choices of the call, the labels, and the same loss written out.
LOSSES: dict[str, tuple[dict[str, Any], Callable[[], Tensor], Callable[..., Tensor]]] = {
    "hard": ({}, lambda: torch.arange(IMAGES) % CLASSES, F.cross_entropy),
    "logits": (
        {},
        lambda: torch.randn(IMAGES, CLASSES),
        lambda outputs, labels: F.cross_entropy(outputs, labels.softmax(dim=1)),
    ),
    "probabilities": (  # that do not sum to one, as learned ones
        {"soft_labels": "probabilities"},
        lambda: torch.rand(IMAGES, CLASSES),
        lambda outputs, labels: -(labels * outputs.log_softmax(dim=1)).sum(dim=1).mean(),
    ),
    "mse": (
        {"loss": "mse"},
        lambda: torch.randn(IMAGES, CLASSES),
        lambda outputs, labels: (outputs - labels).square().sum() / outputs.numel(),
    ),
    "function": ({"loss": huber}, lambda: torch.randn(IMAGES, CLASSES), huber),
    "function of integers": (
        {"loss": pairwise},
        lambda: torch.randint(5, (IMAGES, 2, 3)),
        pairwise,
    ),
}


class Transformer(nn.Module):
    """Classifies sentences ``[n, 7]``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 6)
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(tokens)).mean(dim=1))


def signal_net() -> nn.Module:
    """Classifies signals ``[n, 2, 12]``."""
    return nn.Sequential(
        nn.Conv1d(2, 5, 3, padding=1),
        nn.GroupNorm(5, 5),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(60, CLASSES),
    )


def package_network(text: str) -> Callable[[], nn.Module]:
    return lambda: networks.build(networks.specify(text, 3, CLASSES, 8))


#: Networks of the engine, and modules outside it, with inputs for them.
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "convnet": (
        package_network("convnet:width=4,depth=2,activation=sigmoid"),
        lambda: torch.randn(IMAGES, 3, 8, 8),
    ),
    "mlp": (package_network("mlp:width=5"), lambda: torch.randn(IMAGES, 3, 8, 8)),
    "signal": (signal_net, lambda: torch.randn(IMAGES, 2, 12)),
    "vectors": (
        lambda: nn.Sequential(nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, CLASSES)),
        lambda: torch.randn(IMAGES, 9),
    ),
    "tokens": (Transformer, lambda: torch.randint(WORDS, (IMAGES, 7))),
}


def problem(model: str, loss: str, device: torch.device) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network, and synthetic set, start and step size as leaves."""
    make, draw = MODELS[model]
    module = make().double().to(device)
    theta = networks.flat_parameters(module)
    given = {
        "theta0": theta + 0.1 * torch.randn_like(theta),
        "images": draw(),
        "labels": LOSSES[loss][1](),
        "lr": torch.tensor(0.2),
    }
    for name, each in given.items():
        floating = each.is_floating_point()
        given[name] = each.to(device, torch.float64 if floating else each.dtype)
        given[name].requires_grad_(floating)
    return module, given


def gradients(thetas: Tensor, leaves: dict[str, Tensor]) -> list[Tensor]:
    """The parameters, and gradients of a function of all of them."""
    weights = torch.linspace(-1, 1, thetas.numel(), dtype=thetas.dtype, device=thetas.device)
    value = (thetas.flatten() * weights).sum() + thetas.square().sum()
    inputs = [each for each in leaves.values() if each.requires_grad]
    return [thetas, *torch.autograd.grad(value, inputs)]


@sdpa_kernel(SDPBackend.MATH)  # the other kernels of attention have first derivatives alone
def unrolled(
    model: nn.Module, given: dict[str, Tensor], batches: Any, loss: Callable[..., Tensor]
) -> Tensor:
    """The same steps by PyTorch alone, with the graph of all of them kept."""
    model = copy.deepcopy(model)
    shapes = networks.parameter_shapes(model)
    theta, momentum = given["theta0"], torch.zeros_like(given["theta0"])
    for batch in batches:
        parts = theta.split([shape.numel() for shape in shapes.values()])
        pairs = zip(shapes.items(), parts, strict=True)
        values = {name: part.view(shape) for (name, shape), part in pairs}
        outputs = functional_call(model, values, given["images"][batch])
        value = 0.7 * loss(outputs, given["labels"][batch])
        (grad,) = torch.autograd.grad(value, theta, create_graph=True)
        momentum = 0.9 * momentum + grad
        theta = theta - given["lr"] * momentum
    return theta


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", MODELS)
def test_unrolled_steps_are_exact(
    device: torch.device, assert_close_as_vectors: Check, model: str, loss: str
) -> None:
    module, given = problem(model, loss, device)
    choices, _, formula = LOSSES[loss]
    batches = [[0, 1, 2], [3, 3], [4, 5, 0, 1]]
    steps = {"momentum": 0.9, "loss_scale": 0.7}
    wanted = gradients(unrolled(module, given, batches, formula), given)
    for unroll in (ops.unroll, sdpa_kernel(SDPBackend.MATH)(reference.unroll)):
        got = unroll(module, **given, batches=batches, **steps, **choices)
        assert_close_as_vectors(gradients(got, given), wanted, EXACT)
    if loss != "function of integers":  # it is no mean of terms of single images
        got = ops.unroll(module, **given, batches=batches, **steps, **choices, micro_batch=2)
        assert_close_as_vectors(gradients(got, given), wanted, EXACT)


@pytest.mark.parametrize("loss", ["mse", "probabilities"])
def test_fifty_steps_are_exact(
    device: torch.device, assert_close_as_vectors: Check, loss: str
) -> None:
    module, given = problem("convnet", loss, device)
    batches = torch.randint(IMAGES, (50, 4), device=device)
    steps = {"momentum": 0.9, "loss_scale": 0.7}
    got = ops.unroll(module, **given, batches=batches, **steps, **LOSSES[loss][0])
    wanted = unrolled(module, given, batches, LOSSES[loss][2])
    assert_close_as_vectors(gradients(got, given), gradients(wanted, given), EXACT)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", ["convnet", "tokens"])
def test_single_gradients_match_formulas(
    device: torch.device, assert_close_as_vectors: Check, model: str, loss: str
) -> None:
    module, given = problem(model, loss, device)
    del given["lr"]
    choices, _, formula = LOSSES[loss]
    theta, *inputs = given.values()
    with sdpa_kernel(SDPBackend.MATH):
        value = formula(networks.flat.call_flat(module, theta, inputs[0]), inputs[1])
    leaves = [each for each in given.values() if each.requires_grad]
    first = torch.autograd.grad(value, leaves, create_graph=True)
    tangent = torch.randn_like(theta)
    directional = first[0].dot(tangent)
    wanted = [directional, *torch.autograd.grad(directional, leaves)]

    assert_close_as_vectors(
        ops.gradient(module, *given.values(), **choices), [value, first[0]], EXACT
    )
    got = ops.gradient_jvp(module, *given.values(), tangent, **choices)
    assert (got.grad_images is None) == (model == "tokens")
    assert (got.grad_labels is None) == (not given["labels"].is_floating_point())
    assert_close_as_vectors([each for each in got if each is not None], wanted, EXACT)
    if model == "convnet":
        seen = ops.image_gradient(module, *given.values(), **choices)
        assert_close_as_vectors([seen], [first[1]], EXACT)


def test_class_indices_are_the_same_with_probabilities(device: torch.device) -> None:
    # A choice for soft labels alone: class indices stay on the engine.
    module, given = problem("convnet", "hard", device)
    batches = [[0, 1], [2, 3]]
    wanted = ops.unroll(module, **given, batches=batches)
    got = ops.unroll(module, **given, batches=batches, soft_labels="probabilities")
    assert torch.equal(got, wanted)


def test_outputs_of_any_shape_are_regressed(
    device: torch.device, assert_close_as_vectors: Check
) -> None:
    module = nn.Sequential(nn.Linear(9, 6), nn.Unflatten(1, (2, 3))).double().to(device)
    _, given = problem("vectors", "mse", device)
    theta = networks.flat_parameters(module).requires_grad_()
    labels = torch.randn(IMAGES, 2, 3, dtype=torch.float64, device=device, requires_grad=True)
    given |= {"theta0": theta, "labels": labels}
    got = ops.unroll(module, **given, batches=[[0, 1]], loss="mse", momentum=0.9, loss_scale=0.7)
    wanted = unrolled(module, given, [[0, 1]], F.mse_loss)
    assert_close_as_vectors(gradients(got, given), gradients(wanted, given), EXACT)


def test_augmented_tokens_are_repeated(
    device: torch.device, assert_close_as_vectors: Check
) -> None:
    module, given = problem("tokens", "logits", device)

    def rolled(tokens: Tensor, step: int) -> Tensor:
        return tokens.roll(step, dims=1)

    results = [
        unroll(module, **given, batches=[[0, 1], [2, 3]], augment=rolled)
        for unroll in (ops.unroll, sdpa_kernel(SDPBackend.MATH)(reference.unroll))
    ]
    assert_close_as_vectors(*(gradients(each, given) for each in results), EXACT)


def test_batch_norm_of_tokens_is_found(device: torch.device) -> None:
    module = nn.Sequential(nn.Embedding(WORDS, 3), nn.Flatten(), nn.BatchNorm1d(21))
    _, given = problem("tokens", "mse", device)
    given["theta0"] = networks.flat_parameters(module.to(device)).double()
    given["labels"] = torch.zeros(IMAGES, 21, dtype=torch.float64, device=device)
    with pytest.raises(ValueError, match="micro_batch to be None"):
        ops.unroll(module, **given, batches=[[0, 1, 2]], loss="mse", micro_batch=2)


@pytest.mark.parametrize(
    ("model", "kind", "match", "changes"),
    [
        ("convnet", ValueError, "loss to be one of cross_entropy, mse, or a function of .*'mae'",
         {"loss": "mae"}),
        ("convnet", ValueError, "loss to be one of cross_entropy, mse, .* but got 'sum_logits'",
         {"loss": "sum_logits"}),
        ("convnet", ValueError, "soft_labels to be one of logits, probabilities, but got 'hard'",
         {"soft_labels": "hard"}),
        ("convnet", ValueError, "soft_labels to be left out with loss='mse'",
         {"loss": "mse", "soft_labels": "probabilities"}),
        ("convnet", TypeError, r"labels to be float64 \(targets of loss='mse'\), but got int64",
         {"loss": "mse", "labels": torch.arange(IMAGES)}),
        ("convnet", ValueError, r"labels to have shape \[6, \.\.\.\], but got \[5, 4\]",
         {"loss": "mse", "labels": torch.rand(5, CLASSES).double()}),
        ("convnet", ValueError, r"labels to have shape \[6, 4\], but got \[6, 5\]",
         {"loss": "mse", "labels": torch.rand(IMAGES, 5).double()}),
        ("signal", ValueError, r"labels to have shape \[3, 4\] \(the shape of the model's outputs",
         {"labels": torch.rand(IMAGES, 5).double()}),
        ("convnet", ValueError, r"labels to have shape \[6, K\] \(probabilities of 6 images\)",
         {"labels": torch.rand(IMAGES).double(), "soft_labels": "probabilities"}),
        ("convnet", TypeError, r"labels to be int64 \(class indices\) or float64 \(probabilities\)",
         {"labels": torch.ones(IMAGES).int(), "soft_labels": "probabilities"}),
        ("convnet", TypeError, "labels to be float64, but got float32",
         {"labels": torch.rand(IMAGES, CLASSES), "soft_labels": "probabilities"}),
        ("vectors", ValueError, "a scalar tensor, the mean over the batch, but got a Tensor of "
         r"shape \[3, 4\]", {"loss": lambda outputs, labels: (outputs - labels).abs()}),
        ("vectors", ValueError, r"a Tensor of shape \[\] that has no gradient with "
         "respect to the outputs",
         {"loss": lambda outputs, targets: huber(outputs, targets).detach()}),
        ("vectors", ValueError, "a scalar tensor, the mean over the batch, but got a float",
         {"loss": lambda outputs, labels: 0.5}),
        ("vectors", ValueError, r"labels to have shape \[6, \.\.\.\], but got \[\]",
         {"loss": huber, "labels": torch.tensor(1.0)}),
        ("convnet", TypeError, "images to be float64, but got int64",
         {"images": torch.zeros(IMAGES, 3, 8, 8, dtype=torch.int64), "loss": "mse"}),
        ("vectors", TypeError, "images to be float64, but got uint8",
         {"images": torch.zeros(IMAGES, 9).byte()}),
    ],
)  # fmt: skip
def test_errors_say_what_came(
    device: torch.device, model: str, kind: type[Exception], match: str, changes: dict[str, Any]
) -> None:
    module, given = problem(model, "logits", device)
    for name, each in changes.items():
        changes[name] = each.to(device) if isinstance(each, Tensor) else each
    with pytest.raises(kind, match="trajmatch.*: expected .*" + match):
        ops.unroll(module, **(given | {"batches": [[0, 1, 2]]} | changes))


def test_tokens_have_no_gradient_of_their_own(device: torch.device) -> None:
    module, given = problem("tokens", "hard", device)
    at = (given["theta0"], given["images"], given["labels"])
    with pytest.raises(TypeError, match="images to be float32 or float64, but got int64"):
        ops.image_gradient(module, *at)
    with pytest.raises(ValueError, match="image_tangent to be None for tokens, but got a tensor"):
        ops.gradient_jvp(module, *at, image_tangent=torch.zeros(IMAGES, 7, device=device))
