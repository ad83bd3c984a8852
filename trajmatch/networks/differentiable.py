"""Checks that a network can be a student: twice differentiable and not random.

The adjoint differentiates a gradient, so backward passes need derivatives. A backward pass without
a derivative raises an error in the adjoint, or silently drops a term.
"""

import copy
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import gradgradcheck
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from trajmatch.networks.external import External
from trajmatch.networks.flat import call_flat
from trajmatch.networks.layers import ImageClassifier

_BATCH = 3  # images; batch norm needs more than one

#: Tolerance for the difference of an image's logits in two batches, relative to the largest logit.
#: Rounding is 1e-3 in TF32; batch norm changes logits by about 1.
_INDEPENDENT = 1e-2

# Number of random directions to try before a module is refused: if an input of a ReLU changes sign
# between the two points of a finite difference, the difference is meaningless.
_DIRECTIONS = 5
# Step of the finite difference, relative to the RMS of each tensor: small enough that almost no
# ReLU input changes sign, large enough that float64 rounding stays near 1e-6 of the gradient.
_STEP = 1e-9
_TOLERANCE = 1e-3
_TIE = 1e-2  # size of the noise, also relative to the RMS, that breaks ties in max-pooling


@dataclass(frozen=True)
class Layer:
    """Layer of a network, with the obstacle to a second derivative, if any.

    Attributes:
        name: Name in ``named_modules()``; empty for the network itself.
        type: Name of the class.
        parameters: Number of parameters, without those of submodules.
        obstacle: Reason why the layer is not twice differentiable; None if it is.
    """

    name: str
    type: str
    parameters: int
    obstacle: str | None = None


def check_student(model: nn.Module) -> None:
    """Raise ValueError unless the network can be a student; warn if layers are switched off.

    Only an :class:`External` is checked, by
    :func:`~trajmatch.networks.differentiable.check_twice_differentiable`.
    """
    if isinstance(model, External):
        if model.switched_off:
            warnings.warn(
                f"{model.name} trains as expert and student without its layers "
                f"{', '.join(model.switched_off)}, because a student's steps must be exactly "
                "repeatable",
                # Blame this line, so that the warning appears once, not once for each caller.
                stacklevel=1,
            )
        check_twice_differentiable(model, model.image_shape)


def check_runs_on(model: nn.Module, image_shape: Sequence[int]) -> None:
    """Raise ValueError unless a copy of the network runs on random images ``(C, H, W)``."""
    twin, images = _twin(model, image_shape)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        _call(twin, images)


def check_batches(model: ImageClassifier, count: int, batch_size: int | None, flag: str) -> None:
    """Raise ValueError if a batch has one image and the network cannot train on one image.

    Batch norm cannot train on one image if features are pooled to one pixel, because one value has
    no variance. ``count`` is the number of images. A ``batch_size`` of None, or above ``count``,
    means all images. ``flag`` is the option that the message names.
    """
    size = min(batch_size or count, count)
    # Only batches of size 1, or a remainder of 1, have a single image.
    if size > 1 and count % size != 1:
        return
    twin, images = _twin(model, model.image_shape)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            _call(twin.train(), images[:1])
    except ValueError as error:
        fitting = [each for each in range(2, count + 1) if count % each != 1]
        nearest = min(fitting, key=lambda each: abs(each - size), default=None)
        raise ValueError(
            f"{flag} {size} leaves a batch with a single image (of {count}), and {_title(model)} "
            f"cannot train on one image ({first_line(error)}); "
            + (f"choose another size, e.g. {flag} {nearest}" if nearest else "use more images")
        ) from error


def treats_images_alone(model: nn.Module, theta: Tensor, images: Tensor) -> bool:
    """Return True if an image's logits do not depend on the other images of its batch.

    The network runs in its current mode with parameters ``theta [P]``. The test uses the first
    image of ``images [n, ...]``; for tokens, also the first image that differs from it.
    """
    with torch.no_grad():
        # Two pairs of equal images. Batch norm's mean and variance over both pairs together differ
        # from those of each pair.
        pair = images[[0, 0]]
        if images.is_floating_point():
            pairs = pair, 3 * pair + 1
        else:
            differs = (images != images[0]).reshape(len(images), -1).any(dim=1)
            pairs = pair, images[differs.int().argmax()].expand_as(pair)
        together = call_flat(model, theta, torch.cat(pairs))
        apart = torch.cat([call_flat(model, theta, pair) for pair in pairs])
    return bool((together - apart).abs().max() <= _INDEPENDENT * apart.abs().max())


