"""A labelled image data set with checks, channel statistics and a fingerprint."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    """Training and test images of ``K`` classes, held in CPU memory and checked on construction.

    Attributes:
        name: Name in files and tables; never a path.
        train_images: ``[N, C, S, S]``, uint8.
        train_labels: ``[N]``, integers 0 to ``K - 1``, stored as int64. Every class needs an image.
        test_images: ``[M, C, S, S]``, uint8.
        test_labels: ``[M]``, integers 0 to ``K - 1``, stored as int64.
        class_names: One name per class, in label order.
        mean: Mean of each channel, pixels in 0..1; if empty, computed from the training images.
        std: Standard deviation of each channel; computed together with ``mean``.
        published_statistics: True if mean and std are published constants. Subsets keep them.
        zca: ZCA whitening that replaces the channel normalisation, or None.
        train_targets: Regression targets for the mean squared error, ``[N, D]``, float32, or None.
        test_targets: Regression targets of the test images, ``[M, D]``, float32, or None.

    Raises:
        UserError: Images, labels, targets or class names are invalid.
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
        return (
            f"<Dataset {self.name}: {len(self.train_images)} training and {len(self.test_images)} "
            f"test images {list(self.train_images.shape[1:])} in {len(self.class_names)} classes>"
        )

    def __post_init__(self) -> None:
        # A frozen dataclass refuses assignment, so fields are set through its __dict__.
        vars(self)["class_names"] = tuple(self.class_names)
        for name in ("train_labels", "test_labels"):
            if vars(self)[name].dtype in _INTEGERS:  # check_labels refuses other dtypes
                vars(self)[name] = vars(self)[name].to(torch.int64)
        what = f"data set {self.name}"
        check_class_names(what, self.class_names)
        for part, images, labels, targets in (
            ("training", self.train_images, self.train_labels, self.train_targets),
            ("test", self.test_images, self.test_labels, self.test_targets),
        ):
            _check_images(f"{what}: {part} images", images, self.train_images)
            check_labels(f"{what}: {part} labels", labels, len(images), self.class_names)
            # If one part has targets, the other needs them too: both parts use one loss.
            if self.train_targets is not None or self.test_targets is not None:
                _check_targets(f"{what}: {part} targets", targets, len(images), self.train_targets)
        # Only after check_labels: bincount fails for negative labels.
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
        """Training loss: ``"mse"`` if the set has targets, else ``"cross_entropy"``."""
        return "cross_entropy" if self.train_targets is None else "mse"

    def check_loss(self, given: str | None) -> None:
        """Raise UserError if ``given``, the value of ``--loss``, is not the loss of the set."""
        if given not in (None, self.loss):
            raise UserError(
                f"--loss {given} contradicts the data set {self.name}, on which networks are "
                f"trained with {self.loss}; leave out --loss, or take data (and experts) "
                f"{'with' if given == 'mse' else 'without'} ?targets=NAME in its address"
            )

    @property
    def train_answers(self) -> Tensor:
        """Training targets if the set has them, else training labels."""
        return self.train_labels if self.train_targets is None else self.train_targets

    @property
    def test_answers(self) -> Tensor:
        """Test targets if the set has them, else test labels."""
        return self.test_labels if self.test_targets is None else self.test_targets

    @property
    def num_outputs(self) -> int:
        """Number of network outputs: target size ``D`` if the set has targets, else ``K``."""
        return self.num_classes if self.train_targets is None else self.train_targets.shape[1]

    @property
    def channels(self) -> int:
        """Number of channels ``C``."""
        return self.train_images.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width ``S`` in pixels."""
        return self.train_images.shape[2]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of images, labels, targets, shapes and class names, but not of ``name``."""
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
            # Little-endian everywhere, so the digest is the same on every machine.
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
        return digest.hexdigest()

    @property
    def description(self) -> dict[str, Any]:
        """Name, fingerprint, class names and image shape, as expert stores record them."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "class_names": list(self.class_names),
            "shape": list(self.train_images.shape[1:]),
        }

    @property
    def preprocessing(self) -> Preprocessing:
        """Map between pixels and network inputs: ZCA if set, else channel normalisation."""
        return self.zca or ChannelNormalisation(self.mean, self.std)

    def whitened(self, zca: ZCA | None) -> "Dataset":
        """Return a copy that uses ``zca`` and shares the images; return the set itself for None.

        Raises:
            UserError: The transform was fitted to images of another shape.
        """
        shape = list(self.train_images.shape[1:])
        if zca is not None and list(zca.mean.shape) != shape:
            raise UserError(
                f"the ZCA transform is for images of shape {list(zca.mean.shape)}, but the "
                f"images of {self.name} have shape {shape}; fit a new transform to this set"
            )
        return self if zca is None else replace(self, zca=zca)

    def preprocessed_as(self, spec: Mapping[str, Any], zca: ZCA | None) -> "Dataset":
        """Return the set with ``zca`` or, if that is None, with the mean and std in ``spec``."""
        if zca is not None or self.preprocessing.spec() == spec:
            return self.whitened(zca)
        # Converted experts may have been trained with a mean and std that differ from this set's.
        return replace(self, mean=tuple(spec["mean"]), std=tuple(spec["std"]))

    def normalise(self, images: Tensor) -> Tensor:
        """Convert uint8 pixels ``[N, C, S, S]`` to float32 network inputs on the same device.

        Raises:
            TypeError: ``images`` is not uint8.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"normalise: expected images to be uint8, but got {images.dtype}")
        return self.preprocessing.to(images.device).apply(images)

    def without_holdout(self, fraction: float, seed: int) -> tuple["Dataset", Tensor, Tensor]:
        """Split off a random held-out set with the same fraction of every class.

        The fingerprint is computed again without the held-out images, and so are mean and std,
        unless they are published constants.

        Args:
            fraction: Fraction of each class to hold out, in [0, 1), rounded to whole images.
            seed: Seed of the random choice.

        Returns:
            Remaining set, held-out uint8 images and their :attr:`train_answers`, in original order.

        Raises:
            UserError: The fraction is out of range, or a class would have no kept or no held-out
                image.
        """
        if fraction == 0:
            return self, self.train_images[:0], self.train_answers[:0]
        kept, held_out = split_holdout(self.train_labels, self.class_names, fraction, seed)
        return self._part(train=kept), self.train_images[held_out], self.train_answers[held_out]

    def of_classes(self, wanted: Sequence[str]) -> "Dataset":
        """Return the subset of the ``wanted`` classes, given by name or number.

        The first wanted class becomes class 0; an empty ``wanted`` keeps all classes. The
        fingerprint is computed again, and so are mean and std, unless they are published constants.

        Raises:
            UserError: A class is unknown or repeated, only one class is given, or no class has test
                images.
        """
        if not wanted:
            return self
        labels = choose_classes(self.name, self.class_names, wanted)
        # Old label -> new label; -1 marks classes to drop.
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
    ) -> "Dataset":
        """Return a subset without ZCA; recompute its statistics unless they are published."""
        for part, rows in (("train", train), ("test", test)):
            for kind in ("images", "labels", "targets"):
                tensor = vars(self)[name := f"{part}_{kind}"]
                if rows is not None and tensor is not None:
                    # Renumbered labels in ``changes`` take precedence over the selected ones.
                    changes.setdefault(name, tensor[rows])
        if not self.published_statistics:
            changes |= {"mean": (), "std": ()}  # __post_init__ computes empty statistics
        # The ZCA transform was fitted to all images, so the subset must not inherit it.
        return replace(self, zca=None, **changes)


