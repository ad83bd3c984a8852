"""Records of experts in training, and checkpoints from which an interrupted run resumes.

Each unfinished expert has a hidden file in the store, which is removed once the expert is written.
"""

import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor

from trajmatch import files, interruption
from trajmatch.errors import UserError
from trajmatch.experts.step import ExpertState
from trajmatch.experts.store import Store
from trajmatch.schema import Count, convert

_ADVICE = "; remove it to train expert {} from its beginning"

#: Largest fraction of the run time that is spent on writing checkpoints.
_SHARE = 0.05

#: Health of an expert: ``train_loss``, ``displacement``, and ``accuracy`` or ``error``, each with
#: one value per epoch. A test result is None if the epoch was not tested.
Health = dict[str, list[float | None]]


class Place(NamedTuple):
    """Progress of an expert: number of finished epochs, and of steps taken in the next epoch."""

    epoch: Count
    step: Count


def measure_of(loss: str) -> str:
    """Return the test measure: ``error`` (mean squared) for mse, else ``accuracy`` (percent)."""
    return "error" if loss == "mse" else "accuracy"


class Recorder:
    """Recorder of one expert's health, and of its snapshots after the epochs ``kept``.

    ``kept`` ascends; epoch 0 is the initialisation. ``snapshots [S, P]`` and ``buffers [S, Q]``
    have a row for each kept epoch: float32, on the CPU.
    """

    def __init__(self, state: ExpertState, kept: Sequence[int], measure: str = "accuracy") -> None:
        self._kept, self._measure = list(kept), measure
        self.snapshots = torch.empty(len(kept), len(state.theta))
        self.buffers = torch.empty(len(kept), len(state.statistics))
        self.health: Health = {"train_loss": [], measure: [], "displacement": []}
        self._last = state.theta.clone()
        self._filled = 0
        self._keep(0, state)

    def record(self, epoch: int, state: ExpertState, loss: float, tested: float | None) -> None:
        """Record state, mean loss and test result (or None) of an epoch; the first epoch is 1."""
        moved = (state.theta - self._last).norm(dtype=torch.float64).item()
        self.health["train_loss"].append(loss)
        self.health[self._measure].append(tested)
        self.health["displacement"].append(moved)
        self._last.copy_(state.theta)
        self._keep(epoch, state)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save in a checkpoint, by name."""
        return {
            "snapshots": self.snapshots[: self._filled],
            "buffers": self.buffers[: self._filled],
            "last": self._last,
        }

    def restore(self, health: Health) -> None:
        """Set the health and the number of filled rows; the caller then fills :meth:`tensors`."""
        self.health = health
        epochs = len(health["train_loss"])
        self._filled = sum(epoch <= epochs for epoch in self._kept)

    def _keep(self, epoch: int, state: ExpertState) -> None:
        # Epochs arrive in ascending order, so only the next kept epoch can match.
        if self._filled < len(self._kept) and self._kept[self._filled] == epoch:
            self.snapshots[self._filled] = state.theta
            self.buffers[self._filled] = state.statistics
            self._filled += 1


class Description(msgspec.Struct, tag_field="format", tag="trajmatch expert checkpoint"):
    """Metadata of a checkpoint file."""

    store: str
    expert: Count
    place: Place
    health: Health
    format_version: Literal[1] = 1


class Training(NamedTuple):
    """Expert in training; ``total``, float64, is its loss summed over the images of this epoch."""

    expert: int
    state: ExpertState
    recorder: Recorder
    total: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Tensors to save in a checkpoint, by name."""
        return {**self.state.tensors(), **self.recorder.tensors(), "total": self.total}


class Checkpoints:
    """Reader and writer of a store's checkpoints; writes are at least ``every`` seconds apart."""

    def __init__(self, store: Store, every: float) -> None:
        self._store, self._every, self._due = store, every, time.monotonic() + every

    def place(self, expert: int) -> Place:
        """Return an expert's progress: from its checkpoint, else from its file, else (0, 0)."""
        path = self._store.checkpoint_path(expert)
        if not path.exists():
            return Place(self._store.epochs_of(expert), 0)
        return _described(self._store, expert, files.read_metadata(path)).place

    def restore(self, training: Training) -> None:
        """Restore an expert from its checkpoint, else from its file; without either, do nothing."""
        store, expert = self._store, training.expert
        if store.checkpoint_path(expert).exists():
            tensors, description = files.load_tensors(store.checkpoint_path(expert))
            health = _described(store, expert, description).health
        elif store.epochs_of(expert):
            # An earlier run stopped at --until-epoch; continue from the state in the expert's file.
            # It has no `last` and no `total`, and `buffers` only for networks that have buffers.
            tensors, _ = files.load_tensors(store.expert_path(expert))
            rows = tensors["snapshots"].float()
            empty = {"buffers": rows[:, :0], "last": tensors["theta"], "total": training.total}
            tensors = {**empty, **tensors, "snapshots": rows}
            health = {name: store.metrics(expert)[name] for name in training.recorder.health}
        else:
            return
        # First the recorder: it sets the length of the tensors that are filled below.
        training.recorder.restore(health)
        for name, memory in training.tensors.items():
            value = tensors.get(name)
            if value is None or (value.shape, value.dtype) != (memory.shape, memory.dtype):
                kind = f"shape {list(memory.shape)} and dtype {memory.dtype}"
                raise _misfit(store, expert, f"its {name} does not have the {kind} of this run")
            with torch.no_grad():
                memory.copy_(value)

    def visit(self, place: Place, group: Sequence[Training]) -> None:
        """Write the group's checkpoints when due; on a stop, write them and raise Interrupted."""
        try:
            interruption.check()
        except interruption.Interrupted as stop:
            self._write(place, group)
            stop.kept = (
                f"{self._store.path} has {self._store.num_experts - len(self._store.missing())} of "
                f"{self._store.num_experts} experts and a checkpoint of those in training"
            )
            raise
        began = time.monotonic()
        if began >= self._due:
            self._write(place, group)
            ended = time.monotonic()
            # Slow writes are postponed, so that they take at most _SHARE of the time.
            self._due = ended + max(self._every, (ended - began) / _SHARE)

    def _write(self, place: Place, group: Sequence[Training]) -> None:
        for each in group:
            path = self._store.checkpoint_path(each.expert)
            found = Description(self._store.identity, each.expert, place, each.recorder.health)
            # NaN is allowed here: divergence is reported at the end of the epoch.
            content = msgspec.to_builtins(found)
            files.save_tensors(path, each.tensors, content, allow_nonfinite=True)


def _described(store: Store, expert: int, content: dict[str, Any]) -> Description:
    """Convert a checkpoint's metadata; raise UserError unless they fit the store and expert."""
    place = f"{store.checkpoint_path(expert)} cannot be used"
    found = convert(content, Description, place, _ADVICE.format(expert))
    epoch, lengths = found.place.epoch, {name: len(each) for name, each in found.health.items()}
    # Health has one value for each finished epoch. A loss is never None, a test result may be.
    wanted = dict.fromkeys(("train_loss", measure_of(store.loss), "displacement"), epoch)
    if (found.store, found.expert) != (store.identity, expert):
        raise _misfit(store, expert, "it belongs to another store or to another expert")
    if epoch >= store.course or lengths != wanted or None in found.health["train_loss"]:
        cause = "it does not have loss, test result and displacement for each epoch"
        raise _misfit(store, expert, cause)
    return found


def _misfit(store: Store, expert: int, cause: str) -> UserError:
    advice = _ADVICE.format(expert)
    return UserError(f"{store.checkpoint_path(expert)} cannot be used: {cause}{advice}")
