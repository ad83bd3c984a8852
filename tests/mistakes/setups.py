"""Functions that make the files of a mistake; each returns a setup for the current folder."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mistakes.kinds import Setup
from PIL import Image


def good_arrays() -> dict[str, np.ndarray]:
    """Draw the arrays of the good ``d.npz``: 3 classes, 24 training and 12 test images."""
    draw = np.random.default_rng(0)
    labels = np.arange(24) % 3
    noise = draw.integers(0, 100, (24, 16, 16, 3))
    images = (noise + 50 * labels[:, None, None, None]).astype(np.uint8)
    return {
        "x_train": images,
        "y_train": labels,
        "x_test": images[:12],
        "y_test": labels[:12],
    }


def arrays(name: str = "bad.npz", **changes: Any) -> Setup:
    """Write the good arrays with some changed by a function of them, or, with None, left out."""

    def setup() -> None:
        values: dict[str, Any] = good_arrays()
        for key, change in changes.items():
            value = change(values[key]) if callable(change) else change
            values.pop(key, None)
            if value is not None:
                values[key] = value
        np.savez(name, **values)

    return setup


def picture(path: str, width: int = 16, height: int = 16, mode: str = "RGB", seed: int = 0) -> None:
    """Write a picture of noise, and the folders that it is in."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def photos(
    root: str = "photos", classes: tuple[str, ...] = ("cat", "dog"), count: int = 8
) -> Setup:
    """Write a folder of pictures for each class."""

    def setup() -> None:
        for number, name in enumerate(classes):
            for i in range(count):
                picture(f"{root}/{name}/{i}.png", seed=100 * number + i)

    return setup


def pictures(*descriptions: tuple[str, dict[str, Any]]) -> Setup:
    """Write single pictures, given as path and options of :func:`picture`."""

    def setup() -> None:
        for path, options in descriptions:
            picture(path, **options)

    return setup


def write(path: str, content: str | bytes = "") -> Setup:
    """Write a file, and the folders that it is in."""

    def setup() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        Path(path).write_bytes(data)

    return setup


def truncate(path: str, keep: float = 0.5) -> Setup:
    """Cut a file to a part of its length."""

    def setup() -> None:
        data = Path(path).read_bytes()
        Path(path).write_bytes(data[: int(len(data) * keep)])

    return setup


def flip(path: str, place: float = 0.9) -> Setup:
    """Change one byte of a file, at a part of its length."""

    def setup() -> None:
        data = bytearray(Path(path).read_bytes())
        data[int(len(data) * place)] ^= 0x55
        Path(path).write_bytes(data)

    return setup


def edit(path: str, change: Callable[[dict[str, Any]], object]) -> Setup:
    """Change a JSON file as an editor would."""

    def setup() -> None:
        value = json.loads(Path(path).read_text())
        change(value)
        Path(path).write_text(json.dumps(value, indent=2))

    return setup


def replace(path: str, old: bytes, new: bytes) -> Setup:
    """Replace some bytes of a file."""

    def setup() -> None:
        data = Path(path).read_bytes()
        assert old in data, f"{path} has no {old!r}"
        Path(path).write_bytes(data.replace(old, new))

    return setup


def remove(path: str) -> Setup:
    """Remove a file or a folder."""

    def setup() -> None:
        if Path(path).is_dir():
            shutil.rmtree(path)
        else:
            Path(path).unlink()

    return setup


def copy(source: str, target: str) -> Setup:
    """Copy a file or a folder."""

    def setup() -> None:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        if Path(source).is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)

    return setup


def link(path: str, target: str) -> Setup:
    """Make a symbolic link, in place of what is there."""

    def setup() -> None:
        Path(path).unlink(missing_ok=True)
        Path(path).symlink_to(target)

    return setup


def folder(path: str) -> Setup:
    """Make a folder, in place of a file of its name."""

    def setup() -> None:
        if Path(path).is_file():
            Path(path).unlink()
        Path(path).mkdir(parents=True)

    return setup


def mode(path: str, bits: int) -> Setup:
    """Change the permissions of a file or folder."""

    def setup() -> None:
        os.chmod(path, bits)

    return setup


def zipped(path: str) -> Setup:
    """Write a zip archive with a text in it."""

    def setup() -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "not what it is called")

    return setup


def torch_file(path: str, content: Callable[[Any], object]) -> Setup:
    """Write what a function of the torch module returns by ``torch.save``."""

    def setup() -> None:
        import torch

        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(content(torch), path)

    return setup


def pickled(path: str, content: object) -> Setup:
    """Write a pickle."""

    def setup() -> None:
        Path(path).write_bytes(pickle.dumps(content))

    return setup


def both(*setups: Setup) -> Setup:
    """Do several setups in their order."""

    def setup() -> None:
        for each in setups:
            each()

    return setup
