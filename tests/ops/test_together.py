"""Students that are unrolled together: the results and gradients of one after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trajmatch import networks, ops
from trajmatch.data import DSA

STUDENTS, IMAGES, CLASSES = 3, 4, 4
#: Batches of different sizes, as at the end of a permutation.
SIZES = (1, 2)

TAPE = 1 << 30
NAMES = ("theta0", "images", "labels")
LIBRARY = [
    ("convnet:width=8,depth=2", 8, torch.float64),
    ("convnet:width=8,depth=2", 8, torch.float32),
    ("convnet:batch,width=4,depth=2", 8, torch.float64),
    ("convnet:layer,width=4,depth=2", 8, torch.float64),
    ("resnet18:batch,width=4", 16, torch.float64),
    ("mlp:width=5", 6, torch.float64),
    ("lenet", 28, torch.float64),
]
FUSED = "convnet:width=32,depth=2", 32, torch.float32
#: Network, side and dtype; CUDA blocks, soft labels and memory for tapes.
CASES = [
    *((*each, "library", *how) for each in LIBRARY for how in ((False, 0), (True, TAPE))),
    (*FUSED, "first", True, TAPE),
    (*FUSED, "tf32", True, TAPE),
    (*FUSED, "fp16", False, 0),
    # Padded images of one channel.
    ("convnet:width=16,depth=1", 28, torch.float32, "first", False, TAPE),
]


def network(text: str, size: int, device: torch.device) -> nn.Module:
    channels = 1 if size == 28 else 3
    return networks.build(networks.specify(text, channels, CLASSES, size)).to(device)


def students(
    model: nn.Module, size: int, dtype: torch.dtype, soft: bool, device: torch.device
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """The calls of several students, and all tensors that have gradients."""
    calls, leaves = [], []
    shape = getattr(model, "image_shape", (3, size, size))
    for k in range(STUDENTS):
        draw = torch.Generator().manual_seed(k)
        start = networks.flat_parameters(networks.initialise(model, draw))
        own = {
            "theta0": start.detach().cpu(),
            "images": torch.randn(IMAGES, *shape, generator=draw),
            "labels": torch.randn(IMAGES, CLASSES, generator=draw)
            if soft
            else torch.randint(CLASSES, (IMAGES,), generator=draw),
            "lr": torch.tensor(0.02 * (k + 1)),
        }
        for name, each in own.items():
            if each.is_floating_point():
                own[name] = each.to(device, dtype).requires_grad_()
                leaves.append(own[name])
            else:
                own[name] = each.to(device)
        batches = [torch.randperm(IMAGES, generator=draw)[:count].to(device) for count in SIZES]
        calls.append({**own, "batches": batches})
    return calls, leaves


def results_of(ends: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    joined = torch.stack(ends)
    weights = torch.linspace(-1, 1, joined.numel()).to(joined).reshape(joined.shape)
    return [*ends, *torch.autograd.grad((weights * joined).sum(), leaves)]


@pytest.mark.parametrize(("text", "size", "dtype", "blocks", "soft", "tape_bytes"), CASES)
def test_together_gives_what_one_after_another_gives(
    device: torch.device,
    text: str,
    size: int,
    dtype: torch.dtype,
    blocks: str,
    soft: bool,
    tape_bytes: int,
) -> None:
    model = network(text, size, device)
    calls, leaves = students(model, size, dtype, soft, device)
    for k, call in enumerate(calls):
        augment = DSA().replay(k) if soft else None
        call |= {"steps": [2, 1, 2], "momentum": 0.5, "tape_bytes": tape_bytes, "augment": augment}
    with ops.cuda_blocks(blocks):
        together = results_of(ops.unroll_together(model, calls), leaves)
        alone = results_of([ops.unroll(model, **call) for call in calls], leaves)
    # The same kernels run in the same order, but products of libraries may round otherwise.
    bound = 1e-12 if dtype == torch.float64 else 0.0 if device.type == "cpu" else 1e-3
    for one, other in zip(together, alone, strict=True):
        assert (one - other).norm() <= bound * other.norm()


@pytest.mark.parametrize("choices", [{"loss": "mse"}, {"soft_labels": "probabilities"}])
def test_together_with_other_losses(device: torch.device, choices: dict[str, str]) -> None:
    model = network("convnet:width=4,depth=1", 8, device)
    calls, leaves = students(model, 8, torch.float64, True, device)
    calls = [{**call, **choices} for call in calls]
    together = results_of(ops.unroll_together(model, calls), leaves)
    alone = results_of([ops.unroll(model, **call) for call in calls], leaves)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "choices",
    [
        {"optimiser": ops.Adam()},
        {"optimiser": ops.SGD(0.5, nesterov=True)},
        {"lr": [0.1, 0.2]},
        {"micro_batch": 1},
        {"loss": lambda outputs, labels: outputs.square().mean()},
        {"augment": lambda images, step: images.flip(3)},
        {"return_state": True},
    ],
)
def test_other_calls_run_one_after_another(device: torch.device, choices: dict[str, Any]) -> None:
    model = network("convnet:width=4,depth=1", 8, device)
    calls, _ = students(model, 8, torch.float64, False, device)
    calls = [{**call, **choices} for call in calls]
    for one, call in zip(ops.unroll_together(model, calls), calls, strict=True):
        other = ops.unroll(model, **call)
        if "return_state" in choices:
            one, other = one[0], other[0]
        assert torch.equal(one, other)


def test_calls_may_differ_in_everything(device: torch.device) -> None:
    model = network("convnet:width=4,depth=1", 8, device)
    calls, _ = students(model, 8, torch.float64, False, device)
    calls[1] |= {"batches": calls[1]["batches"][:1], "momentum": 0.9}
    calls[2] |= {"steps": [2]}
    ends = ops.unroll_together(model, calls)
    assert [each.dim() for each in ends] == [1, 1, 2]
    for one, call in zip(ends, calls, strict=True):
        assert torch.equal(one, ops.unroll(model, **call))
    assert ops.unroll_together(model, []) == []


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_of_several_trajectories(device: torch.device, grad: bool) -> None:
    model = network("convnet:width=4,depth=1", 8, device)
    calls, _ = students(model, 8, torch.float64, True, device)
    names = ("theta0", "images", "labels", "lr")
    leaves = [torch.stack([call[name] for call in calls]).detach() for name in names]
    leaves.append(leaves[0].new_zeros(0, leaves[0].shape[1]))
    leaves = [each.requires_grad_(grad) for each in leaves]
    flat = torch.tensor([0, 1, 2, 3, 0, 1, 0, 1, 2], device=device)
    numbers = ops.SGD(0.5).numbers()
    choices = ([2, 1], [2, 1], networks.engine_description(model), numbers, 0, 0, 0.9)
    op, kept = torch.ops.trajmatch, (True, 1 << 20)
    torch.library.opcheck(op.student_unroll.default, (*leaves, flat, *choices, *kept))
    theta0, *given = (each.detach() for each in leaves)
    thetas, _, *path = op.student_unroll(theta0, *given, flat, *choices, *kept)
    problem = (torch.randn_like(thetas), None, *path, *given, flat, *choices)
    torch.library.opcheck(op.student_unroll_adjoint.default, problem)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("images", lambda each: each[:2], r"images to have shape \[3, 4, 3, 8, 8\]"),
        ("labels", lambda each: each[:, :3], r"labels to have shape \[3, 4, 4\]"),
        ("lr", lambda each: each[:2], r"lr to have shape \[3\]"),
        ("state", lambda each: each.new_zeros(1, each.shape[1]), "state to have shape"),
        ("theta0", lambda each: each[:0], "theta0 to have 1 to 65535 rows"),
        ("theta0", lambda each: each[:1].expand(65536, -1), "theta0 to have 1 to 65535 rows"),
    ],
)
def test_errors_name_the_tensor_of_several_trajectories(
    device: torch.device, name: str, changed: Any, message: str
) -> None:
    model = network("convnet:width=4,depth=1", 8, device)
    calls, _ = students(model, 8, torch.float64, True, device)
    names = ("theta0", "images", "labels", "lr")
    given = {key: torch.stack([call[key] for call in calls]).detach() for key in names}
    given["state"] = given["theta0"].new_zeros(0, given["theta0"].shape[1])
    given[name] = changed(given[name])
    flat = torch.tensor([0, 1, 2, 3, 0, 1], device=device)
    description = networks.engine_description(model)
    choices = ([2], [1], description, ops.SGD().numbers(), 0, 0, 1.0, False, 0)
    with pytest.raises(ValueError, match=message):
        torch.ops.trajmatch.student_unroll(*given.values(), flat, *choices)


def batch_of(model: nn.Module, size: int, device: torch.device, soft: bool) -> list[Tensor]:
    """Parameters, images and labels of several students, stacked, with gradients."""
    calls, _ = students(model, size, torch.float64, soft, device)
    stacked = [
        torch.stack([call[name] for call in calls]) for name in ("theta0", "images", "labels")
    ]
    return [each.detach().requires_grad_(each.is_floating_point()) for each in stacked]


#: Networks on the engine and on autograd.
MODULES = [
    lambda: networks.ConvNet(3, CLASSES, 8, width=4, depth=1),
    lambda: networks.ConvNet(3, CLASSES, 8, width=4, depth=1, norm="batch"),
    lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Tanh(), nn.Linear(5, CLASSES)),
]


@pytest.mark.parametrize("make", MODULES)
@pytest.mark.parametrize("soft", [False, True])
def test_gradients_together_are_those_of_each(device: torch.device, make: Any, soft: bool) -> None:
    model = make().to(device)
    given = batch_of(model, 8, device, soft)
    learned = [each for each in given if each.requires_grad]
    alone = [ops.gradient(model, *each) for each in zip(*given, strict=True)]
    results = []
    for values, grads in (
        ops.gradient(model, *given),
        map(torch.stack, zip(*alone, strict=True)),
    ):
        scalar = (values * values.detach().sin()).sum() + grads.square().sum()
        results.append([values, grads, *torch.autograd.grad(scalar, learned)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("blocks", ["first", "tf32"])
def test_gradients_of_fused_blocks_together(device: torch.device, blocks: str) -> None:
    text, size, dtype = FUSED
    model = network(text, size, device)
    calls, _ = students(model, size, dtype, False, device)
    given = [torch.stack([call[name] for call in calls]).detach() for name in NAMES]
    with ops.cuda_blocks(blocks):
        together = (*ops.gradient(model, *given), ops.image_gradient(model, *given))
        for k in range(STUDENTS):
            own = [each[k] for each in given]
            alone = (*ops.gradient(model, *own), ops.image_gradient(model, *own))
            for one, other in zip(together, alone, strict=True):
                torch.testing.assert_close(one[k], other, rtol=1e-5, atol=1e-6)


def test_statistics_together_are_those_of_each(device: torch.device) -> None:
    model = MODULES[1]().to(device)
    given = [each.detach() for each in batch_of(model, 8, device, False)]
    settings = (networks.engine_description(model), 0, 1.0, False)
    together = torch.ops.trajmatch.student_gradient(*given, *settings)[4]
    assert together.shape == (STUDENTS, 3, 4)
    for k in range(STUDENTS):
        own = [each[k] for each in given]
        alone = torch.ops.trajmatch.student_gradient(*own, *settings)[4]
        torch.testing.assert_close(together[k], alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("make", MODULES)
@pytest.mark.parametrize("loss", ["cross_entropy", "sum_logits"])
def test_derivatives_together_are_those_of_each(device: torch.device, make: Any, loss: str) -> None:
    model = make().to(device)
    theta, images, labels = (each.detach() for each in batch_of(model, 8, device, True))
    given = [labels] if loss == "cross_entropy" else [None]
    along = torch.randn_like(theta), torch.randn_like(images)
    together = ops.gradient_jvp(model, theta, images, *given, *along, loss)
    slopes = ops.image_gradient(model, theta, images, *given, loss)
    for k in range(STUDENTS):
        own = [each if each is None else each[k] for each in (theta, images, *given, *along)]
        alone = ops.gradient_jvp(model, *own, loss)
        for one, other in zip(together, alone, strict=True):
            if other is None:
                assert one is None
            else:
                torch.testing.assert_close(one[k], other, rtol=1e-12, atol=1e-14)
        slope = ops.image_gradient(model, *own[:3], loss)
        torch.testing.assert_close(slopes[k], slope, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("theta", lambda each: each[:0], ValueError, "theta to have at least one row"),
        ("images", lambda each: each[:2], ValueError, "images to begin with 3"),
        ("images", lambda each: each[0, 0, 0, 0, 0], ValueError, "images to begin with 3"),
        ("labels", lambda each: each[:2], ValueError, "labels to begin with 3"),
        ("labels", lambda each: each.tolist(), TypeError, "labels to be a torch.Tensor"),
        ("theta", lambda each: each[:, :5], ValueError, r"theta to have shape \["),
    ],
)
def test_errors_of_gradients_together(
    device: torch.device, name: str, value: Any, error: type[Exception], message: str
) -> None:
    model = MODULES[0]().to(device)
    names = ("theta", "images", "labels")
    given = dict(zip(names, batch_of(model, 8, device, False), strict=True))
    given[name] = value(given[name])
    with pytest.raises(error, match=message):
        ops.gradient(model, **given)


def test_several_students_have_no_buffers_to_update(device: torch.device) -> None:
    model = MODULES[1]().to(device)
    given = batch_of(model, 8, device, False)
    with pytest.raises(ValueError, match=r"update_buffers to be False for \[K, P\]"):
        ops.gradient(model, *given, update_buffers=True)
