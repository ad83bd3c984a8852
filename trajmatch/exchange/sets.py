"""Distilled sets of the papers' scripts: ``images_*.pt``, ``labels_*.pt`` and ``lr_*.pt``.

Each file holds one tensor: the images as trained (normalised or whitened); the labels, which are
class indices (MTT, FTD) or target logits (DATM); the learned step size (not saved by MTT's script).
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trajmatch import artifact, files
from trajmatch.artifact import Artifact, current_versions, log_probabilities
from trajmatch.errors import UserError, as_user_error, warn
from trajmatch.exchange import torch_files
from trajmatch.exchange.config import ConvertConfig
from trajmatch.exchange.origin import find_origin

#: Name prefix of copies with the whitening undone, which the scripts write for viewing.
_FOR_LOOKING = "images_zca"


def find_images(source: Path) -> Path | None:
    """Return the images file at a path, or the only one in a folder; None if there is none.

    Raises UserError if a folder has several images files, or the file has the whitening undone.
    """
    if source.is_dir():
        found = sorted(
            path for path in source.glob("images*.pt") if not path.name.startswith(_FOR_LOOKING)
        )
        if len(found) > 1:
            raise UserError(
                f"{source} holds several sets ({', '.join(path.name for path in found[:4])}); "
                "give the path of one images file"
            )
        return found[0] if found else None
    if not (source.name.startswith("images") and source.suffix == ".pt"):
        return None
    if source.name.startswith(_FOR_LOOKING):
        raise UserError(
            f"{source} is a copy for viewing, with the whitening undone; give the trained "
            f"images, {source.name.replace(_FOR_LOOKING, 'images')}"
        )
    return source


def to_artifact(config: ConvertConfig, images_file: Path) -> str:
    """Convert an images file, and the labels and step size beside it, to a distilled set."""
    artifact.warn_of_ending(config.out)
    ending = images_file.name.removeprefix("images")
    labels_file, lr_file = (images_file.with_name(kind + ending) for kind in ("labels", "lr"))
    if not labels_file.is_file():
        raise UserError(
            f"{images_file} has no labels beside it; put them there as {labels_file.name}"
        )
    labels = _tensor(labels_file)
    # Collected here, so that find_origin names all missing flags in one message.
    lacking = []
    if config.lr is None and not lr_file.is_file():
        lacking.append(f"--lr (eta, the learned step size, since there is no {lr_file.name})")
    if config.labels is None and labels.is_floating_point():
        lacking.append("--labels (kind of floating-point labels: logit, probability or target)")
    origin = find_origin(config, lacking)
    dataset, images = origin.dataset, _tensor(images_file)
    count, classes = len(images) if images.ndim else 0, dataset.num_classes
    if count == 0 or count % classes:
        raise UserError(
            f"{images_file} holds {count} images, but should hold the same number, at least one, "
            f"for each of the {classes} classes of {dataset.name}; give the --data that they were "
            "made from"
        )
    if (config.labels == "target") != (dataset.loss == "mse"):
        raise UserError("--labels target needs --data with ?targets=NAME, and the other way round")
    lr = _step_size(lr_file, config.lr)
    kind, labels = _labels(labels_file, labels, config.labels)
    with as_user_error(f"{images_file} and {labels_file.name} cannot be used: "):
        distilled = Artifact(
            images=_single(images_file, images),
            labels=labels,
            label_kind=kind,
            lr=lr,
            mean=dataset.mean,
            std=dataset.std,
            zca=dataset.zca,
            dsa=origin.dsa,
            network=origin.network,
            class_names=dataset.class_names,
            dataset_name=dataset.name,
            dataset_fingerprint=dataset.fingerprint,
            ipc=count // classes,
            recipe={"converted_from": "images", "recipe": config.recipe},
            seed=0,
            versions=current_versions(),
        )
    files.check_writable(config.out.parent)
    artifact.save(config.out, distilled)
    return f"{config.out}: {count} images of {classes} classes, step size {lr:g}"


def from_artifact(config: ConvertConfig) -> str:
    """Write a distilled set as ``images.pt``, ``labels.pt`` and ``lr.pt`` for other scripts."""
    distilled = artifact.load(config.source)
    # The scripts write float32; use float64 only if float32 would round the step size.
    lr = torch.tensor(distilled.lr, dtype=torch.float32)
    if lr.item() != distilled.lr:
        lr = torch.tensor(distilled.lr, dtype=torch.float64)
    with files.whole_folder(config.out) as folder:
        torch_files.save(folder / "images.pt", distilled.images)
        torch_files.save(folder / "labels.pt", distilled.labels)
        torch_files.save(folder / "lr.pt", lr)
    return f"{config.out}: images.pt, labels.pt and lr.pt of {len(distilled.images)} images"


def _tensor(path: Path) -> Tensor:
    content = torch_files.load(path)
    if not isinstance(content, Tensor):
        raise UserError(f"{path} should hold one tensor, but holds a {type(content).__name__}")
    # A tensor with stride 0 can claim any size; cloning it would fill the memory.
    if content.nbytes > path.stat().st_size:
        raise UserError(
            f"{path} is damaged: its tensor {list(content.shape)} is larger than the file"
        )
    return content.detach().clone(memory_format=torch.contiguous_format)


def _step_size(path: Path, given: float | None) -> float:
    """Return the step size from the file if it exists, else from the flag."""
    if not path.is_file():
        assert given is not None  # else to_artifact has reported it as missing
        return given
    if given is not None:
        raise UserError(f"{path} contains the learned step size; leave out --lr")
    content = torch_files.load(path)
    value = content.item() if isinstance(content, Tensor) and content.numel() == 1 else content
    if not isinstance(value, float) or not 0 < value < math.inf:
        raise UserError(
            f"{path} should hold the learned step size, a positive number, but holds {value!r:.40}"
        )
    return value


def _labels(path: Path, labels: Tensor, kind: str | None) -> tuple[Any, Tensor]:
    """Return the labels as an artifact stores them: their kind and their values."""
    if not labels.is_floating_point():
        if kind is not None:
            raise UserError(f"{path} holds class indices ({labels.dtype}); leave out --labels")
        column = labels.ndim == 2 and labels.shape[1] == 1
        return "index", (labels[:, 0] if column else labels).to(torch.int64)
    # Artifacts store logits; log-probabilities are logits whose softmax is the probabilities.
    if kind == "probability":
        return "logit", log_probabilities(labels)
    assert kind is not None  # else to_artifact has reported it as missing
    return kind, _single(path, labels)


def _single(path: Path, tensor: Tensor) -> Tensor:
    """Convert a floating-point tensor to float32; warn if that rounds."""
    if not tensor.is_floating_point():
        return tensor
    single = tensor.float()
    # No warning for NaN and infinity: Artifact refuses them.
    if single.isfinite().all() and not torch.equal(single.to(tensor.dtype), tensor):
        warn(f"{path} holds numbers of {tensor.dtype}, which are rounded to float32")
    return single
