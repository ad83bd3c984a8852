"""AlexNet, VGG11, LeNet and MLP in the variants for small images that the papers evaluate with."""

from __future__ import annotations

from torch import Tensor, nn

from trajmatch.networks.layers import (
    LARGE_IMAGE,
    ImageClassifier,
    convolved,
    first_stride,
    growth,
    norm_layers,
)


class AlexNet(ImageClassifier):
    """Five convolutions (128-192-256-192-192 channels), three max-poolings, one linear layer.

    There is no norm. The first two convolutions are 5x5, the others 3x3; a 28-pixel image is padded
    to 32, and from 64 pixels on the first convolution has stride 2 (PAD).

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits.
        image_size: Side of the square images in pixels.
        width: Channels of the first convolution, even; the others are in proportion.

    Raises:
        ValueError: A size is not positive, the width is odd, or the images are too small.

    Shape:
        input ``[B, in_channels, image_size, image_size]``, output ``[B, num_classes]``.
    """

    def __init__(
        self, in_channels: int, num_classes: int, image_size: int, width: int = 128
    ) -> None:
        super().__init__(in_channels, num_classes, image_size, width=width)
        if width % 2:
            raise ValueError(self._message("width", "even", width))
        padding, stride = 2 + growth(image_size), first_stride(image_size)
        size = convolved(image_size, 5, padding, stride) // 8
        self._check_size_left(size)
        second, third = width * 3 // 2, width * 2
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 5, stride=stride, padding=padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, second, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(second, third, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(third, second, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(second, second, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Linear(second * size**2, num_classes)


#: Channels of the convolutions, in multiples of the width; after each group a 2x2 max-pooling.
_GROUPS = ((1,), (2,), (4, 4), (8, 8), (8, 8))


class VGG11(ImageClassifier):
    """Eight 3x3 convolutions with norm and ReLU, max-pooling after five of them, one linear layer.

    A 28-pixel image is padded to 32; from 64 pixels on the last activations are pooled once more
    (PAD).

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits.
        image_size: Side of the square images in pixels.
        width: Channels of the first convolution; the others have up to 8 times as many.
        norm: ``"instance"``, ``"batch"``, ``"group"``, ``"layer"`` or ``"none"``.

    Raises:
        ValueError: A size is not positive, the norm is unknown or does not fit the width, or the
            images are too small.

    Shape:
        input ``[B, in_channels, image_size, image_size]``, output ``[B, num_classes]``.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int,
        width: int = 64,
        norm: str = "instance",
    ) -> None:
        super().__init__(in_channels, num_classes, image_size, width=width, norm=norm)
        size = image_size + 2 * growth(image_size)
        layers: list[nn.Module] = []
        channels, padding = in_channels, 1 + growth(image_size)
        # From 64 pixels on, one more pooling without convolutions before it.
        for group in (*_GROUPS, ()) if image_size >= LARGE_IMAGE else _GROUPS:
            for multiple in group:
                layers.append(nn.Conv2d(channels, width * multiple, 3, padding=padding))
                layers.extend(norm_layers(norm, width * multiple, size))
                layers.append(nn.ReLU())
                channels, padding = width * multiple, 1
            layers.append(nn.MaxPool2d(2))
            size //= 2
        self._check_size_left(size)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * size**2, num_classes)


class LeNet(ImageClassifier):
    """Two 5x5 convolutions (6 and 16 channels), each with max-pooling; linear layers of 120 and 84.

    There is no norm. A 28-pixel image is padded to 32, and from 64 pixels on the first convolution
    has stride 2 (PAD).

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits.
        image_size: Side of the square images in pixels.

    Raises:
        ValueError: A size is not positive, or the images are too small.

    Shape:
        input ``[B, in_channels, image_size, image_size]``, output ``[B, num_classes]``.
    """

    def __init__(self, in_channels: int, num_classes: int, image_size: int) -> None:
        super().__init__(in_channels, num_classes, image_size)
        padding, stride = growth(image_size), first_stride(image_size)
        size = convolved(convolved(image_size, 5, padding, stride) // 2, 5, 0) // 2
        self._check_size_left(size)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5, stride=stride, padding=padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * size**2, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )


class MLP(ImageClassifier):
    """Linear layers with rectified units: two hidden layers, one from 64 pixels on (PAD).

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits.
        image_size: Side of the square images in pixels.
        width: Units of a hidden layer.

    Raises:
        ValueError: A size is not positive.

    Shape:
        input ``[B, in_channels, image_size, image_size]``, output ``[B, num_classes]``.
    """

    def __init__(
        self, in_channels: int, num_classes: int, image_size: int, width: int = 128
    ) -> None:
        super().__init__(in_channels, num_classes, image_size, width=width)
        hidden = [] if image_size >= LARGE_IMAGE else [nn.Linear(width, width), nn.ReLU()]
        self.layers = nn.Sequential(
            nn.Linear(in_channels * image_size**2, width),
            nn.ReLU(),
            *hidden,
            nn.Linear(width, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` of images ``[B, in_channels, image_size, image_size]``."""
        return self.layers(images.flatten(1))
