"""Base class of the networks, and their shared layers and size formulas."""

from typing import Any

from torch import Tensor, nn

from trajmatch.block import ACTIVATIONS, NORM_EPS, NORMS, POOLINGS

_CHOICES = {"norm": NORMS, "activation": ACTIVATIONS, "pooling": POOLINGS}

ACTIVATION_LAYERS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "sigmoid": nn.Sigmoid}
POOLING_LAYERS = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}

#: Smallest image side for which AlexNet, ResNet18 and LeNet start with stride 2, VGG11 pools once
#: more and the MLP has one hidden layer (PAD's networks for Tiny ImageNet).
LARGE_IMAGE = 64


class ImageClassifier(nn.Module):
    """Base class of networks for square images: ``features``, then ``classifier``.

    The first three arguments are as for :class:`trajmatch.networks.ConvNet`; ``options`` are the
    other arguments of the subclass. ValueError is raised if a size is not positive, a choice is
    unknown or the norm's groups do not divide the width, TypeError if a size is not an int.
    """

    features: nn.Sequential
    classifier: nn.Module

    def __init__(
        self, in_channels: int, num_classes: int, image_size: int, **options: int | str
    ) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "num_classes": num_classes, "image_size": image_size}
        self._arguments: dict[str, Any] = {**sizes, **options}
        for name, value in self._arguments.items():
            if name in _CHOICES:
                wanted, fits = f"one of {', '.join(_CHOICES[name])}", value in _CHOICES[name]
            elif isinstance(value, int):
                wanted, fits = "at least 1", value >= 1
            else:
                raise TypeError(self._message(name, "an int", value))
            if not fits:
                raise ValueError(self._message(name, wanted, value))
        width, norm = options.get("width", 0), options.get("norm", "none")
        groups = NORMS[str(norm)].groups
        if groups and width % groups:
            wanted = f"a multiple of {groups} for norm={norm!r}"
            raise ValueError(self._message("width", wanted, width))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of the images."""
        size = self._arguments["image_size"]
        return self._arguments["in_channels"], size, size

    def _message(self, argument: str, wanted: str, came: object) -> str:
        return f"{type(self).__name__}: expected {argument} to be {wanted}, but got {came!r}"

    def _check_size_left(self, size: int) -> None:
        """Raise ValueError if the poolings leave no pixels."""
        if size < 1:
            came, wanted = self._arguments["image_size"], "large enough for its poolings"
            message = self._message("image_size", wanted, came)
            raise ValueError(f"{message}; use a larger image or another network")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``[B, num_classes]`` of images."""
        return self.classifier(self.features(images).flatten(1))

    def spec(self) -> dict[str, Any]:
        """Return the ``spec`` from which :func:`trajmatch.networks.build` makes this network."""
        return {"name": type(self).__name__, **self._arguments}


def norm_layers(norm: str, channels: int, size: int) -> list[nn.Module]:
    """Return a list with the norm layer for ``[B, channels, size, size]``; empty for ``"none"``."""
    groups, elementwise, over_batch = NORMS[norm]
    if groups == 0:
        return []
    if over_batch:
        return [nn.BatchNorm2d(channels, eps=NORM_EPS)]
    if elementwise:
        return [nn.LayerNorm([channels, size, size], eps=NORM_EPS)]
    # Instance norm has one group per channel, and groups is None.
    return [nn.GroupNorm(groups or channels, channels, eps=NORM_EPS)]


def convolution(
    channels: int, out: int, kernel: int, padding: int, stride: int = 1, pools: bool = False
) -> list[nn.Module]:
    """Return a convolution, ReLU and, with ``pools``, 2x2 max-pooling."""
    layers = [nn.Conv2d(channels, out, kernel, stride, padding), nn.ReLU()]
    return [*layers, nn.MaxPool2d(2)] if pools else layers


def growth(image_size: int) -> int:
    """Return the extra padding of the first convolution: 28-pixel images grow to 32."""
    return 2 if image_size == 28 else 0


def first_stride(image_size: int) -> int:
    """Return the stride of the first convolution."""
    return 2 if image_size >= LARGE_IMAGE else 1


def convolved(size: int, kernel: int, padding: int, stride: int = 1) -> int:
    """Return the side of a convolution's output."""
    return (size + 2 * padding - kernel) // stride + 1
