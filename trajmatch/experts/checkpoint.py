"""Checkpoints inside of an expert, so that a long one that was interrupted does not begin anew.

Each expert in training has a hidden file of its own in the store, which is removed when the expert
is written. Several experts that train in lockstep are at the same place, but need not go on
together: an expert does not depend on those beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor

from trajmatch import files, interruption
from trajmatch.errors import UserError
from trajmatch.experts.step import ExpertState
from trajmatch.experts.store import Store
from trajmatch.experts.trajectory_recorder import Health, TrajectoryRecorder
from trajmatch.schema import Count, convert

#: Checkpoints take this share of the time at most, however large and slow to write they are.
_SHARE = 0.05


class Place(NamedTuple):
    """How far the training of an expert is.

    Attributes:
        epoch: Epochs finished.
        step: Steps taken of the next one.
    """

    epoch: Count
    step: Count


BEGINNING = Place(0, 0)


class Description(msgspec.Struct):
    """What a checkpoint says beside its tensors."""

    format: Literal["trajmatch expert checkpoint"]
    format_version: Literal[1]
    store: str
    expert: Count
    place: Place
    health: Health


class Training(NamedTuple):
    """An expert in training.

    Attributes:
        expert: Its number.
        state: What its steps change.
        recorder: What is kept of it.
        total: Loss of the epoch up to now, summed over images. ``[]``, float64.
    """

    expert: int
    state: ExpertState
    recorder: TrajectoryRecorder
    total: Tensor


class Checkpoints:
    """The checkpoints of the experts of a store.

    Args:
        store: Where they are.
        every: Seconds from one to the next, if writing takes less than a twentieth of that.
        clock: Tells the time in seconds.
    """

    def __init__(
        self, store: Store, every: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._every, self._clock = store, every, clock
        self._due = clock() + every

    def place(self, expert: int) -> Place:
        """How far an expert was trained: to its checkpoint, or to the end of a part of the course.

        Raises:
            UserError: The checkpoint is damaged, or belongs to another store or expert.
        """
        path = self._store.checkpoint_path(expert)
        if not path.exists():
            return Place(self._store.epochs_of(expert), 0)
        return _described(self._store, expert, files.read_metadata(path)).place

    def restore(self, training: Training) -> None:
        """Brings an expert that was just begun to where its checkpoint is, if it has one.

        Args:
            training: Is brought forward.

        Raises:
            UserError: The checkpoint is damaged, or belongs to another store or expert.
        """
        store, expert = self._store, training.expert
        if store.checkpoint_path(expert).exists():
            tensors, description = files.load_tensors(store.checkpoint_path(expert))
            health: Mapping[str, Any] = _described(store, expert, description).health
        elif store.epochs_of(expert):
            tensors, _ = files.load_tensors(store.expert_path(expert))
            rows = tensors["snapshots"].float()
            empty = {"buffers": rows[:, :0], "last": tensors["theta"], "total": training.total}
            tensors = {**empty, **tensors, "snapshots": rows}
            health = store.metrics(expert)
        else:
            return
        try:
            for name, each in training.state.tensors().items():
                _copy(each, tensors[name])
            _copy(training.total, tensors["total"])
            training.recorder.restore(tensors, health)
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{store.checkpoint_path(expert)} cannot be used: {error}; remove it to train "
                f"expert {expert} from its beginning"
            ) from error

    def visit(self, place: Place, group: Sequence[Training]) -> None:
        """Writes a checkpoint if it is time for one, or if the run is to stop here.

        Args:
            place: How far the experts are.
            group: Those that are trained together.

        Raises:
            UserError: It cannot be written.
            Interrupted: The run is to stop.
        """
        try:
            interruption.check()
        except interruption.Interrupted as stop:
            self._write(place, group)
            stop.kept = (
                f"{self._store.path} has {self._store.num_experts - len(self._store.missing())} of "
                f"{self._store.num_experts} experts and a checkpoint of those in training"
            )
            raise
        began = self._clock()
        if began >= self._due:
            self._write(place, group)
            ended = self._clock()
            self._due = ended + max(self._every, (ended - began) / _SHARE)

    def _write(self, place: Place, group: Sequence[Training]) -> None:
        for expert, state, recorder, total in group:
            description = Description(
                format="trajmatch expert checkpoint",
                format_version=1,
                store=self._store.identity,
                expert=expert,
                place=place,
                health=recorder.health,
            )
            tensors = {**state.tensors(), **recorder.tensors(), "total": total}
            # What is not finite is found at the end of the epoch, and said there.
            files.save_tensors(
                self._store.checkpoint_path(expert),
                tensors,
                msgspec.to_builtins(description),
                allow_nonfinite=True,
            )


def _described(store: Store, expert: int, description: dict[str, Any]) -> Description:
    """Check the description of an expert's checkpoint."""
    path = store.checkpoint_path(expert)
    advice = f"; remove it to train expert {expert} from its beginning"
    found = convert(description, Description, f"{path} cannot be used", advice)
    epoch, values = found.place.epoch, [*dict[str, Any](found.health).values()]
    if (found.store, found.expert) != (store.identity, expert):
        cause = "it belongs to another store or to another expert"
    elif epoch >= store.course or any(len(each) != epoch for each in values):
        cause = f"its health is not one number for each of {epoch} epochs, of {store.course}"
    else:
        return found
    raise UserError(f"{path} cannot be used: {cause}{advice}")


def _copy(memory: Tensor, value: Tensor) -> None:
    if value.shape != memory.shape or value.dtype != memory.dtype:
        raise ValueError(
            f"it has {value.dtype} {list(value.shape)} in place of {memory.dtype} "
            f"{list(memory.shape)}"
        )
    with torch.no_grad():
        memory.copy_(value)
