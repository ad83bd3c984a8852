"""Distilled sets of the papers' scripts: ``images_*.pt``, ``labels_*.pt`` and ``lr_*.pt``.

Each holds one tensor: the images as trained, normalised or whitened; class indices (MTT, FTD) or
target logits (DATM); and the learned step size, which MTT's script leaves out.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trajmatch.artifact import Artifact, current_versions, log_probabilities
from trajmatch.errors import UserError
from trajmatch.exchange import pickles
from trajmatch.exchange.config import ConvertConfig
from trajmatch.exchange.origin import Origin

_IMAGES, _LABELS, _LR = "images", "labels", "lr"
#: What the scripts write beside the images of a whitened set, to look at.
_FOR_LOOKING = "images_zca"


class SetFiles(NamedTuple):
    """The files of one set; the last is None where there is none."""

    images: Path
    labels: Path
    lr: Path | None


def find_set(source: Path) -> SetFiles | None:
    """The files of a distilled set that a path stands for.

    Args:
        source: The images, or the folder of one set.

    Returns:
        The files; None where there are no images.

    Raises:
        UserError: The labels are missing, the images are a copy to look at, or there are several
            sets in the folder.
    """
    if source.is_dir():
        found = sorted(
            path for path in source.glob(f"{_IMAGES}*.pt") if not path.name.startswith(_FOR_LOOKING)
        )
        if len(found) > 1:
            raise UserError(
                f"{source} holds several sets ({', '.join(path.name for path in found[:4])}); "
                "give the path of the images wanted"
            )
        if not found:
            return None
        source = found[0]
    if not (source.name.startswith(_IMAGES) and source.suffix == ".pt"):
        return None
    if source.name.startswith(_FOR_LOOKING):
        raise UserError(
            f"{source} is a copy to look at, with the whitening undone; give the images that were "
            f"trained, {source.name.replace(_FOR_LOOKING, _IMAGES)}"
        )
    labels, lr = (source.with_name(name + source.name[len(_IMAGES) :]) for name in (_LABELS, _LR))
    if not labels.is_file():
        raise UserError(f"{source} has no labels beside it; put them there as {labels.name}")
    return SetFiles(source, labels, lr if lr.is_file() else None)


def lacking(found: SetFiles, config: ConvertConfig) -> list[str]:
    """What neither the files of a set nor the flags say.

    Args:
        found: The files.
        config: ``lr`` and ``labels`` are looked at.

    Returns:
        The flags, each with what it says.

    Raises:
        UserError: The labels cannot be read.
    """
    flags = []
    if found.lr is None and config.lr is None:
        name = found.images.name.replace(_IMAGES, _LR, 1)
        flags.append(f"--lr (eta, the learned step size, since there is no {name})")
    if config.labels is None and _tensor(found.labels).is_floating_point():
        flags.append(
            "--labels (what those of floating point are: logit, as DATM's, or probability)"
        )
    return flags


def read_set(found: SetFiles, origin: Origin, config: ConvertConfig) -> Artifact:
    """Reads a distilled set.

    Args:
        found: Its files.
        origin: What they do not say.
        config: ``lr`` and ``labels`` are used; nothing is :func:`lacking`.

    Returns:
        The set as one object, its numbers as they were in the files.

    Raises:
        UserError: A file cannot be used, or does not fit what is said of it.
    """
    images, labels = (_tensor(path) for path in (found.images, found.labels))
    lr = _step_size(found, config.lr)
    zca = origin.dataset.zca
    count, classes = len(images) if images.ndim else 0, origin.dataset.num_classes
    if count == 0 or count % classes:
        raise UserError(
            f"{found.images} holds {count} images, which is no multiple of the {classes} classes "
            f"of {origin.dataset.name}; give the --data that they were made from"
        )
    kind, labels = _labels(found.labels, labels, config.labels)
    if images.is_floating_point():
        images = _single(found.images, images)
    try:
        return Artifact(
            images=images,
            labels=labels,
            label_kind=kind,
            lr=lr,
            mean=origin.dataset.mean,
            std=origin.dataset.std,
            zca=zca,
            dsa=origin.dsa,
            network=origin.network,
            class_names=origin.dataset.class_names,
            dataset_name=origin.dataset.name,
            dataset_fingerprint=origin.dataset.fingerprint,
            ipc=count // classes,
            recipe={"converted_from": _IMAGES, "recipe": config.recipe},
            seed=0,
            versions=current_versions(),
        )
    except UserError as error:
        raise UserError(
            f"{found.images} and {found.labels.name} cannot be used: {error}"
        ) from error


def write_set(distilled: Artifact, folder: Path) -> None:
    """Writes a distilled set as the papers' scripts read it.

    Args:
        distilled: The set.
        folder: Where to write ``images.pt``, ``labels.pt`` and ``lr.pt``.

    Raises:
        UserError: A file cannot be written.
    """
    pickles.save(folder / f"{_IMAGES}.pt", distilled.images)
    pickles.save(folder / f"{_LABELS}.pt", distilled.labels)
    single = torch.tensor(distilled.lr, dtype=torch.float32)
    double = torch.tensor(distilled.lr, dtype=torch.float64)
    # The scripts write float32, which does not have every step size.
    pickles.save(folder / f"{_LR}.pt", single if single.item() == distilled.lr else double)


def _tensor(path: Path) -> Tensor:
    content = pickles.load(path)
    if not isinstance(content, Tensor):
        raise UserError(f"{path} should hold one tensor, but holds a {type(content).__name__}")
    # A tensor can claim any size over numbers that it repeats.
    if content.nbytes > path.stat().st_size:
        raise UserError(
            f"{path} is damaged: its tensor {list(content.shape)} is larger than the file"
        )
    return content.detach().clone(memory_format=torch.contiguous_format)


def _step_size(found: SetFiles, given: float | None) -> float:
    if found.lr is None:
        assert given is not None  # else it is lacking
        return given
    if given is not None:
        raise UserError(f"{found.lr} has the learned step size; leave out --lr")
    content = pickles.load(found.lr)
    value = content.item() if isinstance(content, Tensor) and content.numel() == 1 else content
    if not isinstance(value, float) or not (math.isfinite(value) and value > 0):
        raise UserError(
            f"{found.lr} should hold the learned step size, a positive number, but holds "
            f"{_briefly(value)}"
        )
    return value


def _labels(path: Path, labels: Tensor, kind: str | None) -> tuple[Any, Tensor]:
    """Return the kind of an artifact's labels, and the labels as it keeps them."""
    if not labels.is_floating_point():
        if kind is not None:
            raise UserError(f"{path} holds class indices ({labels.dtype}); leave out --labels")
        column = labels.ndim == 2 and labels.shape[1] == 1
        return "index", (labels[:, 0] if column else labels).to(torch.int64)
    if kind == "probability":
        return "logit", log_probabilities(labels)
    return "logit", _single(path, labels)


def _single(path: Path, tensor: Tensor) -> Tensor:
    """The tensor as float32, with a warning where that rounds."""
    single = tensor.float()
    if single.isfinite().all() and not torch.equal(single.to(tensor.dtype), tensor):
        warnings.warn(
            f"{path} holds numbers of {tensor.dtype}, which are rounded to float32", stacklevel=2
        )
    return single


def _briefly(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    return repr(value) if isinstance(value, int | float | str) else f"a {type(value).__name__}"
