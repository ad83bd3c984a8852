"""A labelled set of images, checked, with its statistics and its fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from trajmatch.data.options import choose_classes, composed
from trajmatch.data.parts import split_holdout
from trajmatch.data.preprocessing import ChannelNormalisation, Preprocessing, channel_statistics
from trajmatch.data.zca import ZCA
from trajmatch.errors import UserError

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32)
_NAMES_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images of ``K`` classes, in memory, on the CPU.

    Everything is checked on construction, so that a wrong label is found before anything is trained
    on it.

    Attributes:
        name: Name of the set in files and tables; never a path.
        train_images: ``[N, C, S, S]``, uint8.
        train_labels: ``[N]``, from 0 to ``K - 1``, given as any integers and kept as int64; every
            class has an image.
        test_images: ``[M, C, S, S]``, uint8.
        test_labels: ``[M]``, the same of the test images.
        class_names: One name per class, in the order of the labels; kept as a tuple.
        mean: Mean of the training images per channel, pixels as numbers from 0 to 1; found if it is
            not given.
        std: Their standard deviation.
        published_statistics: True if mean and std are the constants that all papers use for this
            set; a part of it has the same.
        zca: The whitening that replaces the normalisation of each channel; None: there is none.
        train_targets: Target outputs of the training images, for networks that are trained to
            regress them (mean squared error) instead of to classify. ``[N, D]``, float32; None:
            there are none.
        test_targets: The same of the test images. ``[M, D]``, float32.

    Raises:
        UserError: Images or labels cannot be used; the message says why.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    published_statistics: bool = False
    zca: ZCA | None = None
    train_targets: Tensor | None = None
    test_targets: Tensor | None = None

    def __repr__(self) -> str:
        """Say in one line what the set is, without its images."""
        return (
            f"<Dataset {self.name}: {len(self.train_images)} training and {len(self.test_images)} "
            f"test images {list(self.train_images.shape[1:])} in {len(self.class_names)} classes>"
        )

    def __post_init__(self) -> None:
        """Check images, labels and class names, and find the statistics unless they are given."""
        # A frozen class is set through its dictionary.
        vars(self)["class_names"] = tuple(self.class_names)
        for name in ("train_labels", "test_labels"):
            if vars(self)[name].dtype in _INTEGERS:  # others are refused
                vars(self)[name] = vars(self)[name].to(torch.int64)
        what = f"data set {self.name}"
        check_class_names(what, self.class_names)
        for part, images, labels, targets in (
            ("training", self.train_images, self.train_labels, self.train_targets),
            ("test", self.test_images, self.test_labels, self.test_targets),
        ):
            _check_images(f"{what}: {part} images", images, self.train_images)
            check_labels(f"{what}: {part} labels", labels, len(images), self.class_names)
            if self.train_targets is not None or self.test_targets is not None:
                _check_targets(f"{what}: {part} targets", targets, len(images), self.train_targets)
        counts = torch.bincount(self.train_labels, minlength=self.num_classes).tolist()
        if 0 in counts:
            first = counts.index(0)
            raise UserError(
                f"{what}: training labels: no image has label {first} ({self.class_names[first]}), "
                f"of {self.num_classes} classes; add images, or remove the class and renumber the "
                "others without gaps"
            )
        if not self.mean:
            mean, std = channel_statistics(self.train_images)
            vars(self).update(mean=mean, std=std)

    @property
    def num_classes(self) -> int:
        """Number of classes ``K``."""
        return len(self.class_names)

    @property
    def loss(self) -> Literal["cross_entropy", "mse"]:
        """Loss of networks on this set: ``"mse"`` if it has targets, else ``"cross_entropy"``."""
        return "cross_entropy" if self.train_targets is None else "mse"

    @property
    def train_answers(self) -> Tensor:
        """Answers that networks learn for the training images: targets if any, else labels."""
        return self.train_labels if self.train_targets is None else self.train_targets

    @property
    def test_answers(self) -> Tensor:
        """The same of the test images."""
        return self.test_labels if self.test_targets is None else self.test_targets

    @property
    def num_outputs(self) -> int:
        """Outputs of a network on this set: elements ``D`` of a target, or else classes ``K``."""
        return self.num_classes if self.train_targets is None else self.train_targets.shape[1]

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
        """SHA-256 over images, labels, targets, shapes and class names, in hexadecimal digits.

        It does not depend on where the set came from or what it is called.
        """
        parts = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        targets = (self.train_targets, self.test_targets)
        tensors = [each for each in (*parts, *targets) if each is not None]
        description = {
            "class_names": self.class_names,
            "shapes": [list(tensor.shape) for tensor in tensors],
        }
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
        for tensor in tensors:
            array = tensor.contiguous().numpy()
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
        return digest.hexdigest()

    @property
    def description(self) -> dict[str, Any]:
        """Identity as stores and files keep it: name, fingerprint, class names and shape."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "class_names": list(self.class_names),
            "shape": list(self.train_images.shape[1:]),
        }

    @property
    def preprocessing(self) -> Preprocessing:
        """The map between pixels and network inputs."""
        return self.zca or ChannelNormalisation(self.mean, self.std)

    def whitened(self, zca: ZCA | None) -> Dataset:
        """Return the same set with ZCA in place of the normalisation of each channel.

        Args:
            zca: The transform, fitted on the images that may be seen; None changes nothing.

        Returns:
            The data set; it shares the images.

        Raises:
            UserError: The transform is for images of another shape.
        """
        shape = list(self.train_images.shape[1:])
        if zca is not None and list(zca.mean.shape) != shape:
            raise UserError(
                f"the ZCA transform is for images of shape {list(zca.mean.shape)}, but those of "
                f"{self.name} have shape {shape}; fit one on this set"
            )
        return self if zca is None else dataclasses.replace(self, zca=zca)

    def preprocessed_as(self, spec: Mapping[str, Any], zca: ZCA | None) -> Dataset:
        """Return the same set with the preprocessing that something made of it describes.

        Experts from elsewhere may have seen images normalised by other statistics than these.

        Args:
            spec: :meth:`Preprocessing.spec` of that preprocessing.
            zca: The transform, where the spec is that of a whitening.

        Returns:
            The data set; it shares the images.

        Raises:
            UserError: The transform is for images of another shape.
        """
        if zca is not None or self.preprocessing.spec() == spec:
            return self.whitened(zca)
        return dataclasses.replace(self, mean=tuple(spec["mean"]), std=tuple(spec["std"]))

    def normalise(self, images: Tensor) -> Tensor:
        """Turn pixels into network inputs by this set's :attr:`preprocessing`.

        Args:
            images: ``[N, C, S, S]``, uint8, on any device.

        Returns:
            ``[N, C, S, S]``, float32, on the device of ``images``.

        Raises:
            TypeError: ``images`` is not uint8.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"normalise: expected images to be uint8, but got {images.dtype}")
        return self.preprocessing.to(images.device).apply(images)

    def without_holdout(self, fraction: float, seed: int) -> tuple[Dataset, Tensor, Tensor]:
        """Set a random part of every class of the training set aside.

        What is left is a data set of its own: statistics (unless published ones) and fingerprint
        are those of its own images, so that nothing made from it has seen the part set aside.

        Args:
            fraction: Part of each class to set aside, from 0 to below 1, rounded to whole images.
            seed: Chooses the images; the same seed gives the same ones.

        Returns:
            ``(dataset, images, answers)``: the set without the part, and the part's images
            ``[n, C, S, S]``, uint8, and :attr:`train_answers`, in the order of the training set.
            For a fraction of 0 the set itself, and an empty part.

        Raises:
            UserError: The fraction is out of range, or a class is too small to have an image on
                both sides.
        """
        if fraction == 0:
            return self, self.train_images[:0], self.train_answers[:0]
        kept, held_out = split_holdout(self.train_labels, self.class_names, fraction, seed)
        rest = self._part(train=kept)
        return rest, self.train_images[held_out], self.train_answers[held_out]

    def of_classes(self, wanted: Sequence[str]) -> Dataset:
        """Take some of the classes.

        Args:
            wanted: Their names or numbers; the first becomes class 0, and so on. Empty: all.

        Returns:
            A data set of its own, with statistics (unless published ones) and fingerprint of its
            own images; the set itself for all classes.

        Raises:
            UserError: There is no such class, there are fewer than two, or there is no test image
                of them.
        """
        if not wanted:
            return self
        labels = choose_classes(self.name, self.class_names, wanted)
        renumbered = torch.full((self.num_classes,), -1)
        renumbered[labels] = torch.arange(len(labels))
        train, test = renumbered[self.train_labels], renumbered[self.test_labels]
        return self._part(
            train=train >= 0,
            test=test >= 0,
            train_labels=train[train >= 0],
            test_labels=test[test >= 0],
            class_names=tuple(self.class_names[label] for label in labels),
        )

    def _part(
        self, *, train: Tensor | None = None, test: Tensor | None = None, **changes: Any
    ) -> Dataset:
        """Some of the images, with statistics of their own unless these are published ones."""
        for part, rows in (("train", train), ("test", test)):
            for kind in ("images", "labels", "targets"):
                tensor = vars(self)[name := f"{part}_{kind}"]
                if rows is not None and tensor is not None:
                    changes.setdefault(name, tensor[rows])
        if not self.published_statistics:
            changes |= {"mean": (), "std": ()}
        return dataclasses.replace(self, zca=None, **changes)


def _check_images(what: str, images: Tensor, training: Tensor) -> None:
    """Refuse anything but at least one square 8-bit image, of the shape of the training images."""
    shape = list(images.shape)
    if images.dtype != torch.uint8:
        raise UserError(
            f"{what} should be uint8, 0 to 255, but are {images.dtype}; convert them (numbers from "
            "0 to 1: multiply by 255 and round)"
        )
    if images.ndim != 4 or images.numel() == 0 or shape[2] != shape[3]:
        raise UserError(
            f"{what} should be square, [N, C, S, S], and at least one, but have shape {shape}; "
            "crop or resize them"
        )
    if images.shape[1:] != training.shape[1:]:
        raise UserError(
            f"{what} have shape {shape}, but the training images {list(training.shape)}; all "
            "should have the same channels and size: convert one of them"
        )


def _check_targets(what: str, targets: Tensor | None, count: int, training: Tensor | None) -> None:
    """Refuse targets that are not one vector of finite numbers per image."""
    size = "D" if training is None or training.ndim != 2 else training.shape[1]
    shape = None if targets is None else list(targets.shape)
    if targets is None or targets.dtype != torch.float32 or shape != [count, size] or not size:
        came = "there are none" if targets is None else f"are {targets.dtype} of shape {shape}"
        raise UserError(
            f"{what} should be float32, one vector per image, [{count}, {size}], but {came}"
        )
    if not targets.isfinite().all():
        raise UserError(f"{what} should be finite, but are not")


def check_labels(what: str, labels: Tensor, count: int, class_names: Sequence[str]) -> None:
    """Refuse labels that are not one class index per image.

    Args:
        what: Name of the labels, for the message, e.g. ``"data set pets: training labels"``.
        labels: Wanted: ``[count]``, int64, from 0 to the number of classes less one.
        count: Number of images.
        class_names: One name per class.

    Raises:
        UserError: They are something else.
    """
    classes = len(class_names)
    if labels.dtype != torch.int64 or list(labels.shape) != [count]:
        raise UserError(
            f"{what} should be whole numbers (int64), one class index per image, [{count}], but "
            f"are {labels.dtype} of shape {list(labels.shape)}"
        )
    outside = torch.nonzero((labels < 0) | (labels >= classes)).flatten()
    if len(outside):
        first = int(outside[0])
        raise UserError(
            f"{what} should run from 0 to {classes - 1} ({classes} classes), but image {first} has "
            f"label {int(labels[first])}; renumber the classes from 0 without gaps"
        )


def check_class_names(what: str, class_names: Sequence[str]) -> None:
    """Refuse fewer than two classes, and names that are empty, given twice or not UTF-8.

    Names are compared in the Unicode form NFC.

    Args:
        what: Name of the data set, for the message.
        class_names: One name per class.

    Raises:
        UserError: They cannot be used.
    """
    if len(class_names) < 2:
        raise UserError(
            f"{what}: at least 2 classes are needed, but there are {len(class_names)} "
            f"({', '.join(class_names) or 'no names'})"
        )
    names = list(map(composed, class_names))
    for index, name in enumerate(names):
        check_text(f"{what}: the class name", name)
        if not name or name in names[:index]:
            raise UserError(
                f"{what}: every class needs a name of its own, but class {index} is called {name!r}"
            )


def check_text(what: str, text: str) -> None:
    """Refuse a text that UTF-8 cannot write: files are described in UTF-8.

    Args:
        what: Name of the text, for the message.
        text: The text; Python keeps the bytes of file names in other encodings as surrogates.

    Raises:
        UserError: The text has a surrogate.
    """
    if text.encode(errors="replace").decode() != text:
        raise UserError(f"{what} {text!a} is not UTF-8; rename it")


def check_same_data(
    made: str,
    known: Mapping[str, Any],
    given: Mapping[str, Any],
    known_address: str | None = None,
    given_address: str | None = None,
) -> None:
    """Make sure that a data set is the one that something was made from.

    Args:
        made: Beginning of the message, e.g. ``"d.safetensors was distilled from"``.
        known: Description of the data set that it was made from, as :attr:`Dataset.description`
            is.
        given: Description of the data set given. The names of the two may differ.
        known_address: Address of the first. Default: its name.
        given_address: Address of the second. Default: its name.

    Raises:
        UserError: It is another one. The message names classes and shape where these differ, and
            fingerprints where they do not.
    """
    if known["fingerprint"] == given["fingerprint"]:
        return
    first = known_address or f"the data set {known['name']!r}"
    second = given_address or f"the data set {given['name']!r}"
    has, got = f" with {_told(known, given)}", f"has {_told(given, known)}"
    if _told(known, given) == _told(given, known):
        marks = [f"{each['fingerprint'][:16]}..." for each in (given, known)]
        has, got = "", f"holds other images (fingerprint {' instead of '.join(marks)})"
    raise UserError(f"{made} {first}{has}, but {second} {got}; give the same data with --data")


def _told(side: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Describe classes and shape; of the classes, first those that the other lacks."""
    names = sorted(side["class_names"], key=other["class_names"].__contains__)
    shown = [*names[:_NAMES_SHOWN], "..."] if len(names) > _NAMES_SHOWN else names
    return f"{len(names)} classes ({', '.join(shown)}) of images {side['shape']}"
