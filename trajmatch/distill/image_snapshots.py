"""Snapshots of the images during a run, for viewing."""

import torch
from torch import Tensor

from trajmatch import snapshots
from trajmatch.distill import checkpoint
from trajmatch.distill.problem import Problem
from trajmatch.distill.state import State
from trajmatch.errors import UserError, warn
from trajmatch.snapshots import Snapshots

#: Maximum number of images per class in a snapshot.
IMAGES_PER_CLASS = 10
#: Maximum number of values in a snapshot (2 MB in half precision). Each class keeps at least one
#: image.
VALUES = 2**20


class ImageSnapshots:
    """Writer of the snapshots next to the distilled file; does nothing with ``--snapshots 0``.

    ``state`` is the state in which the run starts or resumes. UserError is raised if the existing
    file belongs to another run. A damaged file only causes a warning and is replaced.
    """

    def __init__(self, problem: Problem, state: State) -> None:
        config = problem.config
        self._problem, self._path, self._last = problem, config.snapshots_path, -1
        self._due = due_iterations(config.snapshots, config.iterations)
        if self._due and state.iteration > 0 and (found := self._load()):
            checkpoint.check_same_run(
                self._path, dict(found.identity), problem.identity, ignore=("iterations",)
            )
            # The run takes the snapshots after its checkpoint again, so that the file equals that
            # of an uninterrupted run.
            kept = found.until(state.iteration)
            self._last = max(kept.iterations, default=-1)
            if kept.iterations != found.iterations:
                snapshots.save(self._path, kept)
        self.take_if_due(state)

    def take_if_due(self, state: State) -> None:
        """Append a snapshot if one is due and not yet in the file.

        Call this before the checkpoint is saved: an interruption in between then loses no snapshot.
        """
        if state.iteration not in self._due or state.iteration <= self._last:
            return
        problem, per_class = self._problem, self._problem.images_per_class
        images = problem.render(state.result).images.cpu()
        chosen = _some_of_each_class(images, per_class)
        # Viewers show pixels, so undo the preprocessing. [n, C, H, W]
        pixels = problem.training.preprocessing.to("cpu").invert(images[chosen])
        # Snapshots are few: read the file and write it again with one more.
        before = (self._load() if self._last >= 0 else None) or Snapshots(
            iterations=(),
            images=torch.empty(0, *pixels.shape, dtype=snapshots.DTYPE),
            labels=chosen // per_class,
            identity=problem.identity,
        )
        snapshots.save(self._path, before.with_images(state.iteration, pixels))
        self._last = state.iteration

    def _load(self) -> Snapshots | None:
        """Return the snapshots, or None if the file is missing or damaged; warn of damage."""
        if not self._path.exists():
            return None
        try:
            return snapshots.load(self._path)
        except UserError as error:
            warn(f"{error}; starting the snapshots of this run from scratch")
            return None


def due_iterations(count: int, iterations: int) -> frozenset[int]:
    """Return the iterations at which a snapshot is due; none if ``count`` is 0.

    They are ``ceil(iterations * (k / count)^2)`` for ``k = 0 .. count``.
    """
    if count == 0:
        return frozenset()
    # Dense at the beginning, where the images change most. Integers, so that rounding is exact.
    return frozenset(-(-iterations * k * k // count**2) for k in range(count + 1))


def _some_of_each_class(images: Tensor, per_class: int) -> Tensor:
    """Return the indices ``[n]``, int64, of the first few images of each class."""
    num_classes, values = len(images) // per_class, images[0].numel()
    count = max(1, min(per_class, IMAGES_PER_CLASS, VALUES // (num_classes * values)))
    return torch.cat([torch.arange(count) + per_class * k for k in range(num_classes)])
