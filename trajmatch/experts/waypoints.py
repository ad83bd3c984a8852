"""Experts as lines between a few waypoints (MCT, CVPR 2025)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def convexified(
    trajectory: Tensor, inner: Sequence[int], layers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Reduce a trajectory to waypoints, and to the place on the lines between them at each epoch.

    The waypoints are the start, the inner ones ``1/2 theta_w + 1/4 (theta_{w-1} + theta_{w+1})``,
    and the end ``1/2 theta_T + 1/4 (theta_{T-1} + theta_{T-2})``. Each parameter tensor moves on a
    line from one to the next. Its share of the line after an epoch is the share of the length of
    its path between the two, ``sum |theta_t - theta_{t-1}|_2``, that it has gone by then.

    Args:
        trajectory: theta_0 to theta_T. ``[T + 1, P]``, float32.
        inner: Epochs of the inner waypoints, ascending, from 1 to T - 1; T is at least 2.
        layers: Numbers of each parameter tensor, whose sum is P.

    Returns:
        ``(waypoints, shares)``: ``[W, P]``, and after each epoch the share of the line that ends
        there or later, ``[T + 1, L]``, from 0 to 1; float32.
    """
    points = trajectory.clone()
    for epoch in inner:
        points[epoch] = points[epoch] / 2 + (points[epoch - 1] + points[epoch + 1]) / 4
    points[-1] = points[-1] / 2 + (points[-2] + points[-3]) / 4
    parts = points.diff(dim=0).split(list(layers), dim=1)
    steps = torch.stack([part.double().norm(dim=1) for part in parts], dim=1)
    epochs, shares = [0, *inner, len(points) - 1], [steps.new_zeros(1, len(layers))]
    for first, last in pairwise(epochs):
        gone = steps[first:last].cumsum(dim=0)
        # Where nothing moves, any share will do.
        shares.append((gone / gone[-1]).nan_to_num(1.0))
    return points[epochs], torch.cat(shares).float()


def line_to(epoch: int, epochs: Sequence[int]) -> tuple[int, int]:
    """Return the waypoints, by their epochs, between which an epoch lies; the line ends at it."""
    end = max(1, bisect_left(epochs, epoch))
    return epochs[end - 1], epochs[end]


def between(first: Tensor, last: Tensor, shares: Tensor, layers: Sequence[int]) -> Tensor:
    """Return the point at a share of the line of each parameter tensor.

    Args:
        first: The waypoint that the line begins at. ``[P]``, float32.
        last: The one that it ends at. ``[P]``.
        shares: ``[L]``, float32.
        layers: Numbers of each parameter tensor.
    """
    return torch.lerp(first, last, shares.repeat_interleave(torch.tensor(layers)))
