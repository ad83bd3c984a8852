"""VGG11 in the variant for small images that the papers evaluate with."""

from __future__ import annotations

from torch import nn

from trajmatch.networks.layers import LARGE_IMAGE, ImageClassifier, growth, norm_layers

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
