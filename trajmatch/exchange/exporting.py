"""A distilled set as PNG files, arrays, tensors or a data set of Hugging Face."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trajmatch import artifact, files
from trajmatch.artifact import Artifact
from trajmatch.exchange.card import dataset_card
from trajmatch.exchange.config import ExportConfig
from trajmatch.exchange.whole import check_new, whole_folder
from trajmatch.lock import locked

DESCRIPTION = "distilled.json"


def export(config: ExportConfig) -> str:
    """Writes a distilled set in another form, whole or not at all.

    Args:
        config: The set, the form, and where to write.

    Returns:
        What was written, in a sentence.

    Raises:
        UserError: The set cannot be read, or there is something where it should be written.
    """
    check_new(config.out)
    distilled = artifact.load(config.file)
    with locked(config.out):
        check_new(config.out)  # now nobody else makes it
        _export(config, distilled)
    lost = ""
    if config.to in ("imagefolder", "huggingface"):
        lost = (
            f"; {_clipped(distilled):.1%} of the pixel values lie outside of 0 to 255 and are cut, "
            "so that networks trained on these files differ from those trained on --to npz or torch"
        )
    return f"{config.out}: {len(distilled.images)} images of {distilled.num_classes} classes{lost}"


def _export(config: ExportConfig, distilled: Artifact) -> None:
    """Write the set in the form that is asked for."""
    if config.to == "imagefolder":
        with whole_folder(config.out) as folder:
            _write_images(distilled, folder)
    elif config.to == "huggingface":
        with whole_folder(config.out) as folder:
            _write_huggingface(distilled, folder)
    else:
        files.write_bytes(config.out, _npz(distilled) if config.to == "npz" else _torch(distilled))


def describe(distilled: Artifact) -> dict[str, Any]:
    """What a distilled set says about itself, for JSON.

    Args:
        distilled: The set.

    Returns:
        ``lr`` (the learned step size), ``label_kind``, ``class_names``, ``preprocessing`` (its
        ``spec()``), ``dsa``, ``network``, ``dataset``, ``ipc``, ``recipe``, ``seed``, ``scores``,
        ``selection``, ``versions``, the ``fingerprint`` of the set, and ``clipped``, the part of
        the pixel values that do not fit into 8 bits.
    """
    return {
        "lr": distilled.lr,
        "label_kind": distilled.label_kind,
        "class_names": list(distilled.class_names),
        "preprocessing": distilled.preprocessing.spec(),
        "dsa": distilled.dsa,
        "network": distilled.network,
        "dataset": {"name": distilled.dataset_name, "fingerprint": distilled.dataset_fingerprint},
        "ipc": distilled.ipc,
        "recipe": distilled.recipe,
        "seed": distilled.seed,
        "scores": list(distilled.scores),
        "selection": distilled.selection,
        "versions": distilled.versions,
        "fingerprint": distilled.fingerprint,
        "clipped": _clipped(distilled),
    }


def _clipped(distilled: Artifact) -> float:
    """Part of the pixel values that 8 bits cannot hold: more than half a step outside."""
    pixels = distilled.preprocessing.invert(distilled.images).mul(255).round()
    return ((pixels < 0) | (pixels > 255)).double().mean().item()


def _entries(distilled: Artifact, paths: list[Path]) -> list[dict[str, Any]]:
    """Name, class and, where labels are soft, target logits of each image."""
    entries: list[dict[str, Any]] = [
        {"file_name": path.as_posix(), "label": label}
        for path, label in zip(paths, distilled.hard_labels.tolist(), strict=True)
    ]
    if distilled.label_kind == "logit":
        for entry, logits in zip(entries, distilled.labels.tolist(), strict=True):
            entry["logits"] = logits
    return entries


def _write_images(distilled: Artifact, folder: Path) -> None:
    paths = distilled.to_images(folder)
    description = {**describe(distilled), "images": _entries(distilled, paths)}
    files.write_json(folder / DESCRIPTION, description)


def _write_huggingface(distilled: Artifact, folder: Path) -> None:
    """The layout of the ``imagefolder`` builder; a card beside it gives the types of columns."""
    split = folder / "train"
    paths = distilled.to_images(split)
    lines = [json.dumps(entry, ensure_ascii=False) for entry in _entries(distilled, paths)]
    files.write_text(split / "metadata.jsonl", "\n".join(lines) + "\n")
    files.write_json(folder / DESCRIPTION, describe(distilled))
    files.write_text(folder / "README.md", dataset_card(distilled))


def _tensors(distilled: Artifact) -> dict[str, Tensor]:
    """Images as trained, labels, pixels, and what test images must go through."""
    tensors = {
        "images": distilled.images,
        "labels": distilled.labels,
        "pixels": distilled.pixels,
        "lr": torch.tensor(distilled.lr, dtype=torch.float64),
    }
    if distilled.zca is not None:
        return {**tensors, "zca_mean": distilled.zca.mean, "zca_matrix": distilled.zca.matrix}
    mean, std = torch.tensor(distilled.mean), torch.tensor(distilled.std)
    return {**tensors, "mean": mean, "std": std}


def _npz(distilled: Artifact) -> bytes:
    arrays = {name: tensor.numpy() for name, tensor in _tensors(distilled).items()}
    arrays["class_names"] = np.array(distilled.class_names)
    arrays["description"] = np.array(json.dumps(describe(distilled), sort_keys=True))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _torch(distilled: Artifact) -> bytes:
    content: dict[str, Any] = dict(_tensors(distilled))
    content["class_names"] = list(distilled.class_names)
    content["description"] = json.dumps(describe(distilled), sort_keys=True)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
