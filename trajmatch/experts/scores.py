"""Difficulty scores of the training images: EL2N of experts, or numbers from the user.

A score file has one tensor, ``scores [n]``, float32, with a score for each training image of the
whole data set, in its order. Higher is harder. The metadata name the data set and the experts.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from trajmatch import files, networks
from trajmatch.data import Dataset
from trajmatch.data.dataset import check_same_data
from trajmatch.data.parts import split_holdout
from trajmatch.device import usable_device
from trajmatch.errors import UserError, as_user_error
from trajmatch.experts.config import ScoreConfig
from trajmatch.experts.manifest import DatasetEntry
from trajmatch.experts.store import Store
from trajmatch.inference import all_logits
from trajmatch.schema import Count, PositiveInt, convert

#: Called with the number of finished experts.
OnExpert = Callable[[int], object]


class Description(msgspec.Struct, tag_field="format", tag="trajmatch scores"):
    """Metadata of a score file: data set, store, number of experts, epoch of their snapshots."""

    data: str | None
    dataset: DatasetEntry
    store: str
    epoch: Count
    experts: PositiveInt
    kind: Literal["el2n"] = "el2n"
    format_version: Literal[1] = 1


class Scores(NamedTuple):
    """Difficulty scores of the training images that are not held out."""

    values: Tensor  # [n], float64, in image order; higher is harder
    fingerprint: str  # SHA-256 of the scores of the whole data set, in hexadecimal


def path_beside(store: Path) -> Path:
    """Return the default path of a store's score file."""
    return files.beside(store, ".scores.safetensors")


def el2n(
    store: Store, dataset: Dataset, epoch: int, experts: int, device: str, on_expert: OnExpert
) -> Tensor:
    """Return the EL2N score (PAD) of every training image. ``[n]``, float32, on the CPU.

    The score ``chi_t(x, y) = E |softmax(f(theta*_t, x)) - onehot(y)|_2`` is a mean over the first
    ``experts`` experts, without augmentation. With targets, it is the mean distance between output
    and target (our extension). Raises UserError if a snapshot is missing or damaged.
    """
    seen = dataset.preprocessed_as(store.manifest["preprocessing"], store.zca)
    images, normalise = seen.preprocessing.staged(dataset.train_images.to(device))
    wanted, regress = dataset.train_answers.to(device), dataset.loss == "mse"
    wanted = wanted if regress else torch.nn.functional.one_hot(wanted, dataset.num_classes)
    model = networks.build(store.manifest["network"]).to(device)
    total = torch.zeros(len(images), dtype=torch.float64, device=device)
    for expert in range(experts):
        store.load_into(model, expert, epoch)
        found = torch.cat([*all_logits(model, images, normalise)]).float()
        total += ((found if regress else found.softmax(1)) - wanted).norm(dim=1)
        on_expert(expert + 1)
    return (total / experts).float().cpu()


def score_images(config: ScoreConfig, on_expert: OnExpert = lambda done: None) -> dict[str, Any]:
    """Write the EL2N scores of a store's data set to a new file.

    Returns ``file``, ``dataset`` (name), ``epoch`` and ``experts`` (number). Raises UserError if
    the file exists or cannot be written, a score is not finite, the store lacks the epoch or the
    experts, or the data set is another one than the store's.
    """
    store, out = Store.open(config.store), config.out or path_beside(config.store)
    if out.exists():
        raise UserError(f"{out} already exists; choose a new file for --out, or remove it")
    experts, epoch = config.experts or store.num_experts, config.epoch
    if experts > store.num_experts:
        raise UserError(f"--experts {experts} is more than {store.path} has: {store.num_experts}")
    if epoch is None:  # the kept epoch nearest to a tenth of the course, but not epoch 0
        distance = {each: abs(each - store.course / 10) for each in store.snapshots_kept if each}
        epoch = min(distance, key=distance.__getitem__, default=1)
    store.check_trained(epoch, f"--epoch {epoch}")
    # Raise before the data are loaded if the store does not keep the epoch.
    store.snapshot(0, epoch)
    dataset, address = store.load_data(config.data)
    store.training_set(dataset, address)  # raises if it is not the store's data set
    files.check_writable(out.parent)
    scores = el2n(store, dataset, epoch, experts, usable_device(config.device), on_expert)
    known = msgspec.convert(dataset.description, DatasetEntry)
    found = Description(store.manifest["data"], known, store.identity, epoch, experts)
    files.save_tensors(out, {"scores": scores}, msgspec.to_builtins(found))
    return {"file": f"{out}", "dataset": dataset.name, "epoch": epoch, "experts": experts}


def read_scores(
    path: files.PathLike,
    dataset: Dataset,
    holdout: tuple[float, int],
    address: str | None = None,
    store: Store | None = None,
) -> Scores:
    """Read the difficulty scores of the training images that are not held out.

    ``path`` is a file of :func:`score_images`, or a ``.npy`` file with one number for each training
    image of the whole data set. ``holdout`` is the fraction and seed of the held-out images. If
    ``store`` is given, a score file must belong to it. ``address`` names the data in messages.
    """
    count, (scores, found) = len(dataset.train_labels), _content(path)
    if found is not None:
        made, known = f"the scores of {path} were computed for", dict(found.dataset)
        check_same_data(made, known, dataset.description, found.data, address)
        if store is not None and found.store != store.identity:
            raise UserError(
                f"{path} was computed with other experts than those in {store.path}; compute the "
                "scores again (`trajmatch score`), or give this file as --scores to use it anyway"
            )
    numbers = scores.dtype.kind in "iuf" and scores.shape == (count,)
    if not (numbers and np.isfinite(scores).all()):
        held = f"an array {list(scores.shape)} of {scores.dtype}"
        if numbers:
            held = f"{np.sum(~np.isfinite(scores))} that are not finite"
        raise UserError(
            f"--scores {path} should hold a finite number for each of the {count} training images "
            f"of {address or dataset.name}, but holds {held}"
        )
    # Little-endian, and before the split: the fingerprint depends on neither machine nor holdout.
    values = scores.astype("<f8")
    kept, _ = split_holdout(dataset.train_labels, dataset.class_names, *holdout)
    return Scores(torch.from_numpy(values)[kept], hashlib.sha256(values.tobytes()).hexdigest())


def _content(path: files.PathLike) -> tuple[np.ndarray[Any, Any], Description | None]:
    """Return the scores in a file, and the metadata if :func:`score_images` wrote the file."""
    if not Path(path).exists():
        raise UserError(
            f"--scores: there is no {path}; `trajmatch score STORE` writes the scores of a store"
        )
    if Path(path).suffix == ".npy":
        # numpy raises many types of error for a damaged file.
        with as_user_error(f"{path} is damaged or not a .npy file: ", Exception):
            return np.lib.format.open_memmap(path, mode="r"), None
    with as_user_error("--scores should be a .npy file or a file from `trajmatch score`: "):
        tensors, metadata = files.load_tensors(path)
    found = convert(metadata, Description, f"{path} is not a file of scores")
    return tensors.get("scores", torch.empty(0)).numpy(), found
