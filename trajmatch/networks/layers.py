"""What the networks have in common: norms by name, sizes of activations, checks of arguments."""

from __future__ import annotations

from typing import Any

from torch import nn

#: Groups of ``norm="group"`` (METHODS: ``GroupNorm(4, C)``).
GROUP_NORM_GROUPS = 4
#: Added to the variance, PyTorch's default for every norm used here.
NORM_EPS = 1e-5
#: Norms that every network with norms can have.
ALL_NORMS = ("none", "batch", "instance", "group", "layer")

#: Side of the images from which on the first convolution of AlexNet, ResNet18 and LeNet has stride
#: 2, VGG11 pools once more and the MLP has one hidden layer (PAD's networks for Tiny ImageNet).
LARGE_IMAGE = 64


class ImageClassifier(nn.Module):
    """A network for square images that knows the arguments it was made with.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits.
        image_size: Side of the square images in pixels.
        **choices: Other arguments of the class, for :meth:`spec`.

    Raises:
        ValueError: A size is not positive.
    """

    def __init__(
        self, in_channels: int, num_classes: int, image_size: int, **choices: int | str
    ) -> None:
        super().__init__()
        self._arguments: dict[str, Any] = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "image_size": image_size,
            **choices,
        }
        sizes = {name: each for name, each in self._arguments.items() if not isinstance(each, str)}
        check_positive(type(self).__name__, **sizes)

    def spec(self) -> dict[str, Any]:
        """What :func:`trajmatch.networks.build` needs to make this network again."""
        return {"name": type(self).__name__, **self._arguments}


def norm_layers(norm: str, channels: int, size: int) -> list[nn.Module]:
    """The norm of activations ``[B, channels, size, size]``: one module, or none for ``"none"``.

    Instance norm is ``GroupNorm(C, C)`` with affine parameters, group norm has 4 groups, layer
    norm runs over ``(C, H, W)``, batch norm keeps running statistics.
    """
    if norm == "instance":
        return [nn.GroupNorm(channels, channels, eps=NORM_EPS)]
    if norm == "group":
        return [nn.GroupNorm(GROUP_NORM_GROUPS, channels, eps=NORM_EPS)]
    if norm == "layer":
        return [nn.LayerNorm([channels, size, size], eps=NORM_EPS)]
    if norm == "batch":
        return [nn.BatchNorm2d(channels, eps=NORM_EPS)]
    return []


def growth(image_size: int) -> int:
    """Padding of the first convolution beyond its usual one: 28-pixel images grow to 32."""
    return 2 if image_size == 28 else 0


def first_stride(image_size: int) -> int:
    """Stride of the first convolution."""
    return 2 if image_size >= LARGE_IMAGE else 1


def convolved(size: int, kernel: int, padding: int, stride: int = 1) -> int:
    """Side of the output of a convolution."""
    return (size + 2 * padding - kernel) // stride + 1


def check_positive(network: str, **sizes: int) -> None:
    """Raise ValueError for a size below 1, and TypeError for one that is no whole number."""
    for name, value in sizes.items():
        if not isinstance(value, int):
            raise TypeError(f"{network}: expected {name} to be an int, but got {value!r}")
        if value < 1:
            raise ValueError(f"{network}: expected {name} to be at least 1, but got {value}")


def check_choice(network: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError for a choice that there is not."""
    if value not in choices:
        raise ValueError(
            f"{network}: expected {name} to be one of {', '.join(choices)}, but got {value!r}"
        )


def check_norm(network: str, norm: str, width: int) -> None:
    """Raise ValueError for an unknown norm, or a width that group norm cannot divide."""
    check_choice(network, "norm", norm, ALL_NORMS)
    if norm == "group" and width % GROUP_NORM_GROUPS:
        raise ValueError(
            f"{network}: expected width to be a multiple of {GROUP_NORM_GROUPS} "
            f"for norm='group', but got {width}"
        )


def check_size_left(network: str, size: int, image_size: int) -> None:
    """Raise ValueError where nothing is left of the images after the last pooling."""
    if size < 1:
        raise ValueError(
            f"{network}: expected image_size to be large enough for its poolings, but got "
            f"{image_size}; use a larger image or another network"
        )
