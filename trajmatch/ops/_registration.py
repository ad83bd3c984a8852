"""What the operators' registrations share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def forbid_autograd(name: str, instead: str) -> None:
    """Make an attempt to differentiate ``trajmatch::name`` an error instead of a silent zero."""

    def backward(ctx: Any, *grads: Tensor | None) -> None:
        raise NotImplementedError(f"trajmatch::{name} is not differentiable; {instead}")

    torch.library.register_autograd(f"trajmatch::{name}", backward)
