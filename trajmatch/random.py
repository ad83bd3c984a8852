"""Random generators with names: one seed, and an independent stream for every purpose.

A stream depends on the seed and on its name only, never on how much another stream was used before.
So an interrupted run draws the same numbers as an uninterrupted one, and a new use of randomness
changes no old result.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """The seed of a named stream.

    Args:
        seed: The seed of the whole run.
        names: What the stream is for, from the general to the particular, e.g. ``"expert", 3,
            "batches"``.

    Returns:
        A number from 0 to ``2**63 - 1``, the same on every machine.
    """
    if not isinstance(seed, int):
        raise TypeError(f"expected seed to be an int, but got {seed!r}")
    text = f"{seed}/{'/'.join(map(str, names))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh PyTorch generator at the beginning of a named stream.

    Args:
        seed: The seed of the whole run.
        names: What the stream is for; see :func:`derive_seed`.
        device: Where the numbers are drawn. Devices give different numbers for the same seed.

    Returns:
        A generator of its own: drawing from it changes no other.
    """
    import torch

    return torch.Generator(device).manual_seed(derive_seed(seed, *names))
