"""Optimisers of the unrolled loop: against torch.optim, and their adjoints against the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trajmatch import networks, ops, reference
from trajmatch.data import DSA

Check = Callable[..., None]

#: The promise: gradients within this relative error of the unrolled graph's.
EXACT = 1e-9

OPTIMISERS = {
    "sgd": ops.SGD(),
    "momentum": ops.SGD(0.9),
    "nesterov": ops.SGD(0.9, nesterov=True),
    "decay": ops.SGD(0.5, weight_decay=0.1),
    "adam": ops.Adam(),
    "adam-decay": ops.Adam((0.8, 0.95), 1e-4, weight_decay=0.1),
    "adamw": ops.Adam((0.0, 0.9), 1e-6, weight_decay=0.1, decoupled=True),
}
EVERY_OPTIMISER = pytest.mark.parametrize("name", OPTIMISERS)
STEPS = 4
#: Choices of the call, and the shapes of the learning rate that go with them.
LABELS = {"hard": ("step", "tensor"), "soft": ("one", "both"), "mse": ("tensor",)}


class Gated(nn.Module):
    """Outside of the engine: a product of two branches, one with a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(192, 5), nn.Linear(192, 5)
        self.norm, self.out = nn.LayerNorm(5), nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return self.out(torch.sigmoid(self.left(flat)) * self.norm(self.right(flat)))


def model_of(kind: str, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    if kind in ("engine", "instance norm"):
        # Before an instance norm the gradient of a bias is rounding, which a new Adam divides by
        # eps.
        norm = "layer" if kind == "engine" else "instance"
        model: nn.Module = networks.ConvNet(3, 4, 8, 4, 2, norm=norm)
    elif kind == "perceptron":
        model = networks.build(networks.specify("mlp:width=5", 3, 4, 8))
    elif kind == "batch norm":
        layers = (nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.GELU())
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(36, 4))
    else:
        model = Gated()
    engine = kind in ("engine", "instance norm", "perceptron")
    assert ops.engine_for(model) == ("engine" if engine else "autograd")
    return model.double().to(device)


def problem(
    model: nn.Module, optimiser: Any, labels: str, shape: str, steps: int = STEPS
) -> tuple[dict[str, Any], list[Tensor]]:
    """Arguments of an unroll with a state, and the leaves among them."""
    theta = networks.flat_parameters(model)
    tensors = len(list(model.parameters()))
    sizes = {"one": (), "step": (steps,), "tensor": (1, tensors), "both": (steps, tensors)}[shape]
    rows = {"SGD": int(getattr(optimiser, "momentum", 0) > 0), "Adam": 2}[type(optimiser).__name__]
    lr = 0.01 + 0.02 * torch.rand(sizes, dtype=torch.float64)
    targets = torch.arange(6) % 4 if labels == "hard" else torch.randn(6, 4, dtype=torch.float64)
    state = 0.1 * torch.rand(rows, len(theta), dtype=torch.float64)
    leaves = [
        each.to(theta.device).requires_grad_(each.is_floating_point())
        for each in (theta, torch.randn(6, 3, 8, 8, dtype=torch.float64), targets, lr, state)
    ]
    given = dict(zip(("theta0", "images", "labels", "lr"), leaves, strict=False))
    given["batches"] = [torch.randperm(6)[:size].to(theta.device) for size in (3, 4, 2)][:steps]
    given["batches"] += [torch.randperm(6)[:3].to(theta.device) for _ in range(steps - 3)]
    given["loss"] = "mse" if labels == "mse" else "cross_entropy"
    # A single learning rate makes a new optimiser, whose squares begin with this gradient.
    known = None if shape == "one" else ops.OptimiserState(leaves[4], 3)
    given |= {"optimiser": optimiser, "state": known}
    return given, [each for each in leaves if each.requires_grad and each.numel() > 0]


def value_of(thetas: Tensor, state: ops.OptimiserState | None) -> Tensor:
    """A loss that sees every number of the result."""
    parts = [thetas] if state is None else [thetas, 10 * state.tensors]
    flat = torch.cat([each.flatten() for each in parts])
    weights = torch.linspace(-1, 1, len(flat), dtype=flat.dtype, device=flat.device)
    return (flat * weights).sum() + flat.square().sum()


