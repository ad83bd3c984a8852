"""State of an unroll's forward pass, restored so that the backward pass recomputes the same steps.

The state is the model's mode and buffers, the autocast settings and the random generators. If
anything else changes a recomputed step, the fingerprint of the step reveals it.
"""

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
    """Return the pickled states of the global random generators of Python, NumPy and PyTorch."""
    cuda = None
    # The state of the CUDA generator cannot be read while a CUDA graph is captured.
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        cuda = torch.cuda.get_rng_state(device).numpy()
    states = (random.getstate(), np.random.get_state(), torch.get_rng_state().numpy(), cuda)
    return pickle.dumps(states)


def restore_random_state(state: bytes, device: torch.device) -> None:
    """Restore all generators to the states that :func:`random_state` returned."""
    python, numpy, cpu, cuda = pickle.loads(state)
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(torch.from_numpy(cpu))
    if cuda is not None:
        torch.cuda.set_rng_state(torch.from_numpy(cuda), device)


class Conditions:
    """Record of a model's mode and buffers (``model`` may be None) and the thread's autocast."""

    def __init__(self, model: nn.Module | None, device: torch.device) -> None:
        modules = [] if model is None else list(model.modules())
        self._modes = [(module, module.training) for module in modules]
        # Copies, because the caller may change the buffers before the backward pass.
        self._buffers = [
            (module._buffers, name, None if buffer is None else buffer.detach().clone())
            for module in modules
            for name, buffer in module._buffers.items()
        ]
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in sorted({"cpu", device.type})
        ]

    def eps(self, dtype: torch.dtype) -> float:
        """Return the machine epsilon of the coarsest dtype that the steps compute in."""
        coarser = [kind for _, kind, enabled in self._autocast if enabled]
        return max(torch.finfo(each).eps for each in (dtype, *coarser))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the model's mode and buffers and the thread's autocast inside the context."""
        with ExitStack() as stack:
            # Register each undo before its change, so that an error midway is undone as well.
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
    """Fingerprints of the steps, two numbers each, that show if a recomputed step differs."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, bool], Tensor] = {}
        self._ramps: dict[int, Tensor] = {}

    def record(self, step: int, values: Tensor, again: bool = False) -> None:
        """Keep the fingerprint of a step's values; ``again`` is True for the recomputed step."""
        self._kept[step, again] = self._fingerprint(values)

    def check(self, eps: float) -> None:
        """Raise RuntimeError if a recomputed step differs; on a GPU this waits for the device."""
        if not (steps := sorted(step for step, again in self._kept if again)):
            return
        # [steps, 2] each, so that all numbers leave the GPU in one transfer.
        first, second = (
            torch.stack([self._kept[step, again] for step in steps]) for again in (False, True)
        )
        errors = ((second - first).abs().amax(1) / first[:, 0]).tolist()
        for step, error in zip(steps, errors, strict=True):
            # The comparison is False for NaN: a student that diverges is not an error.
            if error > 4 * math.sqrt(eps):
                raise RuntimeError(
                    f"trajmatch::unroll: expected step {step} of the backward pass to repeat the "
                    f"forward pass, but it differs by {error:.1e} (relative): the model, augment "
                    "or data that they read changed between the passes, or they use a private "
                    "random generator. Only the global generators of Python, NumPy and PyTorch are "
                    "restored; the model and augment must otherwise depend only on the images and "
                    "the step"
                )

    def _fingerprint(self, values: Tensor) -> Tensor:
        """Return the norm of the values and their inner product with a ramp. ``[2]``."""
        flat = values.detach().reshape(-1)
        count = len(flat)
        # The norm alone does not change if elements swap places; the ramp weights each differently.
        # Its root mean square is 1, so that the inner product is about as large as the norm.
        if count not in self._ramps:
            self._ramps[count] = torch.linspace(
                0, math.sqrt(3), count, dtype=flat.dtype, device=flat.device
            )
        return torch.stack([torch.linalg.vector_norm(flat), flat.dot(self._ramps[count])])


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Make attention and compiled modules differentiable twice inside the context."""
    with ExitStack() as stack:
        # Of PyTorch's attention kernels, only the math kernel has second derivatives.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        # Compiled modules must run eagerly, since their backward pass has no derivative. Without
        # dynamo no module is compiled, so do not import it just for this: that is slow.
        if "torch._dynamo" in sys.modules and not torch.compiler.is_compiling():
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
