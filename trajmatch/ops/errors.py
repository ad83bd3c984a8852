"""Clear messages for errors that PyTorch raises inside an operator."""

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves, tree_map_only

P = ParamSpec("P")
R = TypeVar("R")

# PyTorch's messages for a class index out of range, and for an argument of the wrong type.
_LABEL = re.compile(r"Target (-?\d+) is out of bounds.")
_KIND = re.compile(r"Expected a value of type '(.+?)' for argument '(\w+)' but .* type '(\w+)'")


@contextmanager
def explained(op: str) -> Iterator[None]:
    """Replace PyTorch's errors inside the context by errors that name the operator's arguments."""
    try:
        yield
    except IndexError as error:
        if found := _LABEL.fullmatch(str(error)):
            raise ValueError(
                f"trajmatch::{op}: expected labels to lie in [0, K), where K is the number of the "
                f"model's logits, but got {found[1]}"
            ) from error
        raise
    except RuntimeError as error:
        # PyTorch has no exception types for these failures, only texts.
        text = str(error)
        if found := _KIND.search(text):
            wanted, argument, came = found.groups()
            raise TypeError(
                f"trajmatch::{op}: expected {argument} to be a {wanted}, but got {came}"
            ) from error
        if "functorch transforms" in text or "does not have vmap support" in text:
            raise NotImplementedError(
                f"trajmatch::{op}: torch.func.vmap and torch.func.jvp are not supported here "
                "(grad and vjp are); use a loop instead"
            ) from error
        if "is not implemented" in text or "does not currently support double backward" in text:
            raise NotImplementedError(
                f"trajmatch::{op}: expected a model that is twice differentiable, but got one with "
                f"a layer that is not ({text.splitlines()[0]}); `trajmatch doctor --network` names "
                "the layer"
            ) from error
        raise


def public_operator(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap an operator so that it explains PyTorch's errors and refuses forward-mode tangents.

    If inference mode is on, the wrapper switches it off during the call and uses ``no_grad``.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        _refuse_tangents(function.__name__, (args, kwargs))
        with explained(function.__name__):
            if not torch.is_inference_mode_enabled():
                return function(*args, **kwargs)
            # Student gradients need autograd, which inference mode turns off completely. Under
            # no_grad the result has no graph either, but autograd works inside the operator.
            with torch.inference_mode(False), torch.no_grad():
                args, kwargs = tree_map_only(Tensor, _normal, (args, kwargs))
                return function(*args, **kwargs)

    return wrapped


def _refuse_tangents(op: str, values: Any) -> None:
    """Raise NotImplementedError for a forward-mode tangent, which PyTorch would treat as zero."""
    # At a negative level, neither torch.func.jvp nor forward_ad.dual_level is active.
    if forward_ad._current_level < 0:
        return
    if any(
        isinstance(each, Tensor) and forward_ad.unpack_dual(each).tangent is not None
        for each in tree_leaves(values)
    ):
        raise NotImplementedError(
            f"trajmatch::{op}: expected tensors without forward-mode tangents; use the "
            "functions of trajmatch.reference with torch.autograd.forward_ad, or "
            "trajmatch.ops.gradient_jvp for a student's gradient"
        )


def _normal(tensor: Tensor) -> Tensor:
    """Return a copy of an inference tensor, and any other tensor unchanged."""
    # Autograd refuses inference tensors, but not their copies.
    return tensor.clone() if tensor.is_inference() else tensor
