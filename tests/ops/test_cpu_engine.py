"""What only the CPU engine has: tapes, precision, threads, float32, a profile of its passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from trajmatch import networks, ops, reference
from trajmatch._extension import _C
from trajmatch.networks import ConvNet

Check = Callable[..., None]


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts torch's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def leaves_of(model: ConvNet, count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Parameters, images, labels, step size and a batch for each of three steps."""
    theta = networks.flat_parameters(model).detach().to(dtype)
    images = torch.randn(count, model.in_channels, model.image_size, model.image_size, dtype=dtype)
    labels = torch.arange(count) % model.num_classes
    lr = torch.tensor(0.05, dtype=dtype)
    batches = torch.stack([torch.randperm(count)[: max(1, count - 1)] for _ in range(3)])
    return [theta, images.requires_grad_(), labels, lr.requires_grad_(), batches]


def outer_gradient(model: ConvNet, leaves: list[Tensor], **choices: int | bool) -> list[Tensor]:
    theta, images, _, lr, _ = leaves
    end = ops.unroll(model, *leaves, **choices)  # type: ignore[arg-type]
    return [end.detach(), *torch.autograd.grad((end - theta).square().sum(), (images, lr))]


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("norm", ["instance", "layer", "none"])
@pytest.mark.parametrize("precise", [False, True])
def test_a_tape_changes_no_bit(depth: int, norm: str, precise: bool) -> None:
    model = ConvNet(3, 4, 16, 20, depth, norm=norm)  # type: ignore[arg-type]
    leaves = leaves_of(model, 6)
    description = networks.engine_description(model, precise)
    one = 4 * _C.tape_elements(description, [5], 1 << 30, False, False)
    without = outer_gradient(model, leaves, precise=precise)
    for tape_bytes in (one - 1, one, 2 * one + 1, 1 << 30):  # for none, one, two and all steps
        kept = outer_gradient(model, leaves, precise=precise, tape_bytes=tape_bytes)
        assert all(torch.equal(a, b) for a, b in zip(without, kept, strict=True))


def test_tapes_keep_within_their_bytes() -> None:
    network = networks.engine_description(ConvNet(3, 10, 32, 32))
    one = _C.tape_elements(network, [7], 1 << 40, False, False)
    assert one > 0
    assert _C.tape_elements(network, [7], 4 * one - 1, False, False) == 0
    assert _C.tape_elements(network, [7, 7, 7], 4 * (2 * one), False, False) == 2 * one
    assert _C.tape_elements(network, [7, 7, 7], 1 << 40, False, False) == 3 * one
    # The last steps are the ones that are kept.
    small = _C.tape_elements(network, [1], 1 << 40, False, False)
    assert _C.tape_elements(network, [1, 7], 4 * (one + small) - 1, False, False) == one
    assert _C.tape_elements(network, [7, 1], 4 * one, False, False) == small


def test_tapes_outlive_the_workspace() -> None:
    model = ConvNet(3, 4, 8, 8, 2)
    leaves = leaves_of(model, 4)
    wanted = outer_gradient(model, leaves)
    ends = [ops.unroll(model, *leaves, tape_bytes=1 << 20) for _ in range(3)]
    ops.release_workspace()
    theta, images, _, lr, _ = leaves
    for end in reversed(ends):
        got = torch.autograd.grad((end - theta).square().sum(), (images, lr))
        assert torch.equal(got[0], wanted[1])
        assert torch.equal(got[1], wanted[2])


def exact_results(model: ConvNet, given: list[Tensor]) -> list[Tensor]:
    """Gradient and its derivative in float64, from inputs in float32."""
    theta, images, labels, tangent = (
        each.double() if each.is_floating_point() else each for each in given
    )
    gradient = reference.gradient(model.double(), theta, images, labels)[1].detach()
    jvp = reference.gradient_jvp(model, theta, images, labels, tangent)
    model.float()
    return [gradient, jvp.grad_theta, jvp.grad_images]


