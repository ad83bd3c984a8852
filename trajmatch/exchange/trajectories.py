"""Experts: files of trajectories to a store, and back."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trajmatch import networks
from trajmatch.data.identity import describe_dataset
from trajmatch.data.sources import absolute_uri
from trajmatch.errors import UserError
from trajmatch.exchange.buffers import Buffer, write_buffers
from trajmatch.exchange.config import PER_FILE, ConvertConfig
from trajmatch.exchange.origin import Origin, find_origin
from trajmatch.exchange.whole import whole_folder
from trajmatch.experts.config import kept_epochs
from trajmatch.experts.store import Store
from trajmatch.inference import accuracy
from trajmatch.progress import ProgressLike

#: Test images that tell whether experts were given the right network and preprocessing.
_TESTED = 2000
#: An expert that beats guessing by fewer percent than this was most likely given wrong ones.
_ABOVE_CHANCE = 5.0


def to_store(config: ConvertConfig, buffers: list[Path], progress: ProgressLike) -> str:
    """Makes a store of experts of files of trajectories.

    Args:
        config: What the files do not say, and where to write.
        buffers: The files.
        progress: Told how many of them are done.

    Returns:
        What was made, in a sentence.

    Raises:
        UserError: A file cannot be used, or does not fit what is said of it.
    """
    origin = find_origin(config)
    _check_student(origin.network)
    experts, length = _count(buffers, origin.network)
    epochs = length - 1
    kept = kept_epochs(config.keep or "all", epochs)
    manifest = _manifest(origin, experts, epochs, kept)
    measured = 0.0
    with whole_folder(config.out) as folder:
        store = Store.create(folder, manifest, origin.dataset.zca)
        done = 0
        for number, path in enumerate(buffers, start=1):
            for snapshots in Buffer(path, origin.network).trajectories():
                if done == 0:
                    measured = _test(origin, snapshots[-1])
                store.write_expert(
                    done, snapshots[kept], {"displacement": _displacement(snapshots)}
                )
                done += 1
            progress.update(number)
    chance = 100 / origin.dataset.num_classes
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


def _count(buffers: list[Path], network: dict[str, Any]) -> tuple[int, int]:
    """Experts in all of the files, and snapshots of each expert."""
    lengths = [
        (path, number, length)
        for path in buffers
        for number, length in enumerate(Buffer(path, network).lengths)
    ]
    first = lengths[0][2]
    for path, number, length in lengths:
        if length != first:
            raise UserError(
                f"{path}: expert {number} has {length} snapshots, but the first one of "
                f"{buffers[0].name} has {first}; convert files of other lengths to a store of "
                "their own"
            )
    return len(lengths), first


def _check_student(spec: dict[str, Any]) -> None:
    model = networks.build_student(spec)
    try:
        networks.check_student(model)
    except ValueError as error:
        raise UserError(str(error)) from error
    if networks.num_buffers(model):
        raise UserError(
            f"{spec['name']} with batch norm has running statistics, which files of trajectories "
            "lack, and without which an expert cannot be tested; train experts with `trajmatch "
            "expert`"
        )


def _manifest(origin: Origin, experts: int, epochs: int, kept: list[int]) -> dict[str, Any]:
    dataset = origin.dataset
    return {
        "data": absolute_uri(origin.data),
        "dataset": describe_dataset(dataset),
        "holdout": {"fraction": 0.0, "seed": 0, "training_fingerprint": dataset.fingerprint},
        "preprocessing": origin.preprocessing.spec(),
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


def _test(origin: Origin, theta: Tensor) -> float:
    """Accuracy of an expert on some of the test images, in percent."""
    model = networks.build(origin.network)
    networks.load_flat_parameters(model, theta)
    dataset = origin.dataset
    every = max(1, len(dataset.test_labels) // _TESTED)
    images = dataset.normalise(dataset.test_images[::every])
    return accuracy(model, images, dataset.test_labels[::every])


def _displacement(snapshots: Tensor) -> list[float]:
    """How far the parameters moved in each epoch, as training records it."""
    steps = itertools.pairwise(snapshots)
    return [(end - start).norm(dtype=torch.float64).item() for start, end in steps]


def from_store(config: ConvertConfig) -> str:
    """Makes files of trajectories of a store of experts.

    Args:
        config: The store, and where to write.

    Returns:
        What was made, in a sentence.

    Raises:
        UserError: The store cannot be used, or nothing can be written.
    """
    store = Store.open(config.source)
    if store.buffers(0, store.snapshots_kept[0]) is not None:
        warnings.warn(
            f"files of trajectories have no place for the running statistics of batch norm that "
            f"{config.source} keeps; they are left out",
            stacklevel=2,
        )
    per_file = config.per_file or PER_FILE
    with whole_folder(config.out) as folder:
        left_out = write_buffers(store, folder, per_file)
    if left_out:
        warnings.warn(
            f"{config.source} keeps epochs with a gap before them ({left_out[0]} is the first); "
            "they are left out, because the place in a list of snapshots is the epoch",
            stacklevel=2,
        )
    count = -(-store.num_experts // per_file)
    files = "1 file" if count == 1 else f"{count} files"
    return f"{config.out}: {store.num_experts} experts in {files} replay_buffer_*.pt"
