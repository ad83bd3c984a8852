"""LeNet with rectified units and max-pooling."""

from __future__ import annotations

from torch import nn

from trajmatch.networks.layers import ImageClassifier, convolved, first_stride, growth


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
