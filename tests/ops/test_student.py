"""Gradient and its directional derivative, on the engine and on autograd."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from trajmatch import networks, ops, reference
from trajmatch.block import IMAGE_NORMS
from trajmatch.networks import ConvNet

Check = Callable[..., None]


class Perceptron(nn.Module):
    """A module that the engine does not know, with a parameter that the loss does not reach."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(inputs, 7), nn.Linear(7, classes)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, images: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(images.flatten(1)))) + 0 * self.unused.sum()


def problem(model: nn.Module, soft: bool, device: torch.device) -> dict[str, Tensor]:
    theta = networks.flat_parameters(model).double().to(device)
    return {
        "theta": theta + 0.1 * torch.randn_like(theta),
        "images": torch.randn(5, 3, 6, 6, dtype=torch.float64, device=device),
        "labels": (
            torch.randn(5, 4, dtype=torch.float64, device=device)
            if soft
            else torch.arange(5, device=device) % 4
        ),
    }


def convnet(**choices: str) -> ConvNet:
    return ConvNet(3, 4, 6, width=8, depth=2, **choices)  # type: ignore[arg-type]


def check_derivatives(
    model: nn.Module, given: dict[str, Tensor], loss: str, assert_close_as_vectors: Check
) -> None:
    """The gradient and its derivatives along parameters, images and both are the reference's."""
    value, grad = ops.gradient(model, **given, loss=loss)
    assert_close_as_vectors([value, grad], reference.gradient(model, **given, loss=loss), 1e-9)
    tangent, image_tangent = torch.randn_like(grad), torch.randn_like(given["images"])
    for directions in (
        {"tangent": tangent},
        {"image_tangent": image_tangent},
        {"tangent": tangent, "image_tangent": image_tangent},
    ):
        got = ops.gradient_jvp(model, **given, **directions, loss=loss)
        wanted = reference.gradient_jvp(model, **given, **directions, loss=loss)
        assert (got.grad_labels is None) == (wanted.grad_labels is None)
        soft = given["labels"].is_floating_point()
        assert (got.grad_labels is not None) == (soft and loss == "cross_entropy")
        assert_close_as_vectors(
            [each for each in got if each is not None],
            [each for each in wanted if each is not None],
            1e-9,
        )


@pytest.mark.parametrize("norm", IMAGE_NORMS)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "sum_logits"])
def test_engine_matches_the_reference(
    device: torch.device, assert_close_as_vectors: Check, norm: str, soft: bool, loss: str
) -> None:
    model = convnet(norm=norm, activation="sigmoid")
    check_derivatives(model, problem(model, soft, device), loss, assert_close_as_vectors)


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
@pytest.mark.parametrize("size", [5, 8, 28])
@pytest.mark.parametrize("width", [3, 20])
def test_convolutions_of_every_shape(
    device: torch.device, assert_close_as_vectors: Check, channels: int, size: int, width: int
) -> None:
    # Few and many input channels, planes that fill no tile, widths that fill no vector, and the
    # wide border of 28-pixel images.
    model = ConvNet(channels, 4, size, width, 2, norm="layer", activation="none", pooling="none")
    theta = networks.flat_parameters(model).double().to(device)
    images = torch.randn(3, channels, size, size, dtype=torch.float64, device=device)
    labels = torch.arange(3, device=device)
    tangent = torch.randn_like(theta)
    image_tangent = torch.randn_like(images)
    got, wanted = (
        functions.gradient_jvp(model, theta, images, labels, tangent, image_tangent)[:3]
        for functions in (ops, reference)
    )
    assert_close_as_vectors(got, wanted, 1e-9)


def test_directional_is_the_product_with_the_gradient(device: torch.device) -> None:
    model = convnet()
    given = problem(model, False, device)
    _, grad = ops.gradient(model, **given)
    tangent = torch.randn_like(grad)
    result = ops.gradient_jvp(model, **given, tangent=tangent)
    torch.testing.assert_close(result.directional, grad.dot(tangent))


def test_without_tangents_all_derivatives_are_zero(device: torch.device) -> None:
    model = convnet()
    given = problem(model, True, device)
    assert all(not each.any() for each in ops.gradient_jvp(model, **given) if each is not None)


@pytest.mark.parametrize("soft", [False, True])
def test_gradient_is_differentiable_once_more(
    device: torch.device, assert_close_as_vectors: Check, soft: bool
) -> None:
    model = convnet(activation="sigmoid")
    given = problem(model, soft, device)
    results = []
    for functions in (ops, reference):
        leaves = {
            name: each.clone().requires_grad_(each.is_floating_point())
            for name, each in given.items()
        }
        value, grad = functions.gradient(model, **leaves)
        out = 0.7 * value + grad.square().sum()
        inputs = [each for each in leaves.values() if each.requires_grad]
        results.append([out, *torch.autograd.grad(out, inputs)])
    assert_close_as_vectors(*results, 1e-9)


