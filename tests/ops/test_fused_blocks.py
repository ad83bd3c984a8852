"""The blocks of a student that CUDA runs as one kernel a pass, inside the engine.

On a GPU, and on the emulated module of ``tests/test_cuda_host.py``; the kernels alone are tested in
``tests/emulator/kernels``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import profile, supported_activities

from trajmatch import networks, ops, reference
from trajmatch._extension import build_info
from trajmatch.networks import ConvNet

Check = Callable[..., None]
Choose = Callable[[Any], None]

# What float32, TF32 and half precision may be off by, as vectors. With the last two, which have as
# many bits, some inputs of ReLUs fall on the other side of 0, which moves gradients by about the
# square root of their precision.
BOUNDS = {"first": 1e-5, "tf32": 6e-2, "fp16": 6e-2}


@pytest.fixture
def cuda_path(device: torch.device) -> torch.device:
    """A device on which the operators take their CUDA path."""
    if device.type == "cpu" and not build_info().get("emulated"):
        pytest.skip("the CPU has its own engine")
    return device


@pytest.fixture
def choose() -> Iterator[Choose]:
    """Sets the blocks of the calls that follow."""
    with ExitStack() as stack:
        yield lambda kind: stack.enter_context(ops.cuda_blocks(kind))


def problem(model: ConvNet, device: torch.device, batch: int = 2) -> dict[str, Tensor]:
    theta = networks.flat_parameters(model)
    size, channels = model.image_size, model.in_channels
    return {
        "theta": (theta + 0.1 * torch.randn_like(theta)).to(device),
        "images": torch.randn(batch, channels, size, size).to(device),
        "labels": torch.randn(batch, 4).to(device),
    }


def doubled(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.double() for name, each in given.items()}


def everything(
    functions: Any, model: ConvNet, given: dict[str, Tensor], **choices: bool
) -> list[Tensor]:
    """Loss, its gradients, and derivatives of them along a direction of the parameters."""
    leaves = {name: each.clone().requires_grad_() for name, each in given.items()}
    value, grad = functions.gradient(model, **leaves, **choices)
    grads = torch.autograd.grad(value, list(leaves.values()))
    jvp = functions.gradient_jvp(model, **given, tangent=given["theta"].flip(0), **choices)
    return [each.detach() for each in (value, grad, *grads, *jvp)]


@pytest.mark.parametrize(
    ("blocks", "channels", "size", "width", "depth"),
    [
        *(("first", 3, 32, 32, 3), ("first", 1, 28, 64, 2)),
        *(("first", 3, 32, 32, 1), ("first", 3, 64, 16, 2)),
        *(("tf32", 3, 32, 32, 3), ("fp16", 3, 32, 32, 3), ("tf32", 3, 64, 32, 3)),
        ("tf32", 3, 16, 32, 2),  # the library runs the first block
    ],
)
def test_fused_blocks_match_the_reference(
    cuda_path: torch.device,
    assert_close_as_vectors: Check,
    choose: Choose,
    blocks: str,
    channels: int,
    size: int,
    width: int,
    depth: int,
) -> None:
    model = ConvNet(channels, 4, size, width, depth).to(cuda_path)
    given = problem(model, cuda_path, batch=1 if BOUNDS[blocks] > 1e-5 else 2)
    choose("library")
    library = everything(ops, model, given)
    choose(blocks)
    got = everything(ops, model, given)
    assert any(not torch.equal(*pair) for pair in zip(library, got, strict=True))
    wanted = everything(reference, model.double(), doubled(given))
    assert_close_as_vectors(got, wanted, BOUNDS[blocks])


@pytest.mark.parametrize("blocks", ["tf32", "fp16"])
def test_a_precise_forward_pass_keeps_the_masks(
    cuda_path: torch.device,
    assert_close_as_vectors: Check,
    choose: Choose,
    blocks: str,
) -> None:
    model = ConvNet(3, 4, 32, 32, 3).to(cuda_path)
    given = problem(model, cuda_path, batch=1)
    choose(blocks)
    got = everything(ops, model, given, precise=True)
    assert_close_as_vectors(got, everything(reference, model.double(), doubled(given)), 2e-3)


@pytest.mark.parametrize("blocks", ["library", "first"])
def test_unrolled_loop(
    cuda_path: torch.device,
    assert_close_as_vectors: Check,
    choose: Choose,
    blocks: str,
) -> None:
    model = ConvNet(3, 4, 32, 32, 2).to(cuda_path)
    given = problem(model, cuda_path, batch=3)
    batches = torch.tensor([[0, 1], [2, 0]], device=cuda_path)
    choose(blocks)
    results = []
    choices: list[tuple[Any, dict[str, Tensor]]] = [(ops, given), (reference, doubled(given))]
    for functions, numbers in choices:
        theta, images, labels = (each.requires_grad_() for each in numbers.values())
        lr = torch.tensor(0.05, dtype=theta.dtype, device=cuda_path, requires_grad=True)
        if functions is reference:
            model = model.double()
        thetas = functions.unroll(model, theta, images, labels, lr, batches)
        inputs = (theta, images, labels, lr)
        results.append([thetas, *torch.autograd.grad(thetas.square().sum(), inputs)])
    assert_close_as_vectors(*results, 1e-4)


@pytest.mark.parametrize(
    ("blocks", "soft", "size"),
    [
        *(("library", False, 32), ("library", True, 32), ("first", True, 32), ("first", True, 64)),
        *(("tf32", True, 32), ("fp16", False, 32)),
    ],
)
def test_a_tape_changes_no_more_than_rounding(
    cuda_path: torch.device,
    assert_close_as_vectors: Check,
    choose: Choose,
    blocks: str,
    soft: bool,
    size: int,
) -> None:
    choose(blocks)
    model = ConvNet(3, 4, size, 32, 2).to(cuda_path)
    exact = blocks in ("library", "first")
    without, *kept = with_tapes(model, cuda_path, soft, batch=2 if exact else 1)
    # Gradients that are kept come from another kernel than those that are computed again, and the
    # last bit of a rounded operand is 2^-11.
    bound = 1e-5 if exact else 1e-3
    for other in kept:
        assert torch.equal(other[0], without[0])
        assert_close_as_vectors(other, without, bound)


@pytest.mark.parametrize("norm", ["none", "layer", "group"])
def test_a_tape_of_other_norms_changes_nothing(
    cuda_path: torch.device, assert_close_as_vectors: Check, norm: str
) -> None:
    model = ConvNet(2, 4, 9, 8, 2, norm=norm, pooling="max")  # type: ignore[arg-type]
    without, *kept = with_tapes(model.to(cuda_path), cuda_path, soft=True, dtype=torch.float64)
    for other in kept:
        assert_close_as_vectors(other, without, 1e-12)


def with_tapes(
    model: ConvNet,
    device: torch.device,
    soft: bool,
    dtype: torch.dtype = torch.float32,
    batch: int = 2,
) -> list[list[Tensor]]:
    """An unroll and its gradients without a tape, with one for the last step and for both."""
    given = problem(model, device, 3)
    if not soft:
        given["labels"] = torch.arange(3, device=device)
    given = {
        name: each.to(dtype).requires_grad_() if each.is_floating_point() else each
        for name, each in given.items()
    }
    lr = torch.tensor(0.05, dtype=dtype, device=device, requires_grad=True)
    leaves = [each for each in (*given.values(), lr) if each.requires_grad]
    batches = torch.tensor([[0, 1], [2, 0]], device=device)[:, :batch]
    # The emulated module takes the CUDA path for tensors of the CPU.
    whole = ops.tape_bytes(model, [batch, batch], dtype=dtype, device="cuda")
    assert whole > 0
    found = []
    for tape_bytes in (0, whole - 1, whole):
        thetas = ops.unroll(model, *given.values(), lr, batches, tape_bytes=tape_bytes)
        found.append([thetas.detach(), *torch.autograd.grad(thetas.square().sum(), leaves)])
    return found


def test_a_step_allocates_nothing_and_waits_for_nothing(
    cuda_path: torch.device, choose: Choose
) -> None:
    choose("fp16")
    model = ConvNet(3, 4, 32, 32, 3).to(cuda_path)
    given = {name: each.requires_grad_() for name, each in problem(model, cuda_path, 1).items()}
    lr = torch.tensor(0.05, device=cuda_path, requires_grad=True)

    def calls(steps: int) -> Counter[str]:
        """PyTorch's operators and the runtime's functions called by an unroll and its adjoint."""
        batches = torch.zeros(steps, 1, dtype=torch.int64, device=cuda_path)
        with profile(activities=supported_activities(), acc_events=True) as found:
            thetas = ops.unroll(model, *given.values(), lr, batches)
            torch.autograd.grad(thetas.square().sum(), (given["images"], lr))
        return Counter(event.name for event in found.events())

    calls(1)  # what is kept from one call to the next is allocated
    step = calls(3) - calls(2)
    assert step["aten::copy_"] > 0  # the profile sees what a step does
    allocations = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::clone"}
    waits = {"aten::item", "aten::_local_scalar_dense"}
    assert not {name for name in step if name in allocations | waits or "Synchronize" in name}
    assert not {name for name in step if "Malloc" in name or "Free" in name}


def test_what_the_kernels_do_not_take_runs_as_before(
    cuda_path: torch.device, choose: Choose
) -> None:
    model = ConvNet(3, 4, 32, 32, 2).to(cuda_path)
    given = problem(model, cuda_path)
    image_tangent = torch.randn_like(given["images"])
    others = [
        ConvNet(3, 4, 16, 32, 1),
        ConvNet(3, 4, 32, 24, 1),
        ConvNet(3, 4, 32, 32, 1, norm="group"),
        ConvNet(3, 4, 32, 32, 1, activation="leaky_relu"),
        ConvNet(3, 4, 32, 32, 1, pooling="max"),
    ]

    def all_others() -> list[Tensor]:
        torch.manual_seed(0)
        results = [ops.gradient(each, **problem(each, cuda_path))[1] for each in others]
        # Float64, and a direction of the images.
        results.append(ops.gradient(model, **doubled(given))[1])
        results.append(ops.gradient_jvp(model, **given, image_tangent=image_tangent).grad_theta)
        return results

    before = all_others()
    choose("tf32")
    assert all(torch.equal(*pair) for pair in zip(before, all_others(), strict=True))


def test_fused_blocks_are_bitwise_repeatable(cuda_path: torch.device, choose: Choose) -> None:
    choose("tf32")
    model = ConvNet(3, 4, 32, 32, 2).to(cuda_path)
    given = problem(model, cuda_path)
    once, again = (everything(ops, model, given) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(once, again, strict=True))


def test_what_is_not_a_number_stays_so(cuda_path: torch.device, choose: Choose) -> None:
    choose("tf32")
    model = ConvNet(3, 4, 32, 32, 2).to(cuda_path)
    given = problem(model, cuda_path)
    given["images"][1, 0, 5, 7] = torch.nan
    value, grad = ops.gradient(model, **given)
    jvp = ops.gradient_jvp(model, **given, tangent=given["theta"].flip(0))
    assert value.isnan()
    assert jvp.directional.isnan()
    # All but the biases of the convolutions, which move nothing.
    assert grad.isnan().sum() == jvp.grad_theta.isnan().sum() == grad.numel() - 2 * 32


@pytest.mark.parametrize(
    ("width", "students", "rounds", "as_kind"),
    [
        (32, 1, True, "tf32"),
        (32, 1, False, "first"),
        (32, 2, True, "tf32"),
        (128, 1, True, "first"),
    ],
)
def test_auto_takes_the_faster_blocks_that_are_allowed(
    cuda_path: torch.device,
    choose: Choose,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    students: int,
    rounds: bool,
    as_kind: str,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", rounds)
    model = ConvNet(3, 4, 32, width, 2).to(cuda_path)
    each = [problem(model, cuda_path) for _ in range(students)]
    given = {name: torch.stack([one[name] for one in each]) for name in each[0]}
    if students == 1:
        (given,) = each
    grads = {}
    for kind in ("auto", "first", "tf32"):
        choose(kind)
        grads[kind] = ops.gradient(model, **given)[1]
    assert torch.equal(grads["auto"], grads[as_kind])
    assert not torch.equal(grads["first"], grads["tf32"])


def test_an_unknown_choice_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="must be library, first, tf32, fp16 or auto, but is 'all'"),
        ops.cuda_blocks("all"),  # type: ignore[arg-type]
    ):
        pass


def test_a_choice_ends_with_its_context() -> None:
    model = ConvNet(3, 4, 32, 32, 1)
    before = networks.engine_description(model)
    with ops.cuda_blocks("tf32"):
        assert networks.engine_description(model) != before
    assert networks.engine_description(model) == before
