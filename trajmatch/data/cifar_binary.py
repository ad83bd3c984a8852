"""Reader of CIFAR's binary version: records of one or two label bytes and 3 x 32 x 32 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trajmatch.data.known_sets import Binary
from trajmatch.errors import UserError
from trajmatch.memory import check_memory

_PIXELS = 3 * 32 * 32

_Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Part:
    """Images ``data [N, 3, 32, 32]`` and labels ``targets [N]``, uint8; names as in torchvision."""

    data: _Bytes
    targets: _Bytes

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.data[index].transpose(1, 2, 0)), int(self.targets[index])


def find(binary: Binary, root: Path) -> Path | None:
    """Find the folder with the files: the archive's folder in ``root``, or ``root``, or None."""
    folders = (root / binary.folder, root)
    files = (*binary.train, *binary.test)
    return next((f for f in folders if any((f / name).is_file() for name in files)), None)


def read(binary: Binary, folder: Path, names: Sequence[str]) -> Part:
    """Read the files ``names``; raise OSError if one is missing, UserError if a size is wrong."""
    length = binary.label_bytes + _PIXELS
    sizes = [(folder / name).stat().st_size for name in names]
    if len({*sizes}) > 1 or sizes[0] == 0 or sizes[0] % length:
        raise UserError(
            f"{', '.join(names)} in {folder} should be of one size and hold records of {length} "
            f"bytes, but have {', '.join(map(str, sizes))} bytes; unpack the archive again"
        )
    check_memory(f"the {sum(sizes)} bytes of {folder}", sum(sizes), "free some memory")
    records = np.concatenate([np.fromfile(folder / name, np.uint8) for name in names])
    records = records.reshape(-1, length)
    # CIFAR-100 has two label bytes, superclass and class; the class comes last. The pixels are a
    # red, a green and a blue plane.
    images = records[:, binary.label_bytes :].reshape(-1, 3, 32, 32)
    return Part(images, records[:, binary.label_bytes - 1])
