"""Convexified experts: straight lines between a few waypoints (MCT, CVPR 2025)."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def convexified(
    trajectory: Tensor, inner: Sequence[int], layers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Reduce a trajectory to waypoints ``[W, P]`` and shares ``[T + 1, L]``, both float32.

    The waypoints are the start, ``1/2 theta_w + 1/4 (theta_{w-1} + theta_{w+1})`` for each inner
    epoch ``w``, and the end ``1/2 theta_T + 1/4 (theta_{T-1} + theta_{T-2})``. Between waypoints,
    each parameter tensor moves on a straight line. Its share is the fraction of the line covered
    after an epoch: the path length so far divided by the path length between the two waypoints.

    ``trajectory [T + 1, P]`` is float32, with T at least 2; ``layers`` are the tensor sizes.
    """
    points = trajectory.clone()
    # In place: each waypoint replaces the snapshot of its epoch. The next waypoint and the path
    # lengths are computed from the replaced snapshot.
    for epoch in inner:
        points[epoch] = points[epoch] / 2 + (points[epoch - 1] + points[epoch + 1]) / 4
    points[-1] = points[-1] / 2 + (points[-2] + points[-3]) / 4
    # Path length |theta_t - theta_{t-1}|_2 of each parameter tensor in each epoch: [T, L].
    parts = points.diff(dim=0).split(list(layers), dim=1)
    steps = torch.stack([part.double().norm(dim=1) for part in parts], dim=1)
    epochs, shares = [0, *inner, len(points) - 1], [steps.new_zeros(1, len(layers))]
    for first, last in pairwise(epochs):
        gone = steps[first:last].cumsum(dim=0)
        # A tensor that does not move gives 0 / 0; any share is right, since its line is a point.
        shares.append((gone / gone[-1]).nan_to_num(1.0))
    return points[epochs], torch.cat(shares).float()


def line_to(epoch: int, epochs: Sequence[int]) -> tuple[int, int]:
    """Return the epochs of the two waypoints around an epoch.

    If the epoch is itself a waypoint, it is the second of the two, unless it is the first epoch.
    """
    end = max(1, bisect_left(epochs, epoch))
    return epochs[end - 1], epochs[end]


def between(first: Tensor, last: Tensor, shares: Tensor, layers: Sequence[int]) -> Tensor:
    """Interpolate between waypoints ``[P]``, with one share for each parameter tensor, ``[L]``."""
    return torch.lerp(first, last, shares.repeat_interleave(torch.tensor(layers)))
