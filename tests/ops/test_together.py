"""Students that are unrolled together: the results and gradients of one after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trajmatch import networks, ops
from trajmatch.data import DSA

STUDENTS, IMAGES, CLASSES = 3, 6, 4
#: Batches of different sizes, as at the end of a permutation.
SIZES = (4, 2, 4)

NETWORKS = [
    # network, side, dtype, CUDA blocks
    ("convnet:width=8,depth=2", 8, torch.float64, "library"),
    ("convnet:width=8,depth=2", 8, torch.float32, "library"),
    ("convnet:batch,width=4,depth=2", 8, torch.float64, "library"),
    ("convnet:layer,width=4,depth=2", 8, torch.float64, "library"),
    ("resnet18:batch,width=4", 16, torch.float64, "library"),
    ("mlp:width=5", 6, torch.float64, "library"),
    ("lenet", 28, torch.float64, "library"),
    ("convnet:width=32,depth=3", 32, torch.float32, "first"),
    ("convnet:width=32,depth=3", 32, torch.float32, "tf32"),
    ("convnet:width=32,depth=3", 32, torch.float32, "fp16"),
]


def network(text: str, size: int, device: torch.device) -> nn.Module:
    return networks.build(networks.specify(text, 3, CLASSES, size)).to(device)


def students(
    model: nn.Module, size: int, dtype: torch.dtype, soft: bool, device: torch.device
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """The calls of several students, and all tensors that have gradients."""
    calls, leaves = [], []
    for k in range(STUDENTS):
        draw = torch.Generator().manual_seed(k)
        start = networks.flat_parameters(networks.initialise(model, draw))
        own = {
            "theta0": start.detach().cpu(),
            "images": torch.randn(IMAGES, 3, size, size, generator=draw),
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


@pytest.mark.parametrize(("text", "size", "dtype", "blocks"), NETWORKS)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("tape_bytes", [0, 1 << 30])
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
        call |= {"steps": [1, 3], "momentum": 0.5, "tape_bytes": tape_bytes, "augment": augment}
    with ops.cuda_blocks(blocks):
        together = results_of(ops.unroll_together(model, calls), leaves)
        alone = results_of([ops.unroll(model, **call) for call in calls], leaves)
    for one, other in zip(together, alone, strict=True):
        # The same kernels run, in the same order, but for cuDNN's choice of algorithms.
        if device.type == "cpu":
            assert torch.equal(one, other)
        else:
            assert (one - other).norm() <= 1e-3 * other.norm()


@pytest.mark.parametrize(
    "choices",
    [
        {"optimiser": ops.Adam()},
        {"optimiser": ops.SGD(0.5, nesterov=True)},
        {"lr": [0.1, 0.2, 0.3]},
        {"micro_batch": 3},
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
    calls[1] |= {"batches": calls[1]["batches"][:2], "momentum": 0.9}
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
    flat = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2], device=device)
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
        ("images", lambda each: each[:2], r"images to have shape \[3, 6, 3, 8, 8\]"),
        ("labels", lambda each: each[:, :5], r"labels to have shape \[3, 6, 4\]"),
        ("lr", lambda each: each[:2], r"lr to have shape \[3\]"),
        ("state", lambda each: each.new_zeros(1, each.shape[1]), "state to have shape"),
        ("theta0", lambda each: each[:0], "theta0 to have 1 to 65535 rows"),
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
    flat = torch.tensor([0, 1, 2, 3, 4, 5], device=device)
    description = networks.engine_description(model)
    choices = ([2], [1], description, ops.SGD().numbers(), 0, 0, 1.0, False, 0)
    with pytest.raises(ValueError, match=message):
        torch.ops.trajmatch.student_unroll(*given.values(), flat, *choices)