def _check_images(what: str, images: Tensor, training: Tensor) -> None:
    """Raise UserError unless images are uint8, square and shaped like the training images."""
    shape = list(images.shape)
    if images.dtype != torch.uint8:
        raise UserError(
            f"{what} should be uint8, 0 to 255, but are {images.dtype}; convert them; multiply "
            "numbers from 0 to 1 by 255 and round"
        )
    if images.ndim != 4 or images.numel() == 0 or shape[2] != shape[3]:
        raise UserError(
            f"{what} should be at least one square image, [N, C, S, S], but have shape {shape}; "
            "crop or resize them"
        )
    if images.shape[1:] != training.shape[1:]:
        raise UserError(
            f"{what} have shape {shape}, but the training images have shape "
            f"{list(training.shape)}; give all images the same size and number of channels"
        )


def _check_targets(what: str, targets: Tensor | None, count: int, training: Tensor | None) -> None:
    """Raise UserError unless the targets are one finite float32 vector per image."""
    size = "D" if training is None or training.ndim != 2 else training.shape[1]
    shape = None if targets is None else list(targets.shape)
    if targets is None or targets.dtype != torch.float32 or shape != [count, size] or not size:
        came = "there are none" if targets is None else f"are {targets.dtype} of shape {shape}"
        raise UserError(
            f"{what} should be float32, one vector per image, [{count}, {size}], but {came}"
        )
    if not targets.isfinite().all():
        raise UserError(f"{what} should be finite, but are not")
    if targets is training and targets.eq(targets[0]).all():
        raise UserError(f"{what} should differ from image to image, but are all equal")