def results(functions: Any, model: nn.Module, given: dict, leaves: list, **choices: Any) -> list:
    thetas, state = functions.unroll(model, **given, **choices, return_state=True)
    grads = torch.autograd.grad(value_of(thetas, state), leaves, materialize_grads=True)
    return [thetas, state.tensors, *grads]


@EVERY_OPTIMISER
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("kind", ["engine", "batch norm", "gated"])
def test_is_exact(
    device: torch.device, assert_close_as_vectors: Check, name: str, labels: str, kind: str
) -> None:
    model = model_of(kind, device)
    for shape in LABELS[labels]:
        given = problem(model, OPTIMISERS[name], labels, shape)
        choices = {"loss_scale": 0.7, "steps": [2, STEPS], "tape_bytes": 5000 * len(shape)}
        ours, exact = (results(of, model, *given, **choices) for of in (ops, reference))
        assert_close_as_vectors(ours, exact, EXACT)


@EVERY_OPTIMISER
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("kind", ["instance norm", "batch norm", "gated"])
def test_fifty_steps(
    device: torch.device, assert_close_as_vectors: Check, name: str, labels: str, kind: str
) -> None:
    model = model_of(kind, device)
    given = problem(model, OPTIMISERS[name], labels, "step", steps=50)
    augment = DSA("color_flip_rotate").replay(seed=0)
    ours, exact = (results(of, model, *given, augment=augment) for of in (ops, reference))
    pairs = zip(ours, exact, strict=True)
    errors = [((one - other).norm() / other.norm()).item() for one, other in pairs if len(other)]
    print(f"\n{name}, {labels}, {kind}: {max(errors):.0e}")
    assert_close_as_vectors(ours, exact, EXACT)


@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_engine_networks_in_a_loop_of_python(
    device: torch.device, assert_close_as_vectors: Check, name: str
) -> None:
    model = model_of("engine", device)
    given = problem(model, OPTIMISERS[name], "hard", "tensor")

    def augment(images: Tensor, step: int) -> Tensor:
        return images * (1 + 0.1 * step) - 0.05 * images.square()

    ours, exact = (results(of, model, *given, augment=augment) for of in (ops, reference))
    assert_close_as_vectors(ours, exact, EXACT)


@EVERY_OPTIMISER
@pytest.mark.parametrize("kind", ["engine", "batch norm"])
def test_two_halves_are_the_whole(
    device: torch.device, assert_close_as_vectors: Check, name: str, kind: str
) -> None:
    model = model_of(kind, device)
    given, leaves = problem(model, OPTIMISERS[name], "soft", "both")
    whole = results(ops, model, given, leaves)
    first, second = (
        {**given, "batches": given["batches"][part], "lr": given["lr"][part]}
        for part in (slice(2), slice(2, None))
    )
    theta, state = ops.unroll(model, **first, return_state=True)
    assert state.steps == 5
    theta, state = ops.unroll(
        model, **{**second, "theta0": theta, "state": state}, return_state=True
    )
    grads = torch.autograd.grad(value_of(theta, state), leaves)
    assert_close_as_vectors([theta, state.tensors, *grads], whole, EXACT)


@EVERY_OPTIMISER
@pytest.mark.parametrize("frozen", [False, True])
def test_steps_are_those_of_torch_optim(device: torch.device, name: str, frozen: bool) -> None:
    model, optimiser = model_of("gated", device), OPTIMISERS[name]
    model.left.weight.requires_grad_(not frozen)
    given, _ = problem(model, optimiser, "hard", "one")
    del given["state"]
    kind: Any = torch.optim.SGD
    if isinstance(optimiser, ops.Adam):
        kind = torch.optim.AdamW if optimiser.decoupled else torch.optim.Adam
    settings = {key: each for key, each in vars(optimiser).items() if key != "decoupled"}
    end, state = ops.unroll(model, **given, return_state=True)
    steps = kind(model.parameters(), lr=given["lr"].item(), **settings)
    for batch in given["batches"]:
        steps.zero_grad()
        logits = model(given["images"].detach()[batch])
        nn.functional.cross_entropy(logits, given["labels"][batch]).backward()
        steps.step()
    torch.testing.assert_close(end, networks.flat_parameters(model), rtol=1e-12, atol=1e-14)
    names = ("exp_avg", "exp_avg_sq") if isinstance(optimiser, ops.Adam) else ("momentum_buffer",)
    for row, each in zip(state.tensors, names, strict=False):
        kept = [steps.state[p].get(each, torch.zeros_like(p)) for p in model.parameters()]
        wanted = torch.cat([part.flatten() for part in kept])
        torch.testing.assert_close(row, wanted, rtol=1e-12, atol=1e-14)


