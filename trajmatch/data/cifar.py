"""CIFAR-10 and CIFAR-100, each in its official binary and its official Python version.

Binary version: one record per image, the label bytes (CIFAR-10: class; CIFAR-100: superclass, then
class), then the 32 x 32 pixels of red, of green and of blue. The Python version consists of
pickles, which run code when they are read. It is left to torchvision, and no file of it is opened
before its MD5 sum is found to be that of the authors' file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trajmatch.data import cifar_names
from trajmatch.data.dataset import Dataset
from trajmatch.data.reading import check_folder
from trajmatch.errors import UserError
from trajmatch.memory import check_memory

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class CifarSource:
    """One of the two sets.

    Attributes:
        name: Name of the data set.
        class_names: In the order of the labels.
        binary_folder: What the archive of the binary version unpacks to.
        train_files: Its training files.
        test_files: Its test files.
        label_bytes: Label bytes before each image; the last one is the class.
        python_folder: What the archive of the Python version unpacks to.
        python_files: Files by which the Python version is known.
        torchvision_class: Name of torchvision's reader of the Python version.
    """

    name: str
    class_names: tuple[str, ...]
    binary_folder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    label_bytes: int
    python_folder: str
    python_files: tuple[str, ...]
    torchvision_class: str

    def found_in(self, root: Path) -> bool:
        """Whether :meth:`load` would find a version of this set.

        Args:
            root: Folder to look in.
        """
        return bool(self._binary_in(root) or self._python_in(root))

    def load(self, root: Path) -> Dataset:
        """Loads the set; the binary version where both are there.

        Args:
            root: The folder that the archive unpacked to, or its parent.

        Returns:
            The data set.

        Raises:
            OSError: A file cannot be read.
            UserError: Files are missing, damaged, or not the official ones.
        """
        check_folder(root)
        if binary := self._binary_in(root):
            return self._from_binary(binary)
        if python := self._python_in(root):
            return self._from_python(python)
        raise UserError(
            f"{root} holds neither {self.binary_folder}/{self.train_files[0]} (binary version) nor "
            f"{self.python_folder}/{self.python_files[0]} (Python version); unpack the official "
            f"archive of {self.name} there"
        )

    def _binary_in(self, root: Path) -> Path | None:
        # Any file will do here, so that an incomplete set is reported as one.
        files = (*self.train_files, *self.test_files)
        folders = (root / self.binary_folder, root)
        return next((f for f in folders if any((f / name).is_file() for name in files)), None)

    def _python_in(self, root: Path) -> Path | None:
        folders = (root / self.python_folder, root)
        names = self.python_files
        return next((f for f in folders if all((f / name).is_file() for name in names)), None)

    def _from_binary(self, folder: Path) -> Dataset:
        train_images, train_labels = self._read_records([folder / f for f in self.train_files])
        test_images, test_labels = self._read_records([folder / f for f in self.test_files])
        return self._dataset(train_images, train_labels, test_images, test_labels)

    def _read_records(self, paths: list[Path]) -> tuple[Tensor, Tensor]:
        length = self.label_bytes + _PIXELS
        parts = [_read_file(path, length) for path in paths]
        for path, part in zip(paths, parts, strict=True):
            if len(part) != len(parts[0]):
                raise UserError(
                    f"{path} holds {len(part)} images, but {paths[0].name} holds {len(parts[0])}; "
                    "one of them is cut off: unpack the archive again"
                )
        images = np.concatenate([part[:, self.label_bytes :] for part in parts])
        labels = np.concatenate([part[:, self.label_bytes - 1] for part in parts])
        return torch.from_numpy(images).view(-1, 3, 32, 32), torch.from_numpy(labels)

    def _from_python(self, folder: Path) -> Dataset:
        from trajmatch._torchvision import torchvision

        reader = getattr(torchvision.datasets, self.torchvision_class)
        check_integrity = torchvision.datasets.utils.check_integrity
        meta = (reader.meta["filename"], reader.meta["md5"])
        for name, md5 in (*reader.train_list, *reader.test_list, meta):
            if not check_integrity(str(folder / name), md5):
                raise UserError(
                    f"{folder / name} is missing or is not the official file of {self.name} (its "
                    f"MD5 sum should be {md5}); it was not opened: unpack the archive again"
                )
        # The folder may have any name here; torchvision would insist on the archive's.
        plain = type(reader.__name__, (reader,), {"base_folder": ""})
        train = _from_torchvision(plain(root=str(folder), train=True))
        test = _from_torchvision(plain(root=str(folder), train=False))
        return self._dataset(*train, *test)

    def _dataset(
        self, train_images: Tensor, train_labels: Tensor, test_images: Tensor, test_labels: Tensor
    ) -> Dataset:
        return Dataset.from_arrays(
            self.name, train_images, train_labels, test_images, test_labels, self.class_names
        )


def _read_file(path: Path, record: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The records of one file, ``[N, record]``."""
    if not path.is_file():
        raise UserError(f"{path} is missing; unpack the whole archive again")
    size = path.stat().st_size
    if size == 0 or size % record:
        raise UserError(
            f"{path} is cut off or not a file of CIFAR's binary version: its {size} bytes "
            f"are not a whole number of records of {record} bytes; unpack the archive again"
        )
    check_memory(f"the {size} bytes of {path}", size, "unpack the archive again")
    return np.fromfile(path, np.uint8).reshape(-1, record)


def _from_torchvision(part: Any) -> tuple[Tensor, Tensor]:
    """Images and labels of one of torchvision's CIFAR objects, which keep ``[N, H, W, C]``."""
    images = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))
    return torch.from_numpy(images), torch.tensor(part.targets)


CIFAR10 = CifarSource(
    name="cifar10",
    class_names=cifar_names.CIFAR10,
    binary_folder="cifar-10-batches-bin",
    train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test_files=("test_batch.bin",),
    label_bytes=1,
    python_folder="cifar-10-batches-py",
    python_files=("data_batch_1", "test_batch"),
    torchvision_class="CIFAR10",
)
CIFAR100 = CifarSource(
    name="cifar100",
    class_names=cifar_names.CIFAR100,
    binary_folder="cifar-100-binary",
    train_files=("train.bin",),
    test_files=("test.bin",),
    label_bytes=2,
    python_folder="cifar-100-python",
    python_files=("train", "test"),
    torchvision_class="CIFAR100",
)
