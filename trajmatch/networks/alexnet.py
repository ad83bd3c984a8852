"""AlexNet in the variant for small images that the papers evaluate with."""

from __future__ import annotations

from torch import nn

from trajmatch.networks.layers import ImageClassifier, convolved, first_stride, growth


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
