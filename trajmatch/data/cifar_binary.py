"""The official binary version of CIFAR-10 and CIFAR-100.

One record per image: the label bytes (CIFAR-10: class; CIFAR-100: superclass, then class), then the
32 x 32 pixels of red, of green and of blue.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trajmatch.data.known_sets import Binary
from trajmatch.errors import UserError
from trajmatch.memory import check_memory

_PIXELS = 3 * 32 * 32

_Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def find(binary: Binary, root: Path) -> Path | None:
    """Find the folder of the files: ``root`` or the one that the archive unpacks to.

    Any file will do, so that an incomplete set is reported as one.

    Args:
        binary: The version.
        root: Folder to look in.
    """
    folders = (root / binary.folder, root)
    files = (*binary.train, *binary.test)
    return next((f for f in folders if any((f / name).is_file() for name in files)), None)


def read(binary: Binary, folder: Path) -> dict[str, _Bytes]:
    """Read the files.

    Args:
        binary: The version.
        folder: The folder that :func:`find` found.

    Returns:
        The arrays, as an ``.npz`` file has them.

    Raises:
        OSError: A file cannot be read.
        UserError: Files are missing or damaged.
    """
    arrays = {}
    for part, names in (("train", binary.train), ("test", binary.test)):
        blocks = [_records(folder / name, binary.label_bytes + _PIXELS) for name in names]
        for name, block in zip(names, blocks, strict=True):
            if len(block) != len(blocks[0]):
                raise UserError(
                    f"{folder / name} holds {len(block)} images, but {names[0]} holds "
                    f"{len(blocks[0])}; one of them is cut off: unpack the archive again"
                )
        records = np.concatenate(blocks)
        arrays[f"x_{part}"] = records[:, binary.label_bytes :].reshape(-1, 3, 32, 32)
        arrays[f"y_{part}"] = records[:, binary.label_bytes - 1]
    return arrays


def _records(path: Path, length: int) -> _Bytes:
    """The records of one file, ``[N, length]``."""
    if not path.is_file():
        raise UserError(f"{path} is missing; unpack the whole archive again")
    size = path.stat().st_size
    if size == 0 or size % length:
        raise UserError(
            f"{path} is cut off or not a file of CIFAR's binary version: its {size} bytes "
            f"are not a whole number of records of {length} bytes; unpack the archive again"
        )
    check_memory(f"the {size} bytes of {path}", size, "unpack the archive again")
    return np.fromfile(path, np.uint8).reshape(-1, length)