@EVERY_OPTIMISER
def test_frozen_parameters_stay_where_they_are(
    device: torch.device, assert_close_as_vectors: Check, name: str
) -> None:
    model = model_of("gated", device)
    model.left.weight.requires_grad_(False)
    given, leaves = problem(model, OPTIMISERS[name], "soft", "both")
    ours, exact = (results(of, model, given, leaves) for of in (ops, reference))
    assert_close_as_vectors(ours, exact, EXACT)
    size = model.left.weight.numel()
    assert torch.equal(ours[0][:size], given["theta0"][:size])
    assert ours[0][size:].ne(given["theta0"][size:]).all()


@EVERY_OPTIMISER
@pytest.mark.parametrize("kind", ["engine", "gated"])
def test_the_inexact_gradient_leaves_out_the_hessians(
    device: torch.device, assert_close_as_vectors: Check, name: str, kind: str
) -> None:
    model, optimiser = model_of(kind, device), OPTIMISERS[name]
    given, leaves = problem(model, optimiser, "soft", "step")
    ours = results(ops, model, given, leaves, exact=False)
    theta, images, labels, lr = leaves[:4]
    memory = given["state"].tensors if optimiser.state_rows else torch.zeros_like(theta[None])
    for step, batch in enumerate(given["batches"]):
        at = (theta.detach(), images[batch], labels[batch])
        _, grad = reference.gradient(model, *at)
        theta, memory = reference.optimiser_step(
            optimiser.numbers(), theta, grad, memory, lr[step], step + 4
        )
    state = ops.OptimiserState(memory[: optimiser.state_rows], 7)
    wanted = torch.autograd.grad(value_of(theta, state), leaves)
    assert_close_as_vectors(ours, [theta, state.tensors, *wanted], EXACT)


@pytest.mark.parametrize(("name", "vectors"), [("momentum", 1), ("nesterov", 2), ("adam", 3)])
def test_what_is_kept_of_a_step(device: torch.device, name: str, vectors: int) -> None:
    model = model_of("gated", device)
    given, _ = problem(model, OPTIMISERS[name], "soft", "one", steps=10)
    node: Any = ops.unroll(model, **given, steps=[10]).grad_fn
    size = len(given["theta0"])
    kept = sum(each.numel() for each in node.saved_tensors if each.shape[-1:] == (size,))
    assert kept <= (10 * vectors + 2) * size and kept >= 10 * vectors * size


@pytest.mark.parametrize("kind", ["perceptron", "gated"])
def test_a_gradient_of_0_is_the_limit_of_small_ones(
    device: torch.device, assert_close_as_vectors: Check, kind: str
) -> None:
    """The weights of a black pixel have no gradient; the root in Adam's step has no derivative."""
    model = model_of(kind, device)
    given, _ = problem(model, ops.Adam(eps=1e-2), "soft", "one")
    del given["state"]
    found = []
    for value in (0.0, 1e-10):
        images = given["images"].detach().clone()
        images[:, 0] = value
        leaves = [images.requires_grad_(), given["lr"], given["labels"]]
        of = reference if value else ops
        end = of.unroll(model, **{**given, "images": images})
        found.append([end, *torch.autograd.grad(value_of(end, None), leaves)])
    assert_close_as_vectors(*found, 1e-7)


