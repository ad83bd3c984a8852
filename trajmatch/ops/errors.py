"""Errors raised by PyTorch inside an operator, restated in the operator's terms."""

from __future__ import annotations

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

_LABEL = re.compile(r"Target (-?\d+) is out of bounds.")
_KIND = re.compile(r"Expected a value of type '(.+?)' for argument '(\w+)' but .* type '(\w+)'")


@contextmanager
def explained(op: str) -> Iterator[None]:
    """Restate, in the operator's terms, the errors that PyTorch raises inside the context."""
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
        text = str(error)
        if found := _KIND.search(text):
            wanted, argument, came = found.groups()
            raise TypeError(
                f"trajmatch::{op}: expected {argument} to be a {wanted}, but got {came}"
            ) from error
        if "functorch transforms" in text or "does not have vmap support" in text:
            raise NotImplementedError(
                f"trajmatch::{op}: expected to be called outside of torch.func.vmap and jvp, but "
                "inside of grad or vjp at most; use a loop"
            ) from error
        if "is not implemented" in text or "does not currently support double backward" in text:
            raise NotImplementedError(
                f"trajmatch::{op}: expected a model that is twice differentiable, but got one with "
                f"a layer that is not ({text.splitlines()[0]}); `trajmatch doctor --network` names "
                "the layer"
            ) from error
        raise


def public_operator(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate an operator: restate its errors, refuse forward-mode tangents, allow inference mode.

    In inference mode it runs under ``torch.no_grad``, because student gradients need autograd.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        _refuse_tangents(function.__name__, (args, kwargs))
        with explained(function.__name__):
            if not torch.is_inference_mode_enabled():
                return function(*args, **kwargs)
            with torch.inference_mode(False), torch.no_grad():
                args, kwargs = tree_map_only(Tensor, _normal, (args, kwargs))
                return function(*args, **kwargs)

    return wrapped


def _refuse_tangents(op: str, values: Any) -> None:
    """Raise NotImplementedError for a forward-mode tangent, which PyTorch would treat as zero."""
    if forward_ad._current_level < 0:  # no torch.func.jvp or forward_ad.dual_level is active
        return
    if any(
        isinstance(each, Tensor) and forward_ad.unpack_dual(each).tangent is not None
        for each in tree_leaves(values)
    ):
        raise NotImplementedError(
            f"trajmatch::{op}: expected tensors without forward-mode tangents; use "
            f"trajmatch.reference.{op} with torch.autograd.forward_ad, or "
            "trajmatch.ops.gradient_jvp for a student's gradient"
        )


def _normal(tensor: Tensor) -> Tensor:
    """Return a copy of an inference tensor, which autograd refuses; other tensors unchanged."""
    return tensor.clone() if tensor.is_inference() else tensor
