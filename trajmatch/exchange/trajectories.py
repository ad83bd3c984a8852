"""Experts of the papers' scripts, ``replay_buffer_*.pt``: conversion to a store and back.

A file is a list of experts; an expert is a list of snapshots (epoch 0 is the initialisation); a
snapshot is the list of parameters, in the order of ``model.parameters()``, without buffers.
"""

import itertools
import re
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
from trajmatch.errors import UserError, as_user_error, warn
from trajmatch.exchange import torch_files
from trajmatch.exchange.config import ConvertConfig
from trajmatch.exchange.origin import find_origin
from trajmatch.experts.config import kept_epochs
from trajmatch.experts.store import Store
from trajmatch.inference import accuracy
from trajmatch.progress import ProgressLike

_NAME = re.compile(r"replay_buffer_(\d+)\.pt")
#: Types whose numbers are all exact in float32, the type of expert stores.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Experts -> snapshots -> parameter tensors.
_Content = Annotated[list[Annotated[list[list[Any]], Meta(min_length=2)]], Meta(min_length=1)]
#: Approximate number of test images for the check of network and preprocessing.
_TESTED = 2000
#: Margin above chance that an expert's accuracy should have, in percentage points.
_ABOVE_CHANCE = 5.0
_REFERENCES = (
    "which happens when MTT's script runs on a CPU (it keeps references, not copies); make them "
    "again with `trajmatch expert`"
)


def find_trajectories(source: Path) -> list[Path]:
    """Return the trajectory files in a folder or at a path, sorted by number."""
    with readable(str(source)):
        candidates = [*source.iterdir()] if source.is_dir() else [source]
    found = [(match, path) for path in candidates if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda each: int(each[0][1]))]


