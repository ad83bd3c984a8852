"""Named random streams: every purpose has an independent generator derived from one seed.

A stream depends only on seed and name, not on draws from other streams. So resumed runs draw the
same numbers, and new uses of randomness change no old result.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """Return the seed of a named stream, from 0 to ``2**63 - 1``, the same on every machine.

    ``names`` say what the stream is for, general to specific, e.g. ``"expert", 3, "batches"``.
    """
    if not isinstance(seed, int):
        raise TypeError(f"expected seed to be an int, but got {seed!r}")
    text = f"{seed}/{'/'.join(map(str, names))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a new PyTorch generator for a named stream; see :func:`derive_seed`.

    Different devices give different numbers for the same seed.
    """
    import torch

    return torch.Generator(device).manual_seed(derive_seed(seed, *names))
