"""Experts of the papers' scripts, ``replay_buffer_*.pt``: to a store, and back.

A file is a list of experts, each a list of snapshots (epoch 0 is the initialisation), each the list
of the network's parameters in the order of ``model.parameters()``. Nothing else is in it.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from trajmatch import files, networks
from trajmatch.data.reading import readable
from trajmatch.data.sources import absolute_uri
from trajmatch.errors import UserError, as_user_error
from trajmatch.exchange import torch_files
from trajmatch.exchange.config import ConvertConfig
from trajmatch.exchange.origin import find_origin
from trajmatch.experts.config import kept_epochs
from trajmatch.experts.store import Store
from trajmatch.inference import accuracy
from trajmatch.progress import ProgressLike

_NAME = re.compile(r"replay_buffer_(\d+)\.pt")
#: Every number of these is one of float32, which stores are made of.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Experts, each snapshots, each the tensors of the parameters.
_Content = Annotated[list[Annotated[list[list[Any]], Meta(min_length=2)]], Meta(min_length=1)]
#: Test images that tell if experts were given the right network and preprocessing.
_TESTED = 2000
#: An expert that beats guessing by fewer percent than this was most likely given wrong ones.
_ABOVE_CHANCE = 5.0
_REFERENCES = (
    "as MTT's script leaves them when it runs on a CPU (it keeps references, not copies); make "
    "them again with `trajmatch expert`"
)


def find_trajectories(source: Path) -> list[Path]:
    """List the files of trajectories in a folder, or of one path, in the order of their numbers.

    Raises:
        UserError: The folder cannot be read.
    """
    with readable(str(source)):
        candidates = [*source.iterdir()] if source.is_dir() else [source]
    found = [(match, path) for path in candidates if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda each: int(each[0][1]))]


def to_store(config: ConvertConfig, paths: list[Path], progress: ProgressLike) -> str:
    """Make a store of experts of files of trajectories.

    Args:
        config: What the files do not say, and where to write.
        paths: The files.
        progress: Called with the number of files that are done.

    Returns:
        A sentence that says what was made.

    Raises:
        UserError: A file cannot be used, or does not fit what is said of it.
    """
    origin = find_origin(config)
    with as_user_error(f"the network {origin.network} cannot be used: "):
        model = networks.build_student(origin.network)
        networks.check_student(model)
    if networks.num_buffers(model):
        raise UserError(
            f"{origin.network['name']} with batch norm has running statistics, which files of "
            "trajectories lack, and without which an expert cannot be tested; train experts with "
            "`trajmatch expert`"
        )
    shapes = networks.parameter_shapes(model)
    lengths = [len(each) for path in paths for each in read_trajectories(path, shapes)]
    experts, epochs, dataset = len(lengths), lengths[0] - 1, origin.dataset
    if len({*lengths}) > 1:
        raise UserError(
            f"{config.source} has experts of {', '.join(map(str, sorted({*lengths})))} snapshots; "
            "convert files of other lengths to a store of their own"
        )
    kept = kept_epochs(config.keep or "all", epochs)
    manifest = {
        "data": absolute_uri(config.data),
        "dataset": dataset.description,
        "holdout": {"fraction": 0.0, "seed": 0, "training_fingerprint": dataset.fingerprint},
        "preprocessing": dataset.preprocessing.spec(),
        "network": origin.network,
        "recipe": {
            **origin.recipe,
            "epochs": epochs,
            "dsa": origin.dsa,
            "converted_from": "replay_buffer",
        },
        "seed": None,  # the files do not say
        "num_experts": experts,
        "dtype": "float32",
        "snapshots": kept,
    }
    measured, done = 0.0, 0
    with files.whole_folder(config.out) as folder:
        store = Store.create(folder, manifest, dataset.zca)
        for number, path in enumerate(paths, start=1):
            for place, trajectory in enumerate(read_trajectories(path, shapes)):
                rows = _rows(trajectory, path, place)
                if done == 0:
                    networks.load_flat_parameters(model, rows[-1])
                    some = slice(None, None, max(1, len(dataset.test_labels) // _TESTED))
                    images, labels = dataset.test_images[some], dataset.test_labels[some]
                    measured = accuracy(model, images, labels, normalise=dataset.normalise)
                moved = [
                    (end - start).norm(dtype=torch.float64).item()
                    for start, end in itertools.pairwise(rows)
                ]
                store.write_expert(done, rows[kept], {"displacement": moved})
                done += 1
            progress.update(number)
    chance = 100 / dataset.num_classes
    if measured < chance + _ABOVE_CHANCE:
        warnings.warn(
            f"expert 0 gets {measured:.1f} % of the test images right after its last epoch, hardly "
            f"more than by guessing ({chance:.1f} %): --network, --preprocessing or --data are "
            "most likely not those that it was trained with",
            stacklevel=2,
        )
    return (
        f"{config.out}: {experts} experts of {epochs} epochs; the first gets {measured:.1f} % "
        "of the test images right"
    )


def read_trajectories(path: Path, shapes: Mapping[str, torch.Size]) -> list[list[list[Tensor]]]:
    """Read a file of trajectories and check its structure; no number is read yet.

    Args:
        path: The file.
        shapes: Shapes of the parameters of the network that they are of.

    Returns:
        For each expert, for each of its snapshots, the parameters of the network.

    Raises:
        UserError: The file cannot be used; the first thing that does not fit is named.
    """
    size = 0
    try:
        trajectories = msgspec.convert(torch_files.load(path), _Content)
    except msgspec.ValidationError as error:
        raise UserError(
            f"{path} is not a list of experts, each a list of two or more snapshots, each a list "
            f"of tensors: {error}"
        ) from error
    for number, trajectory in enumerate(trajectories):
        for epoch, snapshot in enumerate(trajectory):
            place = f"{path}, expert {number}, epoch {epoch}"
            _check_snapshot(snapshot, shapes, place)
            size += sum(tensor.nbytes for tensor in snapshot)
            # Each number of a file is one number in memory, unless tensors share it.
            if size > path.stat().st_size:
                raise UserError(
                    f"{place}: snapshots share their numbers with each other, {_REFERENCES}"
                )
    return trajectories


def _check_snapshot(snapshot: list[Any], shapes: Mapping[str, torch.Size], place: str) -> None:
    """Compare a snapshot with the parameters of the network."""
    pairs: Any = itertools.zip_longest(snapshot, shapes.items(), fillvalue=("no parameter", ()))
    for number, (tensor, (name, shape)) in enumerate(pairs, start=1):
        is_tensor = isinstance(tensor, Tensor)
        if not is_tensor or tensor.shape != shape or tensor.dtype not in _DTYPES:
            have = f"{[*tensor.shape]} of {tensor.dtype}" if is_tensor else "none"
            raise UserError(
                f"{place}: tensor {number} should be {name} of the network, {[*shape]} of float32 "
                f"(or a smaller type), but is {have}; give the --network and --data that the "
                "experts were trained with, and convert larger types"
            )


def _rows(trajectory: list[list[Tensor]], path: Path, expert: int) -> Tensor:
    """Flatten the snapshots of an expert. ``[S, P]``, float32, in memory of its own."""
    flat = [torch.cat([each.detach().reshape(-1) for each in snapshot]) for snapshot in trajectory]
    rows = torch.stack(flat).float()
    finite = rows.isfinite().all(dim=1).tolist()
    if not all(finite):
        raise UserError(
            f"{path}: expert {expert} diverged: its parameters after epoch {finite.index(False)} "
            "are not all finite; leave the file out"
        )
    if (rows == rows[0]).all():
        raise UserError(
            f"{path}: all {len(rows)} snapshots of expert {expert} are the same, {_REFERENCES}"
        )
    return rows


def from_store(config: ConvertConfig) -> str:
    """Make files of trajectories of a store of experts.

    Epochs behind a gap are left out with a warning, because the place in a list is the epoch.

    Args:
        config: The store, and where to write.

    Returns:
        A sentence that says what was made.

    Raises:
        UserError: The store cannot be used or lacks the epochs 0 or 1, or nothing can be written.
    """
    store, per_file = Store.open(config.source), config.per_file
    kept = store.snapshots_kept
    epochs = [epoch for place, epoch in enumerate(kept) if epoch == place]
    if len(epochs) < 2:
        raise UserError(
            f"{store.path} keeps the epochs {', '.join(map(str, kept[:3]))}, ..., but trajectories "
            "of the papers' scripts begin with the epochs 0 and 1; train experts that keep them "
            "(--keep)"
        )
    if store.buffers(0, kept[0]) is not None:
        warnings.warn(
            f"files of trajectories have no place for the running statistics of batch norm that "
            f"{config.source} keeps; they are left out",
            stacklevel=2,
        )
    shapes = networks.parameter_shapes(networks.build(store.manifest["network"]))
    starts = range(0, store.num_experts, per_file)
    with files.whole_folder(config.out) as folder:
        for number, start in enumerate(starts):
            trajectories = [
                [_parameters(store.snapshot(expert, epoch), shapes) for epoch in epochs]
                for expert in range(start, min(start + per_file, store.num_experts))
            ]
            torch_files.save(folder / f"replay_buffer_{number}.pt", trajectories)
    if left_out := kept[len(epochs) :]:
        warnings.warn(
            f"{config.source} keeps epochs with a gap before them ({left_out[0]} is the first); "
            "they are left out, because the place in a list of snapshots is the epoch",
            stacklevel=2,
        )
    made = "1 file" if len(starts) == 1 else f"{len(starts)} files"
    return f"{config.out}: {store.num_experts} experts in {made} replay_buffer_*.pt"


def _parameters(theta: Tensor, shapes: Mapping[str, torch.Size]) -> list[Tensor]:
    """Split a flat vector into parameters, each in memory of its own."""
    return [part.clone() for part in networks.split(theta, shapes).values()]