def check_labels(what: str, labels: Tensor, count: int, class_names: Sequence[str]) -> None:
    """Raise UserError unless the labels are valid class indices, int64, of shape ``[count]``."""
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
    """Raise UserError unless there are two or more names, which are UTF-8, not empty and unique."""
    if len(class_names) < 2:
        raise UserError(
            f"{what}: at least 2 classes are needed, but there are {len(class_names)} "
            f"({', '.join(class_names) or 'no names'})"
        )
    # Compare in Unicode form NFC: two spellings of an accent look the same to the user.
    names = list(map(composed, class_names))
    for index, name in enumerate(names):
        check_text(f"{what}: the class name", name)
        if not name or name in names[:index]:
            raise UserError(
                f"{what}: class names must be unique and not empty, but class {index} is called "
                f"{name!r}"
            )


def check_text(what: str, text: str) -> None:
    """Raise UserError if a text, such as a file name, is not valid UTF-8."""
    # Python holds undecodable bytes of a file name as surrogates; ``replace`` makes them "?".
    if text.encode(errors="replace").decode() != text:
        raise UserError(f"{what} {text!a} is not UTF-8; rename it")


def check_same_data(
    made: str,
    known: Mapping[str, Any],
    given: Mapping[str, Any],
    known_address: str | None = None,
    given_address: str | None = None,
) -> None:
    """Raise UserError if two descriptions (:attr:`Dataset.description`) differ in fingerprint.

    ``made`` begins the message, e.g. ``"d.safetensors was made from"``. If an address is given, the
    message has the address instead of the data set's name.
    """
    if known["fingerprint"] == given["fingerprint"]:
        return
    first = known_address or f"the data set {known['name']!r}"
    second = given_address or f"the data set {given['name']!r}"
    has, got = f" with {_told(known, given)}", f"has {_told(given, known)}"
    # If classes and shape are the same, only the fingerprints can show the difference.
    if _told(known, given) == _told(given, known):
        marks = ", expected ".join(f"{each['fingerprint'][:16]}..." for each in (given, known))
        has, got = "", f"holds other images, labels or targets (fingerprint {marks})"
    raise UserError(f"{made} {first}{has}, but {second} {got}; give the same data with --data")


def _told(side: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Describe classes and image shape of a data set for a message."""
    # False sorts before True, so the classes that the other set lacks come first.
    names = sorted(side["class_names"], key=other["class_names"].__contains__)
    shown = [*names[:_NAMES_SHOWN], "..."] if len(names) > _NAMES_SHOWN else names
    return f"{len(names)} classes ({', '.join(shown)}) of images {side['shape']}"