def test_engine_operators_pass_gradcheck(device: torch.device) -> None:
    model = ConvNet(1, 2, 4, width=4, depth=1, activation="sigmoid")
    theta = networks.flat_parameters(model).double().to(device).requires_grad_()
    images = torch.randn(2, 1, 4, 4, dtype=torch.float64, device=device, requires_grad=True)
    labels = torch.randn(2, 2, dtype=torch.float64, device=device, requires_grad=True)

    def all_gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.ops.trajmatch.student_gradient(
            *inputs, networks.engine_description(model), 0, 1.5, True
        )

    assert torch.autograd.gradcheck(all_gradients, (theta, images, labels))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_opcheck(device: torch.device, soft: bool, grad: bool, norm: str) -> None:
    model = convnet(norm=norm)
    given = [each for each in problem(model, soft, device).values()]
    for each in given:
        each.requires_grad_(grad and each.is_floating_point())
    network = networks.engine_description(model)
    for inputs in (False, True):
        torch.library.opcheck(
            torch.ops.trajmatch.student_gradient.default, (*given, network, 0, 1.0, inputs)
        )
    given = [each.detach() for each in given]
    torch.library.opcheck(
        torch.ops.trajmatch.student_gradient_jvp.default,
        (*given, torch.randn_like(given[0]), None, None, network, 0, 1.0),
    )


@pytest.mark.parametrize("loss", ["cross_entropy", "sum_logits"])
@pytest.mark.parametrize(
    ("text", "size"),
    [("alexnet:width=4", 16), ("vgg11:layer,width=4", 32), ("lenet", 64), ("mlp:width=5", 6)],
)
def test_sequential_networks_match_the_reference(
    device: torch.device, assert_close_as_vectors: Check, text: str, size: int, loss: str
) -> None:
    model = networks.build(networks.specify(text, 3, 4, size))
    assert ops.engine_for(model) == "engine"
    given = problem(model, True, device)
    given["images"] = torch.randn(5, 3, size, size, dtype=torch.float64, device=device)
    check_derivatives(model, given, loss, assert_close_as_vectors)
    single = {name: each.float() for name, each in given.items()}
    assert_close_as_vectors(
        ops.gradient(model, **single, loss=loss), ops.gradient(model, **given, loss=loss), 1e-4
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({0: 0}, "have sizes from 1 to"),
        ({3: 2}, "have valid flags"),
        ({4: 5}, "have valid flags"),
        ({5: 4}, r"name a kind of node \(node 0\)"),
        ({5: 1}, "read the images with a convolution"),
        ({6: 1}, "read a value that is made before it"),  # a cycle
        ({7: 1 << 40}, "have sizes from 1 to"),
        ({2: 2, 10: 0}, "have no kernel larger than its input"),
        ({14: 2}, "read a value that is made before it"),
        ({15: 5}, r"have groups that divide its channels \(node 1\)"),
        ({16: 3}, "have a valid norm"),
        ({17: 1, 16: 2}, "have a valid norm"),  # for each value, over the batch
        ({18: -1}, "have a valid norm"),  # eps is not a number
        ({19: 4}, "have a valid activation and pooling"),
        ({8: 6, 10: 0}, "leave at least one pixel after every pooling"),
        ({13: 2, 15: 0}, "add values that are made before it"),
        ({13: 2, 15: 2}, "add values that are made before it"),
        ({13: 3, 15: 7}, "take means within its input"),
    ],
)
def test_descriptions_of_no_network(
    device: torch.device, change: dict[int, int], match: str
) -> None:
    model = ConvNet(3, 4, 6, width=8, depth=1)
    given = problem(model, False, device)
    description = networks.engine_description(model)
    assert description is not None and len(description) == 21
    for place, number in change.items():
        description[place] = number
    for wrong in (description, description[:-1], []):
        with pytest.raises(ValueError, match=match if wrong is description else "be what"):
            torch.ops.trajmatch.student_gradient(*given.values(), wrong, 0, 1.0, False)


def test_a_value_that_a_norm_and_a_convolution_read(
    device: torch.device, assert_close_as_vectors: Check
) -> None:
    bits = int.from_bytes(struct.pack("<d", 1e-5), "little")
    nodes = [
        *(0, 0, 4, 3, 1, 1, 1, 0),  # a convolution of the images
        *(1, 1, 2, 1, 0, bits, 1, 0),  # group norm and ReLU of it
        *(0, 1, 4, 3, 1, 1, 1, 0),  # another convolution of it
        *(2, 2, 3, 0, 0, 0, 0, 0),  # their sum
    ]
    description = [3, 4, 6, 0, 1, *nodes]
    size = (108 + 4) + 8 + (144 + 4) + (4 * 144 + 4)
    theta = torch.randn(size, dtype=torch.float64, device=device)
    images = torch.randn(5, 3, 6, 6, dtype=torch.float64, device=device)
    labels, batches = torch.arange(5, device=device) % 4, torch.arange(5, device=device).repeat(3)
    state, lr = theta.new_zeros(0, size), torch.tensor(0.01, dtype=torch.float64, device=device)

    def outer(tape_bytes: int) -> list[Tensor]:
        leaves = [theta.clone().requires_grad_(), images.clone().requires_grad_()]
        end = torch.ops.trajmatch.student_unroll(
            *leaves, labels, lr, state, batches, [5] * 3, [3], description,
            ops.SGD().numbers(), 0, 0, 1.0, True, tape_bytes,
        )[0]  # fmt: skip
        return list(torch.autograd.grad(end.square().sum(), leaves))

    without = outer(0)
    assert_close_as_vectors(outer(1 << 30), without, 1e-12)
    step = 1e-6 * torch.randn_like(images)
    values = []
    for sign in (1, -1):
        found = torch.ops.trajmatch.student_unroll(
            theta, images + sign * step, labels, lr, state, batches, [5] * 3, [3], description,
            ops.SGD().numbers(), 0, 0, 1.0, False, 0,
        )[0]  # fmt: skip
        values.append(found.square().sum())
    assert_close_as_vectors([values[0] - values[1]], [2 * (without[1] * step).sum()], 1e-5)