def to_store(config: ConvertConfig, paths: list[Path], progress: ProgressLike) -> str:
    """Convert trajectory files to a store of experts; return a summary sentence."""
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
    # First pass: check the structure of all files before anything is written.
    lengths = [len(each) for path in paths for each in read_trajectories(path, shapes)]
    experts, epochs, dataset = len(lengths), lengths[0] - 1, origin.dataset
    if len({*lengths}) > 1:
        raise UserError(
            f"{config.source} has experts of {', '.join(map(str, sorted({*lengths})))} snapshots; "
            "convert experts of different lengths to separate stores"
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
        "seed": None,  # not in the files
        "num_experts": experts,
        "dtype": "float32",
        "snapshots": kept,
    }
    measured, done = 0.0, 0
    with files.whole_folder(config.out) as folder:
        store = Store.create(folder, manifest, dataset.zca)
        # Second pass: one expert at a time in memory, as ``rows [S, P]``.
        for number, path in enumerate(paths, start=1):
            for place, trajectory in enumerate(read_trajectories(path, shapes)):
                rows = _rows(trajectory, path, place)
                if done == 0:  # a low accuracy reveals wrong flags; one expert is enough
                    networks.load_flat_parameters(model, rows[-1])
                    some = slice(None, None, max(1, len(dataset.test_labels) // _TESTED))
                    images, labels = dataset.test_images[some], dataset.test_labels[some]
                    measured = accuracy(model, images, labels, normalise=dataset.normalise)
                # Record, as `trajmatch expert` does, how far the parameters move in each epoch.
                moved = [step.norm(dtype=torch.float64).item() for step in rows.diff(dim=0)]
                store.write_expert(done, rows[kept], {"displacement": moved})
                done += 1
            progress.update(number)
    chance = 100 / dataset.num_classes
    if measured < chance + _ABOVE_CHANCE:
        warn(
            f"expert 0 has a test accuracy of {measured:.1f} % after its last epoch, hardly above "
            f"chance ({chance:.1f} %): --network, --preprocessing or --data probably differ from "
            "those used in training"
        )
    return (
        f"{config.out}: {experts} experts of {epochs} epochs; the first gets {measured:.1f} % "
        "of the test images right"
    )


def read_trajectories(path: Path, shapes: Mapping[str, torch.Size]) -> list[list[list[Tensor]]]:
    """Read a file of trajectories as nested lists: experts, then snapshots, then tensors.

    The tensors are memory-mapped. Raises UserError for the first tensor that does not match
    ``shapes``.
    """
    size = 0
    nested = "experts, each a list of two or more snapshots, each a list of tensors"
    with as_user_error(f"{path} is not a list of {nested}: ", msgspec.ValidationError):
        trajectories = msgspec.convert(torch_files.load(path), _Content)
    for number, trajectory in enumerate(trajectories):
        for epoch, snapshot in enumerate(trajectory):
            place = f"{path}, expert {number}, epoch {epoch}"
            _check_snapshot(snapshot, shapes, place)
            size += sum(tensor.nbytes for tensor in snapshot)
            # If the tensors have more bytes than the file, some of them share memory.
            if size > path.stat().st_size:
                raise UserError(f"{place}: snapshots share memory, {_REFERENCES}")
    return trajectories


def _check_snapshot(snapshot: list[Any], shapes: Mapping[str, torch.Size], place: str) -> None:
    """Raise UserError unless a snapshot has the parameters of the network."""
    if len(snapshot) > len(shapes):
        raise UserError(
            f"{place} has {len(snapshot)} tensors, but the network has {len(shapes)} parameters; "
            "give the --network that the experts were trained with"
        )
    pairs: Any = itertools.zip_longest(snapshot, shapes.items())
    for number, (tensor, (name, shape)) in enumerate(pairs, start=1):
        is_tensor = isinstance(tensor, Tensor)
        if not is_tensor or tensor.shape != shape or tensor.dtype not in _DTYPES:
            have = f"{[*tensor.shape]} of {tensor.dtype}" if is_tensor else "none"
            raise UserError(
                f"{place}: tensor {number} should be {name} of the network, {[*shape]} of float32 "
                f"(or a smaller type), but is {have}; give the --network and --data that the "
                "experts were trained with, and convert larger types to float32"
            )


def _rows(trajectory: list[list[Tensor]], path: Path, expert: int) -> Tensor:
    """Copy an expert's snapshots to ``[S, P]``, float32; check that they are finite and differ."""
    flat = [torch.cat([each.detach().reshape(-1) for each in snapshot]) for snapshot in trajectory]
    rows = torch.stack(flat).float()
    finite = rows.isfinite().all(dim=1).tolist()
    if not all(finite):
        raise UserError(
            f"{path}: expert {expert} diverged: its parameters after epoch {finite.index(False)} "
            "are not all finite; leave the file out"
        )
    # Snapshots that are references to the model's parameters all have the final values.
    if (rows == rows[0]).all():
        raise UserError(
            f"{path}: all {len(rows)} snapshots of expert {expert} are the same, {_REFERENCES}"
        )
    return rows


def from_store(config: ConvertConfig) -> str:
    """Convert a store of experts to trajectory files; return a summary sentence.

    Epochs after a gap are left out with a warning. Raises UserError if epoch 0 or 1 is missing.
    """
    store, per_file = Store.open(config.source), config.per_file
    kept = store.snapshots_kept
    # The position in a list is the epoch: take the epochs 0, 1, 2, ... up to the first gap.
    epochs = [epoch for place, epoch in enumerate(kept) if epoch == place]
    if len(epochs) < 2:
        raise UserError(
            f"{store.path} keeps the epochs {', '.join(map(str, kept[:3]))}, ..., but trajectories "
            "of the papers' scripts begin with the epochs 0 and 1; train experts that keep them "
            "(--keep)"
        )
    if store.buffers(0, kept[0]) is not None:
        warn(
            "trajectory files cannot hold the running statistics of batch norm; those of "
            f"{config.source} are left out"
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
        warn(
            f"{config.source} has gaps between its epochs; epochs from {left_out[0]} on are left "
            "out, because in trajectory files the position of a snapshot is its epoch"
        )
    made = "1 file" if len(starts) == 1 else f"{len(starts)} files"
    return f"{config.out}: {store.num_experts} experts in {made} replay_buffer_*.pt"


def _parameters(theta: Tensor, shapes: Mapping[str, torch.Size]) -> list[Tensor]:
    """Return the parameters in a flat vector, each as a tensor with its own memory."""
    return [part.clone() for part in networks.split(theta, shapes).values()]
