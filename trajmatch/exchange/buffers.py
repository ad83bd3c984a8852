"""Trajectories of the papers' scripts, ``replay_buffer_*.pt``, in and out.

A file is a list of experts, each a list of snapshots (epoch 0 is the initialisation), each the list
of the network's parameters in the order of ``model.parameters()``. Nothing else is in it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trajmatch import networks
from trajmatch.data.reading import readable
from trajmatch.errors import UserError
from trajmatch.exchange import pickles
from trajmatch.experts.store import Store

_NAME = re.compile(r"replay_buffer_(\d+)\.pt")

#: Every number of these is one of float32, which stores are made of.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def find_buffers(source: Path) -> list[Path]:
    """The files of trajectories that a path stands for, in the order of their numbers.

    Args:
        source: One file, or the folder of several.

    Returns:
        The files; empty where there is none.

    Raises:
        UserError: The folder cannot be read.
    """
    with readable(str(source)):
        candidates = [*source.iterdir()] if source.is_dir() else [source]
    matches = [(match, path) for path in candidates if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(matches, key=lambda found: int(found[0][1]))]


class Buffer:
    """One file of trajectories, checked against the network that they are said to be of.

    Args:
        path: The file.
        spec: ``spec()`` of the network.

    Raises:
        UserError: The file cannot be used; the first thing that does not fit is named.
    """

    def __init__(self, path: Path, spec: dict[str, Any]) -> None:
        """Reads the structure, and no tensor; see the class."""
        self.path = path
        self._parameters = _parameters(spec)
        self._trajectories = self._checked(pickles.load(path), spec["name"])

    @property
    def lengths(self) -> list[int]:
        """Snapshots of each expert."""
        return [len(trajectory) for trajectory in self._trajectories]

    def trajectories(self) -> Iterator[Tensor]:
        """The experts, one at a time.

        Yields:
            Flat parameters after each epoch. ``[S, P]``, float32, in memory of its own.

        Raises:
            UserError: A value is not finite, or all snapshots of an expert are the same.
        """
        for number, trajectory in enumerate(self._trajectories):
            rows = torch.stack([_flat(snapshot) for snapshot in trajectory])
            bad = (~rows.isfinite().all(dim=1)).nonzero()
            if len(bad):
                raise UserError(
                    f"{self.path}: expert {number} diverged: its parameters after epoch "
                    f"{int(bad[0])} are not all finite; leave the file out"
                )
            if (rows == rows[0]).all():
                raise UserError(
                    f"{self.path}: all {len(rows)} snapshots of expert {number} are the same, as "
                    "MTT's script leaves them when it runs on a CPU (it keeps references, not "
                    "copies); make them again with `trajmatch expert`"
                )
            yield rows

    def _checked(self, content: Any, network: str) -> list[list[list[Tensor]]]:
        """The content, if it is experts of snapshots of parameters of the right shapes."""
        trajectories = _list_of(content, str(self.path), "experts")
        numbers = 0
        for i, trajectory in enumerate(trajectories):
            where = f"{self.path}, expert {i}"
            for epoch, snapshot in enumerate(_list_of(trajectory, where, "snapshots", least=2)):
                self._check_snapshot(snapshot, f"{where}, epoch {epoch}", network)
                numbers += sum(tensor.nbytes for tensor in snapshot)
                # Each number of a file is one number in memory, unless tensors share it.
                if numbers > self.path.stat().st_size:
                    raise UserError(
                        f"{where}, epoch {epoch}: snapshots share their numbers with each other, "
                        "as MTT's script leaves them when it runs on a CPU (it keeps references, "
                        "not copies); make them again with `trajmatch expert`"
                    )
        return trajectories

    def _check_snapshot(self, snapshot: Any, where: str, network: str) -> None:
        tensors = _list_of(snapshot, where, "tensors")
        for number, (tensor, wanted) in enumerate(
            itertools.zip_longest(tensors, self._parameters), start=1
        ):
            name, shape = wanted if wanted else ("no parameter", None)
            have = list(tensor.shape) if isinstance(tensor, Tensor) else None
            if have != shape:
                raise UserError(
                    f"{where}: tensor {number} should be {name} of {network}, "
                    f"{_as_shape(shape)}, but is {_as_shape(have)}; give the --network and --data "
                    "that the experts were trained with"
                )
            if tensor.dtype not in _DTYPES:
                raise UserError(
                    f"{where}: tensor {number} ({name}) is {tensor.dtype}, which float32 cannot "
                    "hold to the bit; convert it to float32 first"
                )


def write_buffers(store: Store, folder: Path, per_file: int) -> list[int]:
    """Writes the experts of a store as the papers' scripts read them.

    Args:
        store: The experts; the epochs that are kept without a gap from the first are written.
        folder: Where to write ``replay_buffer_0.pt`` and its successors.
        per_file: Experts in a file; the last file may have fewer.

    Returns:
        The epochs kept that are left out, because the place in a list is the epoch.

    Raises:
        UserError: The store does not keep epoch 0 and epoch 1, or a file cannot be written.
    """
    kept = store.snapshots_kept
    epochs = [epoch for place, epoch in enumerate(kept) if epoch == place]
    if len(epochs) < 2:
        raise UserError(
            f"{store.path} keeps the epochs {', '.join(map(str, kept[:3]))}, ..., but trajectories "
            "of the papers' scripts begin with the epochs 0 and 1; train experts that keep them "
            "(--keep)"
        )
    parameters = _parameters(store.manifest["network"])
    experts = range(store.num_experts)
    for number, first in enumerate(range(0, store.num_experts, per_file)):
        trajectories = [
            [_split(store.snapshot(expert, epoch), parameters) for epoch in epochs]
            for expert in experts[first : first + per_file]
        ]
        pickles.save(folder / f"replay_buffer_{number}.pt", trajectories)
    return kept[len(epochs) :]


def _parameters(spec: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """Names and shapes of a network's parameters, in order."""
    try:
        # A network from elsewhere may do what cannot be done without memory.
        with (
            contextlib.nullcontext() if networks.is_external(spec["name"]) else torch.device("meta")
        ):
            model = networks.build(spec)
    except ValueError as error:
        raise UserError(f"the network {spec} cannot be built: {error}") from error
    return [(name, list(parameter.shape)) for name, parameter in model.named_parameters()]


def _flat(snapshot: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1).float() for tensor in snapshot])


def _split(theta: Tensor, parameters: Sequence[tuple[str, list[int]]]) -> list[Tensor]:
    """The parameters of a flat vector, each in memory of its own."""
    sizes = [math.prod(shape) for _, shape in parameters]
    if sum(sizes) != len(theta):
        raise UserError(
            f"the network of the store has {sum(sizes)} parameters, but its snapshots have "
            f"{len(theta)}; make the store again"
        )
    parts = theta.split(sizes)
    return [part.reshape(shape).clone() for part, (_, shape) in zip(parts, parameters, strict=True)]


def _list_of(content: Any, where: str, what: str, least: int = 1) -> list[Any]:
    if not isinstance(content, list | tuple) or len(content) < least:
        have = f"{len(content)}" if isinstance(content, list | tuple) else type(content).__name__
        raise UserError(
            f"{where} should be a list of {least} or more {what}, but is {have}; a file of "
            "trajectories is a list of experts, each a list of snapshots, each a list of tensors"
        )
    return list(content)


def _as_shape(shape: list[int] | None) -> str:
    return "nothing" if shape is None else str(shape)
