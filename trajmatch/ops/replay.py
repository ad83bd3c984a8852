"""State in which an unrolled loop ran, so that its backward pass can recompute the same steps.

Model, autocast and generators are restored, as in :mod:`torch.utils.checkpoint`; fingerprints
reveal other changes.
"""

from __future__ import annotations

import math
import pickle
import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def random_state(device: torch.device) -> bytes:
    """Return the states of the global random generators of Python, NumPy and PyTorch.

    On a GPU they include its generator, except while a CUDA graph is captured.
    """
    cuda = None
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        cuda = torch.cuda.get_rng_state(device).numpy()
    states = (random.getstate(), np.random.get_state(), torch.get_rng_state().numpy(), cuda)
    return pickle.dumps(states)


def restore_random_state(state: bytes, device: torch.device) -> None:
    """Restore all generators to the states of :func:`random_state`."""
    python, numpy, cpu, cuda = pickle.loads(state)
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(torch.from_numpy(cpu))
    if cuda is not None:
        torch.cuda.set_rng_state(torch.from_numpy(cuda), device)


class Conditions:
    """Mode and buffers of a model (None: no model) and the thread's autocast, at construction."""

    def __init__(self, model: nn.Module | None, device: torch.device) -> None:
        modules = [] if model is None else list(model.modules())
        self._modes = [(module, module.training) for module in modules]
        self._buffers = [
            (module._buffers, name, None if buffer is None else buffer.detach().clone())
            for module in modules
            for name, buffer in module._buffers.items()
        ]
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in sorted({"cpu", device.type})
        ]

    @property
    def casts(self) -> bool:
        """True under autocast."""
        return any(enabled for *_, enabled in self._autocast)

    def eps(self, dtype: torch.dtype) -> float:
        """Return the machine epsilon of the coarsest dtype that the steps compute in."""
        coarser = [kind for _, kind, enabled in self._autocast if enabled]
        return max(torch.finfo(each).eps for each in (dtype, *coarser))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the model's mode and buffers and the thread's autocast inside the context."""
        with ExitStack() as stack:
            for module, training in self._modes:
                stack.callback(setattr, module, "training", module.training)
                module.training = training
            for owner, name, buffer in self._buffers:
                stack.callback(owner.__setitem__, name, owner[name])
                owner[name] = buffer
            for each in self._autocast:
                stack.enter_context(torch.autocast(*each))
            yield


class Fingerprints:
    """Two numbers per step that show if its recomputation differs, without keeping gradients."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}
        self._ramps: dict[int, Tensor] = {}

    def record(self, step: int, values: Tensor, again: bool = False) -> None:
        """Keep the fingerprint of a step, or with ``again`` of its recomputation."""
        self._kept[step, again] = self._fingerprint(values)

    def check(self, eps: float) -> None:
        """Compare the steps with their recomputations. On a GPU this waits for the device.

        Raises:
            RuntimeError: A recomputation differs by more than ``4 sqrt(eps)`` of the original's
                norm, where ``eps`` is the machine epsilon of the arithmetic.
        """
        steps = sorted(step for step, again in self._kept if again)
        if not steps:
            return
        first, second = (
            torch.stack([number for step in steps for number in self._kept[step, again]]).view(
                -1, 2
            )
            for again in (False, True)
        )
        # Column 0 has the squared norms.
        for numbers in (first, second):
            numbers[:, 0].sqrt_()
        errors = ((second - first).abs().amax(1) / first[:, 0]).tolist()
        for step, error in zip(steps, errors, strict=True):
            if error > 4 * math.sqrt(eps):  # False for NaN: a student may diverge
                raise RuntimeError(
                    f"trajmatch::unroll: expected step {step} to give in the backward pass what it "
                    f"gave in the forward pass, but it differs by {error:.1e} of its norm: the "
                    "model, augment or what they read has changed since, or draws random numbers "
                    "from a generator of its own. Global generators of Python, NumPy and PyTorch "
                    "are replayed; anything else must depend on the images and the step alone"
                )

    def _fingerprint(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared norm, and the product with a ramp, which tells the elements apart."""
        flat = values.detach().reshape(-1)
        count = len(flat)
        if count not in self._ramps:  # with RMS 1, so that its product is of the size of the norm
            self._ramps[count] = torch.linspace(
                0, math.sqrt(3), count, dtype=flat.dtype, device=flat.device
            )
        return flat.dot(flat), flat.dot(self._ramps[count])


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Run modules with second derivatives.

    Attention uses its math kernel, since the others have only first derivatives. Compiled modules
    run eagerly.
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if "torch._dynamo" in sys.modules and not torch.compiler.is_compiling():
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
