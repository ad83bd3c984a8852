"""Arguments that the student's operators take, and refuse: the same on both paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from trajmatch import networks, ops, reference
from trajmatch.networks import ConvNet


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 6), nn.Tanh(), nn.Linear(6, 4))


BOTH = pytest.mark.parametrize(
    "model", [ConvNet(3, 4, 8, 4, 2), perceptron()], ids=["engine", "autograd"]
)
BATCHES = [[0, 1, 2], [3, 4, 5]]


def given(model: nn.Module, **changes: Any) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    arguments = {
        "theta0": networks.flat_parameters(model),
        "images": torch.randn(6, 3, 8, 8, generator=draw),
        "labels": torch.arange(6) % 4,
        "lr": 0.1,
        "batches": torch.tensor(BATCHES),
    }
    return arguments | changes


@BOTH
@pytest.mark.parametrize(
    "changes",
    [
        {"batches": BATCHES},
        {"batches": np.array(BATCHES)},
        {"batches": np.array(BATCHES, dtype=np.int32)},
        {"batches": [np.array(each) for each in BATCHES]},
        {"batches": tuple(range(first, first + 3) for first in (0, 3))},
        {"labels": [0, 1, 2, 3, 0, 1]},
        {"labels": np.array([0, 1, 2, 3, 0, 1], dtype=np.uint8)},
        {"lr": np.float32(0.1)},
        {"lr": [0.1, 0.1]},
    ],
)
def test_lists_and_arrays_are_taken_as_tensors(model: nn.Module, changes: dict[str, Any]) -> None:
    wanted = ops.unroll(model, **given(model))
    torch.testing.assert_close(ops.unroll(model, **given(model, **changes)), wanted)


@BOTH
def test_lists_are_not_rounded_to_float32(model: nn.Module) -> None:
    lr, logits = torch.rand(2, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    arguments = given(model, lr=lr, labels=logits)
    arguments |= {name: arguments[name].double() for name in ("theta0", "images")}
    lists = {"lr": lr.tolist(), "labels": logits.tolist()}
    wanted = ops.unroll(model, **arguments)
    assert torch.equal(ops.unroll(model, **{**arguments, **lists}), wanted)


@BOTH
def test_lists_of_logits_have_the_dtype_of_the_images(model: nn.Module) -> None:
    logits = torch.randn(6, 4)
    wanted = ops.unroll(model, **given(model, labels=logits))
    assert torch.equal(ops.unroll(model, **given(model, labels=logits.tolist())), wanted)


@BOTH
@pytest.mark.parametrize(
    ("kind", "match", "changes"),
    [
        (TypeError, r"labels to be int64 \(class indices\) or float32 \(logits\), but got int32",
         {"labels": torch.arange(6, dtype=torch.int32) % 4}),
        (TypeError, "labels to be int64 .*, but got uint8", {"labels": torch.zeros(6).byte()}),
        (TypeError, "labels to be float32, but got float64",
         {"labels": torch.randn(6, 4).double()}),
        (TypeError, "labels to be a tensor, an array or a list of numbers, but got NoneType",
         {"labels": None}),
        (ValueError, r"labels to lie in \[0, .*, but got -100",
         {"labels": torch.tensor([0, 1, -100, 3, 0, 1])}),
        (ValueError, r"labels to lie in \[0, .*, but got 4", {"labels": torch.arange(6) % 5}),
        (ValueError, r"labels to have shape \[6\], but got \[5\]", {"labels": torch.arange(5)}),
        (ValueError, r"labels to have shape \[6, K\].*, but got \[6\]", {"labels": torch.rand(6)}),
        (ValueError, r"batches to hold at least one image in every step, but got sizes \[2, 0\]",
         {"batches": [[0, 1], []]}),
        (ValueError, "batches to hold at least one step", {"batches": []}),
        (ValueError, r"batches to hold indices in \[0, 6\), but got 6", {"batches": [[0, 6]]}),
        (TypeError, "batches to be int64, but got float32", {"batches": [[0.0, 1.0]]}),
        (TypeError, "batches to be int64, but got int32", {"batches": torch.zeros(2, 2).int()}),
        (TypeError, "batches to be a tensor, an array or a list", {"batches": ["ab"]}),
        (TypeError, r"images to be a torch.Tensor, but got ndarray",
         {"images": np.zeros((6, 3, 8, 8), np.float32)}),
        (TypeError, r"theta0 to be a torch.Tensor, but got list", {"theta0": [0.0]}),
        (TypeError, "images to be float32, but got float64",
         {"images": torch.randn(6, 3, 8, 8).double()}),
        (ValueError, "images to hold at least one image", {"images": torch.randn(0, 3, 8, 8)}),
        (ValueError, r"steps to lie in 1..2, but got 0", {"steps": [0]}),
        (ValueError, r"steps to lie in 1..2, but got 3", {"steps": [3]}),
    ],
)  # fmt: skip
def test_both_paths_refuse_alike(
    model: nn.Module, kind: type[Exception], match: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(kind, match="trajmatch::unroll: expected " + match):
        ops.unroll(model, **given(model, **changes))


@BOTH
@pytest.mark.parametrize("op", [ops.gradient, ops.gradient_jvp, ops.image_gradient])
def test_single_gradients_check_alike(model: nn.Module, op: Callable[..., Any]) -> None:
    arguments = given(model)
    theta, images = arguments["theta0"], arguments["images"]
    op(model, theta, images, [0, 1, 2, 3, 0, 1])
    for kind, match, labels in (
        (TypeError, "labels to be int64", torch.zeros(6).int()),
        (ValueError, "labels to lie in", torch.full((6,), -100)),
        (ValueError, "labels to have shape", torch.arange(3)),
        (ValueError, "labels to be given", None),
    ):
        with pytest.raises(kind, match=f"trajmatch::.*gradient.*: expected {match}"):
            op(model, theta, images, labels)


@BOTH
def test_inference_mode_is_without_gradients(model: nn.Module) -> None:
    wanted = ops.unroll(model, **given(model))
    with torch.inference_mode():
        arguments = given(model)
        theta = ops.unroll(model, **arguments)
        _, grad = ops.gradient(model, theta, arguments["images"], arguments["labels"])
    assert torch.equal(theta, wanted) and not theta.requires_grad
    assert grad.isfinite().all()


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="aot_eager")


def compiled_inside(model: nn.Module) -> nn.Module:
    return nn.Sequential(torch.compile(model, backend="aot_eager"))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", [compiled, compiled_inside])
def test_compiled_modules_are_differentiated_as_they_were_before(
    make: Callable[[nn.Module], nn.Module],
) -> None:
    model = perceptron()
    results = []
    for each in (make(model), model):
        arguments = given(model)
        arguments["images"].requires_grad_()
        end = ops.unroll(each, **arguments)
        results.append(torch.autograd.grad(end.square().sum(), arguments["images"])[0])
    assert torch.equal(*results)


def test_a_compiled_network_of_the_engine_runs_on_it() -> None:
    assert ops.engine_for(compiled(ConvNet(3, 4, 8, 4, 2))) == "engine"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own
@BOTH
def test_forward_mode_derivatives_are_refused(model: nn.Module) -> None:
    arguments = given(model)
    images = arguments.pop("images")
    theta, target = arguments["theta0"], arguments["theta0"] + 1

    def refused(function: Callable[[Tensor], Tensor], at: Tensor) -> None:
        with pytest.raises(NotImplementedError, match="without forward-mode tangents"):
            torch.func.jvp(function, (at,), (torch.ones_like(at),))
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(at, torch.ones_like(at))
            with pytest.raises(NotImplementedError, match="without forward-mode tangents"):
                function(dual)

    refused(lambda x: ops.unroll(model, images=x, **arguments), images)
    refused(lambda x: ops.param_distance(x, target, theta), theta + 0.5)
    refused(lambda x: ops.gradient(model, theta, x, arguments["labels"])[1], images)
    with forward_ad.dual_level():  # of something else
        ops.unroll(model, images=images, **arguments)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(24, 3 * 8), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.embed(images.transpose(1, 2).flatten(2)).unflatten(-1, (3, 1, 8))
        query, key, value = rows.permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.head(found.mean((1, 2)))


def test_attention_has_second_derivatives() -> None:
    model, results = Attention(), []
    with sdpa_kernel(SDPBackend.MATH):
        arguments = given(model)
        arguments["images"].requires_grad_()
        end = reference.unroll(model, **arguments)
        results.append(torch.autograd.grad(end.square().sum(), arguments["images"])[0])
    arguments = given(model)
    arguments["images"].requires_grad_()
    end = ops.unroll(model, **arguments)
    results.append(torch.autograd.grad(end.square().sum(), arguments["images"])[0])
    torch.testing.assert_close(*results)


class OnceDifferentiable(Attention):
    """Insists on a kernel that has first derivatives alone."""

    def forward(self, images: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return super().forward(images)


def test_a_module_without_second_derivatives_is_named_as_such() -> None:
    arguments = given(OnceDifferentiable())
    arguments["images"].requires_grad_()
    end = ops.unroll(OnceDifferentiable(), **arguments)
    with pytest.raises(NotImplementedError, match="expected a model that is twice differentiable"):
        end.sum().backward()


class _Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * x.cos()


class ConstantBackward(nn.Module):
    """PyTorch takes the backward pass of one layer for a constant, without an error."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(192, 6), nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(_Sine.apply(self.body(images.flatten(1))))


