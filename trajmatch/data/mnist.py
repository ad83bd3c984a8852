"""MNIST and Fashion-MNIST from their original IDX files.

IDX: a big-endian header (magic number, then the length of each axis, four bytes each), then one
byte per element. The magic number is 0x800 plus the number of axes for unsigned bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from trajmatch.data.dataset import Dataset
from trajmatch.data.reading import check_folder, unpacked
from trajmatch.errors import UserError
from trajmatch.memory import check_memory

_UNSIGNED_BYTES = 0x800
_FILES = {
    "train_images": ("train-images-idx3-ubyte", 3),
    "train_labels": ("train-labels-idx1-ubyte", 1),
    "test_images": ("t10k-images-idx3-ubyte", 3),
    "test_labels": ("t10k-labels-idx1-ubyte", 1),
}


@dataclass(frozen=True)
class IdxSource:
    """A data set of four IDX files.

    Attributes:
        name: Name of the data set.
        folder: What torchvision calls its folder below ROOT; the files are in ``raw`` there.
        class_names: In the order of the labels.
    """

    name: str
    folder: str
    class_names: tuple[str, ...]

    def found_in(self, root: Path) -> bool:
        """Whether :meth:`load` would find a file of this set, by its folder's name.

        Both sets use the same file names, so files directly in ``root`` prove nothing.

        Args:
            root: Folder to look in.
        """
        return any(_locate(folder, "train_images") for folder in self._own_folders(root))

    def load(self, root: Path) -> Dataset:
        """Loads the set.

        Args:
            root: Folder that holds the four files, or torchvision's folder structure with them.

        Returns:
            The data set.

        Raises:
            OSError: A file cannot be read.
            UserError: A file is missing, damaged, or of another kind.
        """
        check_folder(root)
        folders = [*self._own_folders(root), root / "raw", root]
        found = [folder for folder in folders if _locate(folder, "train_images")]
        if not found:
            raise UserError(
                f"{root} holds no {_FILES['train_images'][0]}[.gz], neither directly nor in "
                f"{self.folder}/raw; put the four original files of {self.name} there"
            )
        arrays = {key: _read(found[0], key) for key in _FILES}
        return Dataset.from_arrays(
            self.name,
            arrays["train_images"].unsqueeze(1),
            arrays["train_labels"],
            arrays["test_images"].unsqueeze(1),
            arrays["test_labels"],
            self.class_names,
        )

    def _own_folders(self, root: Path) -> list[Path]:
        return [root / self.folder / "raw", root / self.folder]


def _locate(folder: Path, key: str) -> Path | None:
    plain = folder / _FILES[key][0]
    packed = plain.with_name(plain.name + ".gz")
    return next((path for path in (plain, packed) if path.is_file()), None)


def _read(folder: Path, key: str) -> Tensor:
    name, axes = _FILES[key]
    path = _locate(folder, key)
    if path is None:
        raise UserError(f"{folder} lacks {name}[.gz]; put all four original files there")
    with unpacked(path) as file:
        return _parse_idx(path, file, axes)


def _parse_idx(path: Path, file: BinaryIO, axes: int) -> Tensor:
    """Read an IDX file of unsigned bytes: uint8, of ``axes`` dimensions."""
    head = file.read(4 * (axes + 1))
    magic = int.from_bytes(head[:4], "big")
    if len(head) < 4 * (axes + 1) or magic != _UNSIGNED_BYTES + axes:
        raise UserError(
            f"{path} is not an IDX file of bytes with {axes} axes: it begins with "
            f"{head[:4].hex() or 'nothing'} instead of {_UNSIGNED_BYTES + axes:08x}; "
            "download it again"
        )
    shape = [int(size) for size in np.frombuffer(head, ">u4", axes, offset=4)]
    promised = math.prod(shape)
    check_memory(f"the {promised} bytes that {path} promises", promised, "download it again")
    content = bytearray(file.read(promised + 1))  # no more: a packed file can be of any length
    if len(content) != promised:
        follow = f"more than {promised}" if len(content) > promised else f"{len(content)}"
        raise UserError(
            f"{path} is damaged: its header promises {promised} bytes of shape {shape}, "
            f"but {follow} follow; download it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape))


FASHION = IdxSource(
    "fashion-mnist",
    "FashionMNIST",
    (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
)
DIGITS = IdxSource("mnist", "MNIST", tuple("0123456789"))
