"""A labelled set of images, checked, with its statistics and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trajmatch.data import checks
from trajmatch.data.holdout import split_holdout
from trajmatch.data.statistics import channel_statistics, denormalise, normalise

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images of ``K`` classes, in memory, on the CPU.

    Everything is checked on construction, so that a wrong label is found before anything is trained
    on it. Use :meth:`from_arrays` where the statistics are still to be found.

    Attributes:
        name: What the set is called in files and tables; never a path.
        train_images: ``[N, C, S, S]``, uint8.
        train_labels: ``[N]``, int64, from 0 to ``K - 1``; every class has an image.
        test_images: ``[M, C, S, S]``, uint8.
        test_labels: ``[M]``, int64, from 0 to ``K - 1``.
        class_names: One name per class, in the order of the labels.
        mean: Mean of the training images per channel, pixels as numbers from 0 to 1.
        std: Their standard deviation, likewise.

    Raises:
        UserError: Images or labels cannot be used; the message says why.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Checks images, labels and class names."""
        _check(
            self.name,
            self.train_images,
            self.train_labels,
            self.test_images,
            self.test_labels,
            self.class_names,
        )

    @classmethod
    def from_arrays(
        cls,
        name: str,
        train_images: Tensor,
        train_labels: Tensor,
        test_images: Tensor,
        test_labels: Tensor,
        class_names: Sequence[str],
    ) -> Dataset:
        """Checks the arrays and finds the statistics of the training images.

        Args:
            name: What the set is called in files and tables.
            train_images: ``[N, C, S, S]``, uint8.
            train_labels: ``[N]``, any integer dtype, from 0 to ``K - 1``.
            test_images: ``[M, C, S, S]``, uint8.
            test_labels: ``[M]``, any integer dtype.
            class_names: One name per class, in the order of the labels.

        Returns:
            The data set.

        Raises:
            UserError: Images or labels cannot be used.
        """
        train_labels, test_labels = _widen(train_labels), _widen(test_labels)
        names = tuple(class_names)
        # Before the statistics, which would fail on wrong images with a message of their own.
        _check(name, train_images, train_labels, test_images, test_labels, names)
        mean, std = channel_statistics(train_images)
        return cls(
            name, train_images, train_labels, test_images, test_labels, names, mean=mean, std=std
        )

    @property
    def num_classes(self) -> int:
        """Number of classes ``K``."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """Channels ``C`` of an image."""
        return self.train_images.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width ``S`` of an image, in pixels."""
        return self.train_images.shape[2]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all images, labels, shapes and class names, in hexadecimal digits.

        It does not depend on where the set came from or what it is called.
        """
        tensors = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        description = {
            "class_names": self.class_names,
            "shapes": [list(tensor.shape) for tensor in tensors],
        }
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
        for tensor in tensors:
            array = tensor.contiguous().numpy()
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
        return digest.hexdigest()

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels as network inputs, with the statistics of this set.

        Args:
            images: ``[N, C, H, W]``, uint8, on any device.

        Returns:
            ``[N, C, H, W]``, float32, on the device of ``images``.

        Raises:
            TypeError: ``images`` is not uint8.
        """
        return normalise(images, self.mean, self.std)

    def denormalise(self, images: Tensor) -> Tensor:
        """Network inputs as pictures, with the statistics of this set.

        Args:
            images: ``[N, C, H, W]``, floating point, on any device.

        Returns:
            ``[N, C, H, W]``, from 0 to 1, dtype and device of ``images``.

        Raises:
            TypeError: ``images`` is not floating point.
        """
        return denormalise(images, self.mean, self.std)

    def without_holdout(self, fraction: float, seed: int) -> tuple[Dataset, Tensor, Tensor]:
        """Sets a random part of every class of the training set aside.

        What is left is a data set of its own: statistics and fingerprint are those of its own
        images, so that nothing made from it has seen the part set aside.

        Args:
            fraction: Part of each class to set aside, from 0 to below 1, rounded to whole images.
            seed: Chooses the images; the same seed gives the same ones.

        Returns:
            ``(dataset, images, labels)``: the set without the part, and the part: ``[n, C, S, S]``,
            uint8, and ``[n]``, int64, in the order of the training set.

        Raises:
            UserError: The fraction is out of range, or a class is too small to have an image on
                both sides.
        """
        kept, held_out = split_holdout(self.train_labels, fraction, seed)
        rest = Dataset.from_arrays(
            self.name,
            self.train_images[kept],
            self.train_labels[kept],
            self.test_images,
            self.test_labels,
            self.class_names,
        )
        return rest, self.train_images[held_out], self.train_labels[held_out]


def _check(
    name: str,
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    class_names: Sequence[str],
) -> None:
    what = f"data set {name}"
    checks.check_class_names(what, class_names)
    for split, images, labels in (
        ("training", train_images, train_labels),
        ("test", test_images, test_labels),
    ):
        checks.check_images(f"{what}: {split} images", images)
        checks.check_labels(f"{what}: {split} labels", labels, len(images), class_names)
    checks.check_every_class_present(f"{what}: training labels", train_labels, class_names)
    checks.check_same_shape(what, train_images, test_images)


def _widen(labels: Tensor) -> Tensor:
    """Class indices as int64; anything but integers stays, to be refused by the checks."""
    return labels.to(torch.int64) if labels.dtype in _INTEGERS else labels
