"""Snapshots of the images during a run, to look at how they came about."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from trajmatch import snapshots
from trajmatch.distill import checkpoint
from trajmatch.distill.problem import Problem
from trajmatch.distill.state import State
from trajmatch.errors import UserError
from trajmatch.snapshots import Snapshots

#: A snapshot has at most so many images of each class ...
IMAGES_PER_CLASS = 10
#: ... and fewer where it would have more values than this (2 MB in half precision).
VALUES = 2**20


class ImageSnapshots:
    """Write snapshots beside the artifact; with ``--snapshots 0`` it does nothing.

    A run that goes on drops those beyond its checkpoint first, because it takes them again: they
    are then the same as those of a run that was never interrupted. Nothing is kept in memory.

    Args:
        problem: What the run works on.
        state: Where it begins.

    A file that is damaged is warned of and begins anew: it is there to be looked at only.

    Raises:
        UserError: The file of an interrupted run is of another run.
    """

    def __init__(self, problem: Problem, state: State) -> None:
        """Drop snapshots beyond the checkpoint, and take the first; see the class."""
        config = problem.config
        self._problem = problem
        self._path = config.snapshots_path
        self._due = due_iterations(config.snapshots, config.iterations)
        self._chosen = torch.tensor([], dtype=torch.int64)
        self._last = -1
        if not self._due:
            return
        images = problem.render(state.result).images
        self._chosen = _some_of_each_class(images, problem.images_per_class)
        if state.iteration > 0 and (found := self._load()):
            checkpoint.check_same_run(
                self._path, dict(found.identity), problem.identity, ignore=("iterations",)
            )
            kept = found.until(state.iteration)
            self._last = kept.iterations[-1] if kept.iterations else -1
            if kept.iterations != found.iterations:
                snapshots.save(self._path, kept)
        self.take_if_due(state)

    def take_if_due(self, state: State) -> None:
        """Add a snapshot of the images as they are, where one is due and there is none yet.

        Args:
            state: The state after an iteration, before its checkpoint: no snapshot is lost then
                between the two.

        Raises:
            UserError: The file cannot be written.
        """
        if state.iteration not in self._due or state.iteration <= self._last:
            return
        images = self._problem.render(state.result).images.cpu()[self._chosen]
        pixels = self._problem.training.preprocessing.to("cpu").invert(images)
        before = (self._load() if self._last >= 0 else None) or Snapshots(
            iterations=(),
            images=torch.empty(0, *pixels.shape, dtype=snapshots.DTYPE),
            labels=self._chosen // self._problem.images_per_class,
            identity=self._problem.identity,
        )
        snapshots.save(self._path, before.with_images(state.iteration, pixels))
        self._last = state.iteration

    def _load(self) -> Snapshots | None:
        """Return the snapshots in the file; None if it is missing or, with a warning, damaged."""
        if not self._path.exists():
            return None
        try:
            return snapshots.load(self._path)
        except UserError as error:
            warnings.warn(f"{error}; the snapshots of this run begin anew", stacklevel=3)
            return None


def due_iterations(count: int, iterations: int) -> frozenset[int]:
    """Return the iterations at which snapshots are taken: closer together where more changes.

    Args:
        count: Snapshots after the beginning; 0 takes none at all.
        iterations: Outer iterations of the run.

    Returns:
        ``iterations * (k / count)^2`` for ``k = 0 .. count``, rounded up.
    """
    if count == 0:
        return frozenset()
    return frozenset(-(-iterations * k * k // count**2) for k in range(count + 1))


def _some_of_each_class(images: Tensor, per_class: int) -> Tensor:
    """Return the numbers of the images to keep, the first of each class. ``[n]``, int64."""
    num_classes, values = len(images) // per_class, images[0].numel()
    count = max(1, min(per_class, IMAGES_PER_CLASS, VALUES // (num_classes * values)))
    return torch.cat([torch.arange(count) + per_class * k for k in range(num_classes)])