def test_a_backward_pass_outside_of_the_graph_is_refused() -> None:
    model = ConstantBackward()
    arguments = given(model)
    theta, images, labels = (arguments[name] for name in ("theta0", "images", "labels"))
    with pytest.raises(NotImplementedError, match="backward is once_differentiable"):
        ops.gradient_jvp(model, theta, images, labels, theta)
    end = ops.unroll(model, **{**arguments, "images": images.requires_grad_()})
    with pytest.raises(NotImplementedError, match="backward is once_differentiable"):
        end.sum().backward()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("model", "kind", "match"),
    [
        (lambda: nn.DataParallel(perceptron()), TypeError, "DataParallel; pass model.module"),
        (lambda: torch.jit.script(perceptron()), TypeError, "ScriptModule; pass the module"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), ValueError, "the lazy 1.weight"),
        (lambda: torch.relu, TypeError, "model to be a torch.nn.Module, but got"),
        (lambda: perceptron().requires_grad_(False), ValueError, "to have parameters to train"),
        (lambda: nn.Flatten(), ValueError, "to have parameters to train"),
    ],
)
def test_models_that_cannot_be_students_are_refused(
    model: Callable[[], nn.Module], kind: type[Exception], match: str
) -> None:
    with pytest.raises(kind, match=match):
        ops.unroll(model(), **given(perceptron()))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_the_old_weight_norm_is_differentiated() -> None:
    model = nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(192, 4)))
    results = []
    for unroll in (ops.unroll, reference.unroll):
        arguments = given(model)
        arguments["images"].requires_grad_()
        end = unroll(model, **arguments)
        results.append(torch.autograd.grad(end.square().sum(), arguments["images"])[0])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("model", [ConvNet(3, 4, 8, 4, 2), perceptron()])
def test_frozen_parameters_stay_as_they_are(model: nn.Module) -> None:
    first = next(model.parameters())
    first.requires_grad_(False)
    try:
        assert ops.engine_for(model) == "autograd"
        arguments = given(model)
        _, grad = ops.gradient(model, arguments["theta0"], arguments["images"], arguments["labels"])
        end = ops.unroll(model, **arguments, momentum=0.9)
        jvp = ops.gradient_jvp(
            model, arguments["theta0"], arguments["images"], arguments["labels"], end
        )
        moved, size = end - arguments["theta0"], first.numel()
        for each in (moved, grad, jvp.grad_theta):
            assert each[:size].eq(0).all() and each[size:].ne(0).any()
    finally:
        first.requires_grad_(True)
