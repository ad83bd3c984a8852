"""What changes from epoch to epoch of an expert: learning rate and scale of the loss."""

from __future__ import annotations

from typing import Any


def decay_epoch(epochs: int) -> int:
    """Index of the epoch after which the learning rate drops: ``epochs // 2 + 1`` (MTT, AST)."""
    return epochs // 2 + 1


def learning_rate(recipe: dict[str, Any], index: int) -> float:
    """The learning rate in an epoch.

    Args:
        recipe: ``recipe`` of the store's manifest: ``lr``, ``lr_decay`` and ``epochs``.
        index: Index of the epoch, from 0.

    Returns:
        ``lr``, times ``lr_decay`` in the epochs after :func:`decay_epoch`.
    """
    decayed = index > decay_epoch(recipe["epochs"])
    return float(recipe["lr"] * recipe["lr_decay"] if decayed else recipe["lr"])


def loss_scale(recipe: dict[str, Any], index: int) -> float:
    """The factor of the cross-entropy in an epoch (AST, "clipping loss": a schedule, no clipping).

    Args:
        recipe: ``recipe`` of the store's manifest: ``loss_scale``, ``"constant"`` or ``"rising"``.
        index: Index ``e`` of the epoch, from 0.

    Returns:
        1; for ``"rising"`` ``0.5 + 0.05 e`` in the first ten epochs.
    """
    if recipe["loss_scale"] == "constant" or index >= 10:
        return 1.0
    return 0.5 + 0.05 * index
