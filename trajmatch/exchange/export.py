"""Export of a distilled set as PNG files, NumPy arrays, tensors or a Hugging Face data set."""

import io
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from trajmatch import files, zoo
from trajmatch.artifact import Artifact
from trajmatch.exchange.config import ExportConfig
from trajmatch.lock import locked

DESCRIPTION = "distilled.json"
_CARD = Path(__file__).with_name("card.md")
#: Attributes of an artifact copied to the description unchanged.
_AS_THEY_ARE = (
    *("lr", "label_kind", "class_names", "dsa", "network", "ipc", "recipe", "seed", "scores"),
    *("selection", "versions", "fingerprint"),
)


def export(config: ExportConfig) -> str:
    """Export a distilled set and return a summary sentence; nothing is written on failure.

    Raises:
        UserError: The set cannot be read, or the output exists.
    """
    distilled = zoo.load(config.file, config.data)
    made = f"{config.out}: {len(distilled.images)} images of {distilled.num_classes} classes"
    with locked(config.out):
        files.check_new(config.out)
        if config.to in ("npz", "torch"):
            files.write_bytes(config.out, _numbers(distilled, config.to))
            return made
        with files.whole_folder(config.out) as folder:
            _write_pictures(distilled, folder, hub=config.to == "huggingface")
    return (
        f"{made}; pixel values are rounded, and clipped where they lie outside 0 to 255 "
        f"({_clipped(distilled):.2%} of them), so networks trained on these files will differ from "
        "those trained on --to npz or torch"
    )


def describe(distilled: Artifact) -> dict[str, Any]:
    """Return a JSON description; ``clipped`` is the fraction of pixel values outside 0 to 255."""
    # Only parametrised images have a parametrisation and a stored size.
    kind = ("parametrisation", "stored_values", "stored_bytes")
    return {
        **({name: getattr(distilled, name) for name in kind} if distilled.parametrisation else {}),
        **{name: getattr(distilled, name) for name in _AS_THEY_ARE},
        "preprocessing": distilled.preprocessing.spec(),
        "dataset": {"name": distilled.dataset_name, "fingerprint": distilled.dataset_fingerprint},
        "clipped": _clipped(distilled),
    }


def _clipped(distilled: Artifact) -> float:
    """Return the fraction of pixel values that are outside 0 to 255 after rounding."""
    pixels = distilled.preprocessing.invert(distilled.images).mul(255).round()
    return ((pixels < 0) | (pixels > 255)).double().mean().item()


def _write_pictures(distilled: Artifact, folder: Path, hub: bool) -> None:
    """Write PNG files and the description; ``hub`` writes the layout that ``datasets`` reads."""
    images = folder / "train" if hub else folder
    columns = {
        "file_name": [path.as_posix() for path in distilled.to_images(images)],
        "label": distilled.hard_labels.tolist(),
    }
    if distilled.label_kind != "index":
        columns[f"{distilled.label_kind}s"] = distilled.labels.tolist()
    entries = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if hub:
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        files.write_text(images / "metadata.jsonl", lines)
        card = jinja2.Template(_CARD.read_text(encoding="utf-8"), keep_trailing_newline=True)
        text = card.render(artifact=distilled, json=json.dumps, description=DESCRIPTION)
        files.write_text(folder / "README.md", text)
    listed = {} if hub else {"images": entries}
    files.write_json(folder / DESCRIPTION, {**describe(distilled), **listed})


def _numbers(distilled: Artifact, form: str) -> bytes:
    """Return the bytes of an ``.npz`` or ``.pt`` file with all that training on the set needs."""
    # The step size is a float64 number; float32 would round it.
    content: dict[str, Any] = {
        "images": distilled.images,
        "labels": distilled.labels,
        "pixels": distilled.pixels,
        "lr": torch.tensor(distilled.lr, dtype=torch.float64),
    }
    if (zca := distilled.zca) is not None:
        content |= {"zca_mean": zca.mean, "zca_matrix": zca.matrix}
    else:
        content |= {"mean": torch.tensor(distilled.mean), "std": torch.tensor(distilled.std)}
    content["class_names"] = list(distilled.class_names)
    content["description"] = json.dumps(describe(distilled), sort_keys=True)
    buffer = io.BytesIO()
    if form == "torch":
        torch.save(content, buffer)
    else:
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in content.items()}
        np.savez(buffer, **arrays)
    return buffer.getvalue()