def errors(results: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [
        ((got.double() - wanted).norm() / wanted.norm()).item()
        for got, wanted in zip(results, exact, strict=True)
    ]


def engine_errors(
    model: ConvNet, given: list[Tensor], exact: list[Tensor], precise: bool
) -> list[float]:
    theta, images, labels, tangent = given
    gradient = ops.gradient(model, theta, images, labels, precise=precise)[1]
    jvp = ops.gradient_jvp(model, theta, images, labels, tangent, precise=precise)
    return errors([gradient, jvp.grad_theta, jvp.grad_images], exact)


@pytest.mark.parametrize(
    ("width", "channels"), [(24, 6), (32, 1), (32, 3), (64, 3), (64, 6), (100, 1), (100, 3)]
)
def test_float32_is_close_to_float64_at_sizes_of_use(width: int, channels: int) -> None:
    # Sigmoids, which have no side to fall on: what is compared is rounding alone.
    model = ConvNet(channels, 10, 32, width, activation="sigmoid")
    theta = networks.flat_parameters(model).detach()
    given = [theta, torch.randn(9, channels, 32, 32), torch.arange(9), torch.randn_like(theta)]
    exact = exact_results(model, given)
    theta, images, labels, tangent = given
    eager = reference.gradient_jvp(model, theta, images, labels, tangent)
    plain = reference.gradient(model, theta, images, labels)[1].detach()
    baseline = errors([plain, eager.grad_theta, eager.grad_images], exact)
    fast = engine_errors(model, given, exact, False)
    precise = engine_errors(model, given, exact, True)
    assert max(fast) < 1e-5
    assert max(precise) < 2 * max(baseline)


@pytest.mark.parametrize(("size", "depth"), [(64, 1), (100, 1), (65, 3), (128, 2)])
def test_planes_of_many_tiles(assert_close_as_vectors: Check, size: int, depth: int) -> None:
    # More tiles in a row than are in work at a time.
    model = ConvNet(3, 4, size, 4, depth)
    theta = networks.flat_parameters(model).detach().double()
    images, labels = torch.randn(2, 3, size, size, dtype=torch.float64), torch.arange(2)
    tangent = torch.randn_like(theta)
    wanted = reference.gradient_jvp(model.double(), theta, images, labels, tangent)[:3]
    got = ops.gradient_jvp(model, theta, images, labels, tangent)[:3]
    assert_close_as_vectors(got, wanted, 1e-9)
    narrow = ops.gradient_jvp(
        model, theta.float(), images.float(), labels, tangent.float(), precise=True
    )
    assert narrow.grad_theta.isfinite().all()


def with_margin(model: ConvNet, count: int, margin: float) -> Tensor:
    """Images for which no ReLU's input comes closer to zero than ``margin``."""
    nearest: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(
            lambda _, inputs: nearest.append(inputs[0].abs().flatten(1).min(1)[0])
        )
        for module in model.modules()
        if isinstance(module, torch.nn.ReLU)
    ]
    found: list[Tensor] = []
    while sum(map(len, found)) < count:
        images = torch.randn(400, model.in_channels, model.image_size, model.image_size)
        nearest.clear()
        with torch.no_grad():
            model(images)
        found.append(images[torch.stack(nearest).min(0)[0] > margin])
    for hook in hooks:
        hook.remove()
    return torch.cat(found)[:count]


@pytest.mark.parametrize("pooling", ["average", "max", "none"])
def test_float32_with_relu_away_from_its_corner(pooling: str) -> None:
    model = ConvNet(3, 4, 8, 16, 2, pooling=pooling)  # type: ignore[arg-type]
    theta = networks.flat_parameters(model).detach()
    images = with_margin(model, 6, 2e-4)
    given = [theta, images, torch.arange(6) % 4, torch.randn_like(theta)]
    exact = exact_results(model, given)
    assert max(engine_errors(model, given, exact, False)) < 1e-5
    assert max(engine_errors(model, given, exact, True)) < 2e-6


@pytest.mark.parametrize("count", [1, 2, 5, 13])
@pytest.mark.parametrize("width", [8, 96])
def test_threads_share_the_images(
    threads: None, assert_close_as_vectors: Check, count: int, width: int
) -> None:
    # One thread, fewer threads than cores or more, more threads than images; with 96 channels the
    # threads share the packed weights, with 8 each has its own.
    model = ConvNet(3, 4, 16, width, 2)
    leaves = leaves_of(model, count, torch.float64)
    exact = reference.unroll(model.double(), *leaves)
    model.float()
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        end = ops.unroll(model, *leaves)
        assert_close_as_vectors([end], [exact], 1e-9)
        assert torch.equal(end, ops.unroll(model, *leaves))


def test_what_is_not_finite_stays_so() -> None:
    model = ConvNet(3, 4, 8, 8, 2)
    theta = networks.flat_parameters(model).detach()
    images = torch.randn(3, 3, 8, 8)
    images[1, 0, 2, 2] = torch.nan
    value, gradient = ops.gradient(model, theta, images, torch.arange(3))
    assert value.isnan()
    assert gradient.isnan().any()


def test_precise_is_part_of_the_description() -> None:
    model = ConvNet(3, 4, 8, 8, 2)
    precise, plain = (networks.engine_description(model, each) for each in (True, False))
    assert [i for i in range(len(plain)) if precise[i] != plain[i]] == [3]
    assert (precise[3], plain[3]) == (1, 0)


def test_profile_names_every_pass_once() -> None:
    model = ConvNet(3, 4, 16, 16, 2)
    theta = networks.flat_parameters(model).detach()
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    _C.start_profile()
    begin = time.perf_counter()
    for _ in range(5):
        ops.gradient(model, theta, images, labels)
    elapsed = time.perf_counter() - begin
    passes = _C.stop_profile()
    names = [name for name, _ in passes]
    assert len(names) == len(set(names))
    assert {"product.0", "norm.1", "weight product.1", "unpack.0"} <= set(names)
    assert 0 < sum(seconds for _, seconds in passes) <= elapsed
    ops.gradient(model, theta, images, labels)
    _C.start_profile()
    assert _C.stop_profile() == []


def test_tape_bytes_are_those_that_unroll_fills() -> None:
    model = ConvNet(3, 4, 16, 20, 2)
    one = ops.tape_bytes(model, [5])
    network = networks.engine_description(model)
    assert one == 4 * _C.tape_elements(network, [5], 1 << 40, False, False)
    assert ops.tape_bytes(model, [5, 5, 5]) == 3 * one
    assert ops.tape_bytes(torch.nn.Linear(3, 4), [5]) == 0