@pytest.mark.parametrize("kind", ["engine", "batch norm"])
def test_inference_mode(device: torch.device, kind: str) -> None:
    model = model_of(kind, device)
    given, _ = problem(model, ops.Adam(), "soft", "both")
    wanted = ops.unroll(model, **given)
    with torch.inference_mode():
        known = ops.OptimiserState(given["state"].tensors.clone(), 3)
        assert torch.equal(ops.unroll(model, **{**given, "state": known}), wanted)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own
def test_a_tangent_of_the_state_is_refused() -> None:
    model = model_of("gated", torch.device("cpu"))
    given, _ = problem(model, ops.Adam(), "soft", "both")
    tensors = given.pop("state").tensors.detach()
    with pytest.raises(NotImplementedError, match="without forward-mode tangents"):
        torch.func.jvp(
            lambda x: ops.unroll(model, **given, state=ops.OptimiserState(x, 3)),
            (tensors,),
            (tensors,),
        )


@pytest.mark.parametrize(
    ("changes", "kind", "match"),
    [
        ({"momentum": 0.9}, ValueError, "momentum to be left out if optimiser is given, but"),
        ({"optimiser": ops.SGD}, TypeError, "got the class trajmatch.ops.optimisers.SGD"),
        ({"lr": "0.1"}, TypeError, "lr to be a tensor, an array or a list of numbers, but got str"),
        (
            {"optimiser": ops.SGD()},
            ValueError,
            r"shape \[0, \d+\] \(the state of SGD\(momentum=0.0",
        ),
        ({"state": torch.zeros(2, 4)}, TypeError, "state to be a trajmatch.ops.OptimiserState"),
        (
            {"state": ops.OptimiserState(torch.zeros(2, 4).double(), 0)},
            ValueError,
            r"state.tensors to have shape \[2, \d+\] .*, but got \[2, 4\]",
        ),
        (
            {"lr": torch.ones(3).double()},
            ValueError,
            r"lr to have shape \[\], \[4\] \(one per step\)",
        ),
        (
            {"lr": torch.ones(2, 8).double()},
            ValueError,
            r"\[1, 8\] \(one per parameter tensor\) or \[4, 8\] .*, but got \[2, 8\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict, kind: Any, match: str) -> None:
    model = model_of("gated", torch.device("cpu"))
    given, _ = problem(model, ops.Adam(), "soft", "step")
    with pytest.raises(kind, match="trajmatch::unroll: expected " + ".*" + match):
        ops.unroll(model, **{**given, **changes})


@pytest.mark.parametrize(
    ("kind", "settings", "match"),
    [
        (ops.SGD, {"momentum": -0.1}, "SGD: expected momentum to be at least 0, but got -0.1"),
        (ops.SGD, {"nesterov": True}, "momentum to be above 0 with nesterov, but got 0.0"),
        (ops.SGD, {"weight_decay": float("nan")}, "weight_decay to be at least 0, but got nan"),
        (ops.Adam, {"betas": (0.9, 1.0)}, r"Adam: expected betas to be two numbers in \[0, 1\)"),
        (ops.Adam, {"betas": (0.9,)}, r"two numbers in \[0, 1\), but got \(0.9,\)"),
        (ops.Adam, {"eps": 0.0}, "eps to be above 0, but got 0.0"),
        (ops.Adam, {"weight_decay": -1}, "weight_decay to be at least 0, but got -1"),
    ],
)
def test_settings_out_of_range(kind: Any, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        kind(**settings)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (ops.SGD, {"momentum": torch.tensor(0.9)}),
        (ops.SGD, {"weight_decay": torch.tensor(0.1)}),
        (ops.Adam, {"betas": (torch.tensor(0.9), 0.99)}),
        (ops.Adam, {"eps": torch.tensor(1e-8)}),
        (ops.Adam, {"weight_decay": "0.1"}),
    ],
)
def test_settings_that_are_no_numbers(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(
        TypeError, match=f"{kind.__name__}: expected .*{next(iter(settings))} to be a number"
    ):
        kind(**settings)


def test_numbers_for_the_operators() -> None:
    assert ops.SGD(0.9, True, 5e-4).numbers() == [0, 0.9, 1, 5e-4]
    assert ops.Adam((0.8, 0.99), 1e-6, 0.1, True).numbers() == [1, 0.8, 0.99, 1e-6, 0.1, 1]