def test_other_modules_run_on_autograd(
    device: torch.device, assert_close_as_vectors: Check
) -> None:
    class Derived(ConvNet):
        pass

    assert ops.engine_for(convnet()) == "engine"
    assert ops.engine_for(Derived(3, 4, 6, depth=1)) == "autograd"
    model = Perceptron(108, 4)
    assert ops.engine_for(model) == "autograd"
    given = problem(model, True, device)
    value, grad = ops.gradient(model, **given)
    assert not value.requires_grad
    assert not grad.requires_grad
    assert_close_as_vectors([value, grad], reference.gradient(model, **given), 1e-12)
    tangent = torch.randn_like(grad)
    got, wanted = (
        functions.gradient_jvp(model, **given, tangent=tangent) for functions in (ops, reference)
    )
    assert_close_as_vectors(got, wanted, 1e-12)


def test_the_model_is_left_as_it_was(device: torch.device) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 4))
    model = model.double().to(device)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    ops.gradient(model, **problem(model, False, device))
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_is_bitwise_repeatable(device: torch.device) -> None:
    model = convnet()
    given = {
        name: each.float() if each.is_floating_point() else each
        for name, each in problem(model, False, device).items()
    }
    assert torch.equal(ops.gradient(model, **given)[1], ops.gradient(model, **given)[1])


@pytest.mark.parametrize("norm", IMAGE_NORMS)
def test_what_an_earlier_call_left_behind_does_not_matter(device: torch.device, norm: str) -> None:
    model = convnet(norm=norm)
    given = problem(model, True, device)
    tangent = torch.randn_like(given["theta"])

    def everything() -> list[Tensor]:
        jvp = ops.gradient_jvp(model, **given, tangent=tangent)
        return [*ops.gradient(model, **given), *(each for each in jvp if each is not None)]

    before = everything()
    ruined = {name: torch.full_like(each, torch.nan) for name, each in given.items()}
    assert ops.gradient(model, **ruined)[1].isnan().any()
    ops.gradient_jvp(model, **ruined, tangent=tangent)
    assert all(torch.equal(*pair) for pair in zip(before, everything(), strict=True))


def test_errors_say_what_came(device: torch.device) -> None:
    model = convnet()
    given = problem(model, False, device)
    size = networks.num_parameters(model)

    def raises(kind: type[Exception], match: str, **changes: object) -> None:
        with pytest.raises(kind, match=match):
            ops.gradient(model, **{**given, **changes})  # type: ignore[arg-type]

    theta, images, labels = given.values()
    raises(ValueError, rf"expected theta to have shape \[{size}\], but got \[3\]", theta=theta[:3])
    raises(TypeError, "expected theta to be float32 or float64, but got int64", theta=theta.long())
    raises(TypeError, "expected images to be float64, but got float32", images=images.float())
    raises(
        ValueError,
        r"expected images to have shape \[5, 3, 6, 6\], but got \[5, 3, 6, 5\]",
        images=images[..., :5],
    )
    raises(ValueError, "expected images to hold at least one image", images=images[:0])
    if device.type == "cpu":
        raises(ValueError, r"expected labels to lie in \[0, 4\), but got 9", labels=labels + 9)
    else:  # to look at them would be to wait for the device
        assert ops.gradient(model, **{**given, "labels": labels + 9})[0].isnan()
    raises(ValueError, r"expected labels to have shape \[5\], but got \[4\]", labels=labels[:4])
    raises(ValueError, "expected labels to be given", labels=None)
    raises(ValueError, r"expected loss to be one of .*, but got 'mae'", loss="mae")
    with pytest.raises(ValueError, match=r"expected tangent to have shape .*, but got \[1\]"):
        ops.gradient_jvp(model, **given, tangent=theta[:1])
    with pytest.raises(NotImplementedError, match="is not differentiable"):
        torch.ops.trajmatch.student_gradient_jvp(
            theta.clone().requires_grad_(),
            images,
            labels,
            theta,
            None,
            None,
            networks.engine_description(model),
            0,
            1.0,
        )[0].backward()
