"""A multilayer perceptron."""

from __future__ import annotations

from torch import Tensor, nn

from trajmatch.networks.layers import LARGE_IMAGE, ImageClassifier


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
