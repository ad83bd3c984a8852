"""Named random streams: each purpose has an independent generator, derived from one seed.

A stream depends only on seed and name, not on draws from other streams. So a resumed run draws the
same numbers, and a new stream does not change old results.
"""

import hashlib

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """Return the seed of a named stream, from 0 to ``2**63 - 1``, the same on every machine.

    ``names`` describe the purpose, from general to specific, e.g. ``"expert", 3, "batches"``.
    """
    if not isinstance(seed, int):
        raise TypeError(f"expected seed to be an int, but got {seed!r}")
    text = f"{seed}/{'/'.join(map(str, names))}"
    # The shift leaves 63 bits, which fit into an int64.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a new PyTorch generator for a named stream; see :func:`derive_seed`.

    For the same seed, different devices draw different numbers.
    """
    return torch.Generator(device).manual_seed(derive_seed(seed, *names))