def check_twice_differentiable(model: nn.Module, image_shape: Sequence[int]) -> None:
    """Raise ValueError unless a network runs on images ``(C, H, W)`` and is twice differentiable.

    The error names the first layer that is not. Drawing random numbers is an error as well.
    """
    for layer in examine(model, image_shape):
        if layer.obstacle is not None:
            where = f"layer {layer.name} ({layer.type})" if layer.name else "the forward method"
            raise ValueError(
                "expected a network that is differentiable twice (trajectory matching needs it), "
                f"but {where} of {_title(model)} is not: {layer.obstacle}; replace it (trajmatch "
                "doctor --network lists all layers)"
            )


def examine(model: nn.Module, image_shape: Sequence[int]) -> list[Layer]:
    """Differentiate every layer of a network twice, each alone, then the network as a whole.

    A copy of the network runs on the CPU on random images ``(C, H, W)``. ValueError is raised if it
    does not run or draws random numbers.

    Returns:
        The modules without submodules, in the order of ``named_modules()``. If all of these are
        twice differentiable but the network is not, also the innermost module that is not.
    """
    twin, images = _twin(model, image_shape)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        calls = _recorded_calls(twin, images)
        called = [(name, module) for name, module in twin.named_modules() if name in calls]
        obstacles: Mapping[str, str | None] = {
            name: obstacle(module, *calls[name]) for name, module in called if _is_leaf(module)
        }
        # The obstacle of a layer is also an obstacle of every module around the layer, so check
        # those modules only if no layer has an obstacle.
        if not any(obstacles.values()):
            obstacles = _innermost(called, calls)
    return [
        Layer(
            name,
            type(module).__name__,
            sum(each.numel() for each in module.parameters(recurse=False)),
            obstacles.get(name),
        )
        for name, module in model.named_modules()
        if _is_leaf(module) or obstacles.get(name)
    ]


_Call = tuple[tuple[Any, ...], dict[str, Any]]


def _twin(model: nn.Module, image_shape: Sequence[int]) -> tuple[nn.Module, Tensor]:
    """Return a copy of the network on the CPU, and random images for it."""
    twin = copy.deepcopy(model).cpu()
    dtype = next((each.dtype for each in twin.parameters()), torch.float32)
    draw = torch.Generator().manual_seed(0)
    return twin, torch.randn((_BATCH, *image_shape), generator=draw, dtype=dtype)


def _is_leaf(module: nn.Module) -> bool:
    # An empty Sequential is the identity, not a layer.
    return next(module.children(), None) is None and type(module) is not nn.Sequential


def _recorded_calls(model: nn.Module, images: Tensor) -> dict[str, _Call]:
    """Return the arguments of each module's last call; raise ValueError on random draws."""
    calls: dict[str, _Call] = {}
    handles = []
    for name, module in model.named_modules():

        def record(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            # The default argument keeps this module's name. Copies, because in-place layers
            # overwrite their arguments.
            calls[name] = tree_map_only(Tensor, lambda each: each.detach().clone(), (args, kwargs))

        handles.append(module.register_forward_pre_hook(record, with_kwargs=True))
    # The generator's state shows all random numbers, also those of functional dropout.
    before = torch.get_rng_state()
    _call(model, images)
    for handle in handles:
        handle.remove()
    if not torch.equal(before, torch.get_rng_state()):
        drawing = (
            f" (in {name or 'itself'}, a {type(module).__name__})"
            for name, module in model.named_modules()
            if module.training and isinstance(module, _DropoutNd | nn.RReLU)
        )
        raise ValueError(
            f"expected a network without randomness, but {type(model).__name__} draws random "
            f"numbers{next(drawing, '')}, so its steps cannot be repeated exactly; set the "
            "dropout probability to 0, or put the layer into evaluation mode"
        )
    return calls


def _call(model: nn.Module, images: Tensor) -> None:
    """Call the network; raise ValueError if that fails."""
    try:
        model(images)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(
            f"{_title(model)} does not run on images of shape {list(images.shape[1:])}: "
            f"{first_line(error)}"
        ) from error


def _innermost(
    called: Sequence[tuple[str, nn.Module]], calls: Mapping[str, _Call]
) -> dict[str, str]:
    """Find the innermost module that is not twice differentiable although its layers are."""
    found: dict[str, str] = {}
    # Outer modules come first; the network as a whole has the empty name.
    for name, module in called:
        outside = next(iter(found), "")
        if _is_leaf(module) or not name.startswith(f"{outside}." if outside else ""):
            continue
        # This module is inside the one found so far; if it fails too, it is closer to the cause.
        if (reason := obstacle(module, *calls[name])) is not None:
            found = {name: reason}
        elif not name:
            break
    return found


def _title(model: nn.Module) -> str:
    return model.name if isinstance(model, External) else type(model).__name__


def obstacle(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Return the reason why a call of a module is not twice differentiable, or None.

    The reason is the first line of PyTorch's error. A detached backward pass raises no error; the
    reason then says that the derivative is wrong. The check moves all floating-point arguments and
    trained parameters along one random direction, in float64, so that it takes only a few gradients
    for any size of module. The module must be on the CPU; it is not changed.
    """
    draw = torch.Generator().manual_seed(0)
    distance = torch.zeros((), dtype=torch.float64, requires_grad=True)
    check = functools.partial(gradgradcheck, eps=_STEP, atol=_TOLERANCE, rtol=_TOLERANCE)
    for _ in range(_DIRECTIONS):
        try:
            function = _along_a_line(copy.deepcopy(module).double(), args, kwargs, draw)
            value = function(distance)
            # A constant, or a slope that is not finite, cannot be compared and is accepted.
            if value.requires_grad and torch.autograd.grad(value, distance)[0].isfinite():
                check(
                    function, distance, value.detach(), check_undefined_grad=False, fast_mode=True
                )
        # A GradcheckError is also a RuntimeError, so it must come first. A ReLU input may have
        # changed its sign, so try another direction.
        except GradcheckError:
            continue
        except RuntimeError as error:
            return first_line(error)
        return None
    return (
        "its gradient has a wrong derivative (a backward that is detached or once_differentiable)"
    )


def _along_a_line(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], draw: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """Return a function that calls a module with inputs and parameters moved along a random line.

    The function takes the distance of the move. It returns a weighted sum of the squared outputs,
    divided by this sum at distance 0.
    """
    trained = {name: each for name, each in module.named_parameters() if each.requires_grad}
    values, structure = tree_flatten((args, kwargs, trained))
    starts, directions = {}, {}
    for place, value in enumerate(values):
        if isinstance(value, Tensor) and value.is_floating_point():
            value = value.detach().double()
            scale = float(value.square().mean().sqrt()) or 1.0
            noise = torch.rand(value.shape, generator=draw, dtype=value.dtype)
            # Noise, because at a tie in max-pooling the gradient is not unique.
            starts[place] = value + _TIE * scale * noise
            directions[place] = scale * torch.randn(value.shape, generator=draw, dtype=value.dtype)

    def total(distance: Tensor) -> Tensor:
        moved = {each: starts[each] + distance * directions[each] for each in starts}
        inputs = [moved.get(place, value) for place, value in enumerate(values)]
        args, kwargs, trained = tree_unflatten(inputs, structure)
        result = torch.zeros((), dtype=torch.float64)
        for output in tree_leaves(functional_call(module, trained, args, kwargs)):
            if isinstance(output, Tensor) and output.is_floating_point():
                # Different weights make the gradients of all elements differ.
                weights = torch.linspace(1, 2, output.numel(), dtype=torch.float64)
                result = result + weights @ output.double().square().flatten()
        return result

    size = float(total(torch.zeros((), dtype=torch.float64))) or 1.0
    # Divided by its value at 0, so that tolerances are relative.
    return lambda distance: total(distance) / size


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
